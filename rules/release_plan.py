"""The plan of a release: one step for each component, whose way back is to take its deployment back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import Field

from rules.change import SchemaChange
from rules.checklist import Check, ChecklistReport
from rules.fleet import FleetState
from rules.frozen import Frozen, Name
from rules.plan import Plan, Step
from rules.record import checklist_page, plan_page
from rules.release import Component, Release
from rules.release_actions import DeployComponent, TakeBackDeployment
from rules.strategy import InPlace

#: Asked again by each component itself: whoever only looks ahead tells nobody.
_TOLD_LATER = "team-notified"


class Foreseen(Frozen):
    """What was found out about one component before anything was changed."""

    component: Name
    plan: Plan | None = Field(default=None, description="None: it can only be made once others are there")
    report: ChecklistReport | None = None
    why_later: str = Field(default="", description="why it cannot be planned yet")

    def blocking(self, *, tells: bool) -> tuple[Check, ...]:
        """Return the rows that block this component.

        Args:
            tells: whether the environment names somebody to tell, which the component does when it begins.
        """
        rows = self.report.blocking if self.report else ()
        return tuple(row for row in rows if not (tells and row.id == _TOLD_LATER))


def component_deployment(deployment: str, number: int, name: str) -> str:
    """Return the id of the deployment of a release's component.

    Args:
        deployment: the release's.
        number: of the step, from 0.
        name: of the component.
    """
    return f"{deployment}-{number + 1}-{name}"


def plan_release(release: Release, deployment: str) -> Plan:
    """Return the steps of a release, in the order in which its components are deployed.

    Args:
        release: what is released.
        deployment: the id of the release's deployment.
    """
    return Plan(
        change=release,
        strategy=InPlace(),
        before=FleetState(instances={}),
        steps=tuple(_step(number, one, deployment) for number, one in enumerate(release.now)),
        notes=tuple(_notes(release)),
    )


def _step(number: int, one: Component, deployment: str) -> Step:
    own = component_deployment(deployment, number, one.name)
    change = one.change
    waits = f", after {', '.join(one.after)}" if one.after else ""
    return Step(
        number=number,
        title=f"{one.name}: {change.component} {change.subject} {change.release}, "
        f"{one.strategy.strategy}{waits}",
        action=DeployComponent(component=one.name, deployment=own),
        undo=TakeBackDeployment(component=one.name, deployment=own),
    )


def _notes(release: Release) -> Iterator[str]:
    for one in release.now[:-1]:
        if isinstance(one.change, SchemaChange):
            yield (
                f"{one.name}: when a later component fails more than {one.change.max_loss_s:g} s after it "
                "was promoted, and its way back takes away what users may have written, a person is asked "
                "first (max_loss_s)."
            )
    if release.after_bake:
        words = "; ".join(
            f"{one.name} ({one.change.component} {one.change.subject} {one.change.release})"
            for one in release.after_bake
        )
        yield f"Deployed by itself after the bake, once nothing of this release can be taken back: {words}."


def foreseen_page(foreseen: Iterable[Foreseen]) -> str:
    """Return the components' plans and checklists as one Markdown page, in the order of the release."""
    return "\n\n".join(_foreseen(one) for one in foreseen)


def _foreseen(one: Foreseen) -> str:
    if one.plan is None:
        return f"# {one.component}\n\nIt is planned later: {one.why_later}"
    report = f"\n\n{checklist_page(one.report)}" if one.report else ""
    return f"{plan_page(one.plan)}{report}"


def same_steps(one: Plan, other: Plan) -> bool:
    """Return whether two plans of a component do the same: a word about one is one about the other."""
    return [step.title for step in one.steps] == [step.title for step in other.steps]
