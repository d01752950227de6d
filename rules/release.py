"""A release of several components: what belongs to it, in which order, and which orders make no sense."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.change import ApplicationRelease, Change, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.checklist import Attestation, Waiver
from rules.content_change import ContentRelease
from rules.evidence.sources import Evidence
from rules.frozen import Frozen, Name, ReleaseId
from rules.request import Papers
from rules.strategy import BlueGreen, Canary, InPlace, Rolling, Strategy
from rules.system_change import SystemRelease


class Component(Frozen):
    """One component of a release: its change, how it is rolled out, and what has to be there before it."""

    name: Name = Field(
        description="what it is called in this release, such as schema", json_schema_extra={"position": 0}
    )
    change: (
        ApplicationRelease
        | ModelRelease
        | RayRelease
        | SchemaChange
        | IndexChange
        | SystemRelease
        | ContentRelease
    ) = Field(json_schema_extra={"position": 1})
    strategy: InPlace | BlueGreen | Canary | Rolling = Field(
        default=InPlace(), json_schema_extra={"position": 2}
    )
    after: tuple[Name, ...] = Field(
        default=(),
        description="components of this release that must be deployed before it",
        json_schema_extra={"position": 3},
    )
    when: Literal["now", "after_bake"] = Field(
        default="now",
        description="after_bake: deployed by itself once the others can no longer be taken back",
        json_schema_extra={"position": 4},
    )
    evidence: Evidence = Field(default=Evidence(), json_schema_extra={"position": 5})
    attestations: tuple[Attestation, ...] = Field(default=(), json_schema_extra={"position": 6})
    waivers: tuple[Waiver, ...] = Field(default=(), json_schema_extra={"position": 7})

    @property
    def papers(self) -> Papers:
        """What its gate is shown beside the change itself."""
        return Papers(evidence=self.evidence, attestations=self.attestations, waivers=self.waivers)


class Release(Frozen):
    """Several components that go together: all of them are promoted, or none is."""

    component: Literal["release"] = Field(default="release", json_schema_extra={"position": 3})
    name: Name = Field(description="of what is released, such as emily", json_schema_extra={"position": 0})
    release: ReleaseId = Field(
        description="what this release is called in the books", json_schema_extra={"position": 1}
    )
    components: Annotated[tuple[Component, ...], Field(min_length=1)] = Field(
        description="in the order in which they are deployed, as far as `after` does not change it",
        json_schema_extra={"position": 2},
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        found = tuple(faults(self.components))
        if found:
            raise ValueError(f"The release {self.name} {self.release} makes no sense: {' '.join(found)}")
        return self

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.name

    @property
    def watched(self) -> str | None:
        """The application whose users would notice: each component says that for itself."""
        return None

    @property
    def target(self) -> str:
        """What is locked while this release is deployed, beside the targets of its components."""
        return f"release-{self.name}"

    @property
    def id(self) -> str:
        """What makes it the same release in another environment: its components, in their order."""
        known = "\n".join(one.change.id for one in self.components).encode()
        return f"{self.component}:{self.release}:{hashlib.sha256(known).hexdigest()[:16]}"

    @property
    def now(self) -> tuple[Component, ...]:
        """The components that are deployed at once, in the order in which that is done."""
        return tuple(one for one in ordered(self.components) if one.when == "now")

    @property
    def after_bake(self) -> tuple[Component, ...]:
        """The components that are deployed once the others have baked, in order."""
        return tuple(one for one in ordered(self.components) if one.when == "after_bake")

    @property
    def holds(self) -> tuple[str, ...]:
        """The targets that nobody else may deploy to until this release has ended, sorted."""
        return tuple(sorted({one.change.target for one in self.now}))

    def named(self, name: str) -> Component:
        """Return the component of that name.

        Raises:
            KeyError: there is none.
        """
        for one in self.components:
            if one.name == name:
                return one
        raise KeyError(f"{self.name} has no component {name}")


#: What a deployment is about: one change, or a release of several.
Deployed = Change | Release


def ordered(components: Iterable[Component]) -> tuple[Component, ...]:
    """Return the components so that each comes after those it names; otherwise in their declared order.

    Those in a circle, and those after them, are left out: see `faults`.
    """
    waiting, placed = list(components), list[Component]()
    while True:
        names = {one.name for one in placed}
        ready = next((one for one in waiting if names.issuperset(one.after)), None)
        if ready is None:
            return tuple(placed)
        waiting.remove(ready)
        placed.append(ready)


def faults(components: tuple[Component, ...]) -> Iterator[str]:
    """Yield a sentence for each reason why these components cannot be released together."""
    structural = (*_bad_names(components), *_circle(components))
    yield from structural
    if structural:
        return  # what else there is to say rests on the order
    before = {one.name: _before(one, components) for one in components}
    yield from _shared_targets(components, before)
    yield from _schemas(components, before)
    yield from _too_early(components)
    yield from filter(None, (_strategy_fault(one) for one in components))
    if all(one.when == "after_bake" for one in components):
        yield "Nothing of it is deployed now: set `when` to now for what the others wait for."


def _bad_names(components: tuple[Component, ...]) -> Iterator[str]:
    names = [one.name for one in components]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"Two components are called {name}: give each a name of its own."
    for one in components:
        unknown = [name for name in one.after if name not in names]
        if unknown:
            yield (
                f"{one.name} comes after {', '.join(unknown)}, which this release does not have; it has "
                f"{', '.join(names)}."
            )


def _circle(components: tuple[Component, ...]) -> Iterator[str]:
    names = {one.name for one in components}
    if any(not names.issuperset(one.after) for one in components):
        return  # said already
    stuck = [one.name for one in components if one not in ordered(components)]
    if stuck:
        yield f"{', '.join(stuck)} wait for each other: take one `after` away."


def _before(one: Component, components: tuple[Component, ...]) -> frozenset[str]:
    """Return all that must be deployed before a component, directly or not."""
    by_name, found, waiting = {other.name: other for other in components}, set[str](), list(one.after)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += by_name[name].after
    return frozenset(found)


def _shared_targets(components: tuple[Component, ...], before: dict[str, frozenset[str]]) -> Iterator[str]:
    for number, one in enumerate(components):
        for other in components[number + 1 :]:
            same = one.change.target == other.change.target
            if same and one.name not in before[other.name] and other.name not in before[one.name]:
                yield (
                    f"{one.name} and {other.name} both change {one.change.target}: say by `after` which "
                    "comes first."
                )


def _schemas(components: tuple[Component, ...], before: dict[str, frozenset[str]]) -> Iterator[str]:
    """Say where a schema change is on the wrong side of an application that works with it."""
    for schema in components:
        if not isinstance(schema.change, SchemaChange):
            continue
        served = {one.application for one in schema.change.serves}
        applications = [
            one
            for one in components
            if isinstance(one.change, ApplicationRelease) and one.change.application in served
        ]
        if schema.change.phase == "contract":
            yield from _contract(schema, applications, before)
        else:
            yield from (
                f"{one.name} works with what {schema.name} adds: let it come after {schema.name}."
                for one in applications
                if schema.name not in before[one.name]
            )


def _contract(
    schema: Component, applications: Iterable[Component], before: dict[str, frozenset[str]]
) -> Iterator[str]:
    if schema.when == "now":
        yield (
            f"{schema.name} takes away what an older application needs, which may return until the bake is "
            "over: set its `when` to after_bake."
        )
    for one in applications:
        if one.name not in before[schema.name]:
            yield f"{schema.name} takes away what {one.name} used before: let it come after {one.name}."


def _too_early(components: tuple[Component, ...]) -> Iterator[str]:
    late = {one.name for one in components if one.when == "after_bake"}
    for one in components:
        waits = [name for name in one.after if name in late]
        if one.when == "now" and waits:
            yield (
                f"{one.name} comes after {', '.join(waits)}, which is deployed after the bake: set its "
                "`when` to after_bake as well."
            )


def _strategy_fault(one: Component) -> str:
    """Say why a component's strategy makes no sense for its change; what the system says comes later."""
    match one.change:
        case SchemaChange() | IndexChange() | ContentRelease():
            if not isinstance(one.strategy, InPlace) or one.strategy.instance:
                return _unfit(one, "it has no instances to shift traffic between: use in_place without one")
        case RayRelease():
            if not isinstance(one.strategy, InPlace | Rolling):
                return _unfit(one, "nodes have no traffic to shift: use rolling, or in_place for one node")
        case ApplicationRelease() | ModelRelease() | SystemRelease():
            pass
    return ""


def _unfit(one: Component, why: str) -> str:
    strategy: Strategy = one.strategy
    return f"{one.name} is a {one.change.component}, which is not deployed {strategy.strategy}: {why}."
