"""Turn a change and a strategy into a plan: pure, from the state the fleet is in.

The strategies know nothing of the component: it gives them `update`, the steps that bring one instance
to the new release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from rules.balancer_fit import refuse_unfit
from rules.change import ApplicationRelease, FleetChange, NixStorePath, ReleaseArchive
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance, ReleaseDirectory
from rules.plan import (
    Action,
    DrainServer,
    ObserveBatch,
    Plan,
    ProbeInstance,
    RehearseSwitch,
    RejoinServer,
    RestartService,
    SetTraffic,
    StageRelease,
    Step,
    SwitchRelease,
    TestInstance,
    WatchSide,
)
from rules.strategy import BlueGreen, Canary, InPlace, Rolling, Strategy
from rules.traffic import Traffic
from rules.undo import (
    RemoveRehearsal,
    RemoveRelease,
    RestoreRelease,
    RestoreServer,
    RestoreTraffic,
    UndoStep,
)

#: The steps that bring one instance to the new release.
Update = Callable[[Instance], Iterable[Step]]
_ALL = 10_000


def plan_rollout(change: ApplicationRelease, strategy: Strategy, fleet: Fleet, before: FleetState) -> Plan:
    """Return the steps that bring `change` to the fleet's users; none when they have it already.

    Raises:
        InvalidRequestError: this strategy makes no sense for this fleet in this state; says what would.
    """
    _refuse_wrong_artefact(change, fleet)
    if has_it_already(change, strategy, fleet, before):
        return Plan(change=change, strategy=strategy, before=before, steps=())
    update = _application_update(change, before)
    steps = rolled_out(strategy, fleet, before, update, release=change.release)
    return Plan(change=change, strategy=strategy, before=before, steps=numbered(steps))


def rolled_out(
    strategy: Strategy, fleet: Fleet, before: FleetState, update: Update, *, release: str
) -> Iterator[Step]:
    """Yield the steps of a strategy around those that bring one instance to the new `release`.

    Raises:
        InvalidRequestError: this strategy makes no sense for this fleet in this state, or its balancer cannot
            do it; says what would.
    """
    for step in _rolled_out(strategy, fleet, before, update, release=release):
        if fleet.route:
            refuse_unfit(step.action, fleet.route)
        yield step


def _rolled_out(
    strategy: Strategy, fleet: Fleet, before: FleetState, update: Update, *, release: str
) -> Iterator[Step]:
    match strategy:
        case InPlace():
            yield from _in_place(strategy, fleet, before, update=update, release=release)
        case BlueGreen():
            yield from _blue_green(strategy, fleet, before, update=update)
        case Canary():
            yield from _canary(strategy, fleet, before, update=update)
        case Rolling():
            yield from _rolling(strategy, fleet, before, update=update)


def numbered(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps with their place in the plan as their number, from 0."""
    return tuple(step.model_copy(update={"number": n}) for n, step in enumerate(steps))


def affected(strategy: Strategy, fleet: Fleet, before: FleetState) -> tuple[Instance, ...]:
    """Return the instances whose release a rollout changes.

    Raises:
        InvalidRequestError: the strategy does not fit the fleet.
    """
    match strategy:
        case InPlace():
            return (only_instance(strategy, fleet),)
        case BlueGreen() | Canary():
            return fleet.side(_sides(fleet, before)[1])
        case Rolling():
            return serving(fleet, before)


def serving(fleet: Fleet, before: FleetState) -> tuple[Instance, ...]:
    """Return the instances that users are served by: the live side, or all where there is no balancer.

    Of a Ray cluster those are the nodes that are in it: others may stand ready to be added.
    """
    if fleet.ray:
        return tuple(i for i in fleet.instances if before.instances[i.name].running is not None)
    return fleet.side(before.traffic.live) if before.traffic else fleet.instances


def step_of(
    title: str, action: Action, undo: UndoStep | None = None, *, interrupts: str | None = None
) -> Step:
    """Return a step whose number is still to be given: see `numbered`."""
    return Step(number=0, title=title, action=action, undo=undo, interrupts=interrupts)


def _application_update(change: ApplicationRelease, before: FleetState) -> Update:
    """Stage, switch, restart, probe: the numbered steps of an application release."""

    def update(instance: Instance) -> Iterator[Step]:
        name, recorded = instance.name, before.instances[instance.name]
        restore = RestoreRelease(instance=name, release=recorded.release, running=recorded.running)
        yield staged(instance, change, before)
        yield step_of(f"{name}: switch to {change.release}", SwitchRelease(instance=name), restore)
        yield step_of(f"{name}: restart", RestartService(instance=name), restore)
        yield step_of(f"{name}: wait until ready", ProbeInstance(instance=name))
        yield step_of(f"{name}: smoke tests", TestInstance(instance=name))

    return update


def staged(instance: Instance, change: FleetChange, before: FleetState) -> Step:
    """Return the step that puts a release beside the others; its way back removes it if it is new there."""
    name = instance.name
    stages_files = isinstance(instance.layout, ReleaseDirectory)
    is_new = stages_files and change.release not in before.instances[name].releases
    remove = RemoveRelease(instance=name, release=change.release) if is_new else None
    return step_of(f"{name}: stage {change.release}", StageRelease(instance=name), remove)


def _in_place(
    strategy: InPlace, fleet: Fleet, before: FleetState, *, update: Update, release: str
) -> Iterator[Step]:
    instance = only_instance(strategy, fleet)
    notice = None
    if instance in serving(fleet, before) and not _is_drained_first(update(instance)):
        notice = f"{instance.name} does not answer while it restarts into {release}"
    for step in update(instance):
        is_restart = isinstance(step.action, RestartService) and step.interrupts is None
        yield step.model_copy(update={"interrupts": notice}) if is_restart else step


def _is_drained_first(steps: Iterable[Step]) -> bool:
    """Whether the update cuts the traffic itself, and says what users notice of it."""
    return any(isinstance(step.action, DrainServer) for step in steps)


def _blue_green(strategy: BlueGreen, fleet: Fleet, before: FleetState, *, update: Update) -> Iterator[Step]:
    traffic, idle = _sides(fleet, before)
    promoted = Traffic(live=idle, candidate=traffic.live)
    yield _rehearse(idle, (traffic, promoted, traffic))
    yield from chain.from_iterable(update(instance) for instance in fleet.side(idle))
    yield step_of(
        f"switch all traffic to {idle}", SetTraffic(traffic=promoted), RestoreTraffic(traffic=traffic)
    )
    watch = WatchSide(side=idle, stable=None, share=_ALL, watch=strategy.watch, bake_s=strategy.bake_s)
    yield step_of(f"watch {idle} with all traffic", watch)


def _canary(strategy: Canary, fleet: Fleet, before: FleetState, *, update: Update) -> Iterator[Step]:
    traffic, idle = _sides(fleet, before)
    # every step goes straight back to where the deployment began: a rollback has no steps of its own
    back = RestoreTraffic(traffic=traffic)
    promoted = Traffic(live=idle, candidate=traffic.live)
    splits = [
        Traffic(live=traffic.live, candidate=idle, canary_basis_points=round(percent * 100))
        for percent in strategy.steps_percent
    ]
    yield _rehearse(idle, (traffic, splits[0], promoted, traffic))
    yield from chain.from_iterable(update(instance) for instance in fleet.side(idle))
    for percent, split in zip(strategy.steps_percent, splits, strict=True):
        yield step_of(f"send {percent:g} % of traffic to {idle}", SetTraffic(traffic=split), back)
        share = split.canary_basis_points
        stable = traffic.live if share < _ALL else None
        bake_s = strategy.bake_s if share == _ALL else 0.0
        watch = WatchSide(side=idle, stable=stable, share=share, watch=strategy.watch, bake_s=bake_s)
        yield step_of(f"watch {idle} at {percent:g} %", watch)
    yield step_of(f"make {idle} the live side", SetTraffic(traffic=promoted), back)


def _rehearse(idle: str, splits: tuple[Traffic, ...]) -> Step:
    return step_of(
        f"rehearse the switch to {idle} and back", RehearseSwitch(splits=splits), RemoveRehearsal()
    )


def _rolling(strategy: Rolling, fleet: Fleet, before: FleetState, *, update: Update) -> Iterator[Step]:
    members = affected(strategy, fleet, before)
    _refuse_too_many_out(strategy, fleet, before, members=members)
    limits = strategy.limits.model_copy(update={"min_observation_s": strategy.observe_s})
    for start in range(0, len(members), strategy.batch_size):
        batch = members[start : start + strategy.batch_size]
        names = tuple(instance.name for instance in batch)
        if fleet.route:
            yield from (drained(name, strategy.drain_s, before) for name in names)
        yield from chain.from_iterable(update(instance) for instance in batch)
        if fleet.route:
            yield from (rejoined(name, strategy.drain_s, before) for name in names)
        observe = ObserveBatch(instances=names, observe_s=strategy.observe_s, limits=limits)
        yield step_of(f"observe {', '.join(names)}", observe)


def drained(name: str, drain_s: float, before: FleetState) -> Step:
    """Return the step that takes an instance out of the balancer."""
    answered = before.instances[name].running is not None
    back = RestoreServer(instance=name, admin="ready", drain_s=drain_s, answered=answered)
    return step_of(f"{name}: drain", DrainServer(instance=name, drain_s=drain_s), back)


def rejoined(name: str, drain_s: float, before: FleetState) -> Step:
    """Return the step that gives an instance traffic again."""
    answered = before.instances[name].running is not None
    back = RestoreServer(instance=name, admin="maint", drain_s=drain_s, answered=answered)
    return step_of(f"{name}: rejoin", RejoinServer(instance=name), back)


def only_instance(strategy: InPlace, fleet: Fleet) -> Instance:
    """Return the instance that an update in place is about.

    Raises:
        InvalidRequestError: it names none of several, or one that is not there.
    """
    if strategy.instance:
        if strategy.instance not in fleet.names:
            raise InvalidRequestError(
                f"{fleet.application} has no instance {strategy.instance}; it has {', '.join(fleet.names)}"
            )
        return fleet.instance(strategy.instance)
    if len(fleet.instances) > 1:
        raise InvalidRequestError(
            f"{fleet.application} has {len(fleet.instances)} instances: name the one to update in place, "
            "or use the strategy rolling for all of them"
        )
    return fleet.instances[0]


def _sides(fleet: Fleet, before: FleetState) -> tuple[Traffic, str]:
    """Return the traffic as recorded and the idle side."""
    if before.traffic is None or len(fleet.sides) != 2:  # noqa: PLR2004 - blue and green
        raise InvalidRequestError(
            f"blue-green and canary need two sides behind a balancer; {fleet.application} has "
            f"{len(fleet.sides)}: use rolling or in_place"
        )
    traffic = before.traffic
    if traffic.canary_basis_points:
        raise InvalidRequestError(
            f"{traffic.candidate} already gets {traffic.canary_basis_points / 100:g} % of the traffic of "
            f"{fleet.application}: somebody is in the middle of a canary; finish or undo it first"
        )
    if traffic.live not in fleet.sides:
        raise InvalidRequestError(
            f"traffic goes to {traffic.live}, which is no side of {fleet.application}: {fleet.sides}"
        )
    idle = next(side for side in fleet.sides if side != traffic.live)
    out = [i.name for i in fleet.side(idle) if before.servers.get(i.name) != "ready"]
    if out:
        raise InvalidRequestError(
            f"{', '.join(out)} on the idle side {idle} is taken out of the balancer: bring it to ready first"
        )
    return traffic, idle


def _refuse_too_many_out(
    strategy: Rolling, fleet: Fleet, before: FleetState, *, members: tuple[Instance, ...]
) -> None:
    names = tuple(instance.name for instance in members)
    up = set(before.healthy(names))
    if fleet.route:
        up &= {name for name in names if before.servers.get(name) == "ready"}
    out = len(names) - len(up)
    if out + strategy.batch_size > strategy.max_unavailable:
        raise InvalidRequestError(
            f"{out} of {len(names)} are out already ({', '.join(sorted(set(names) - up)) or 'none'}); a "
            f"batch of {strategy.batch_size} more would exceed max_unavailable={strategy.max_unavailable}"
        )
    if fleet.route and strategy.batch_size >= len(names):
        raise InvalidRequestError(
            f"a batch of {strategy.batch_size} would take out all {len(names)} instances that users are "
            "served by: use a smaller batch, or in_place for an update with an interruption"
        )


def _refuse_wrong_artefact(change: ApplicationRelease, fleet: Fleet) -> None:
    for instance in fleet.instances:
        has_directory = isinstance(instance.layout, ReleaseDirectory)
        if has_directory and isinstance(change.artefact, NixStorePath):
            raise InvalidRequestError(
                f"{instance.name} has release directories: give an archive, not a store path"
            )
        if not has_directory and isinstance(change.artefact, ReleaseArchive):
            raise InvalidRequestError(f"{instance.name} is a Nix profile: give a store path, not an archive")


def has_it_already(change: FleetChange, strategy: Strategy, fleet: Fleet, before: FleetState) -> bool:
    """Return whether users are served by the release already, so that there is nothing to do."""
    return all(has_release(change, before, i.name) for i in meant_for(strategy, fleet, before))


def has_release(change: FleetChange, before: FleetState, name: str) -> bool:
    """Return whether an instance points to the release and runs it."""
    state = before.instances[name]
    return state.release == change.pointer and state.running == change.release


def meant_for(strategy: Strategy, fleet: Fleet, before: FleetState) -> tuple[Instance, ...]:
    """Return the instances that must have a release for it to be in place: one, or all that serve users."""
    return (only_instance(strategy, fleet),) if isinstance(strategy, InPlace) else serving(fleet, before)
