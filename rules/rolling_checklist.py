"""What the checklist of a rolling update finds: whether its batches leave enough, drain, and go back."""

from __future__ import annotations

from collections.abc import Iterable

from rules.finding import Finding
from rules.fleet import Fleet, FleetState, Instance
from rules.model_actions import HotSwap
from rules.nixos_actions import ActivateSystem, RebootHost, StageSystem, SwitchSystem, UpdateChannel
from rules.plan import (
    DrainServer,
    ObserveBatch,
    Plan,
    RejoinServer,
    RestartService,
    StageRelease,
    Step,
    SwitchRelease,
)
from rules.ray_actions import DrainNode, StopService, VerifyNode
from rules.rollout import serving
from rules.strategy import Rolling
from rules.undo import InstanceUndo, RestoreServer

#: What changes what an instance has or runs.
_CHANGES = (
    SwitchRelease
    | RestartService
    | HotSwap
    | DrainNode
    | StopService
    | ActivateSystem
    | SwitchSystem
    | RebootHost
)
#: What lies beside what runs, and may be done while users are served.
_STAGING = StageRelease | UpdateChannel | StageSystem
NOTHING_TO_DO = Finding.not_applicable("nothing to do: the release is in place already.")


def rolling_findings(plan: Plan, strategy: Rolling, fleet: Fleet) -> dict[str, Finding]:
    """Return a finding for each item of a rolling update's checklist, by the item's id."""
    members = serving(fleet, plan.before)
    return {
        "rolling-two-serve": _only_adds(plan, fleet)
        or Finding.judged(f"{len(members)} serve users.", ok=len(members) > 1),
        "rolling-enough-left": _only_adds(plan, fleet) or _enough_left(strategy, len(members)),
        "rolling-all-healthy": all_serve(members, plan.before),
        "rolling-drain-and-rejoin": _drained_and_rejoined(plan, strategy, fleet),
        "rolling-observed": _observed(plan),
        "rolling-way-back": _batches_go_back(plan, fleet),
    }


def _only_adds(plan: Plan, fleet: Fleet) -> Finding | None:
    """Return the finding for a plan that takes no node of a cluster out; None: it does."""
    if fleet.ray is None or any(isinstance(step.action, DrainNode) for step in plan.steps):
        return None
    return Finding.not_applicable("nodes are added, and none is taken out.")


def all_serve(members: tuple[Instance, ...], before: FleetState) -> Finding:
    """Return whether all answer their probe and, where there is a balancer, take traffic."""
    out = [
        instance.name
        for instance in members
        if before.instances[instance.name].running is None
        or (before.traffic and before.servers.get(instance.name) != "ready")
    ]
    up = len(members) - len(out)
    words = f"{up} of {len(members)} answer and take traffic; not: {', '.join(out) or 'none'}."
    return Finding.judged(words, ok=bool(members) and not out)


def _enough_left(strategy: Rolling, members: int) -> Finding:
    left = members - max(strategy.batch_size, strategy.max_unavailable)
    return Finding.judged(f"{max(left, 0)} of {members} are left at the worst.", ok=left > 0)


def _steps_of(plan: Plan, name: str) -> list[Step]:
    return [step for step in plan.steps if getattr(step.action, "instance", None) == name]


def _drained_and_rejoined(plan: Plan, strategy: Rolling, fleet: Fleet) -> Finding:
    if fleet.route is None and any(instance.nixos for instance in fleet.instances):
        return _without_a_balancer(plan)
    if fleet.route is None and fleet.ray is None:
        return Finding.failed("no balancer declared: whoever is on an instance notices its restart.")
    if not plan.steps:
        return NOTHING_TO_DO
    served = {instance.name for instance in serving(fleet, plan.before)}
    bare = [name for name in sorted(plan.touched & served) if not _is_drained(_steps_of(plan, name))]
    not_so = ", ".join(bare) or "none"
    drain_s = fleet.ray.drain_s if fleet.ray else strategy.drain_s
    words = f"each drained for up to {drain_s:g} s, updated, rejoined; not so: {not_so}."
    return Finding.judged(words, ok=not bare)


def _without_a_balancer(plan: Plan) -> Finding:
    """Return the finding for hosts that are behind no balancer: they need not serve anybody by one.

    Who approves the plan reads in it what stops on each of them, one after the other.
    """
    if not plan.steps:
        return NOTHING_TO_DO
    if not plan.interruptions:
        return Finding.passed("no balancer declared; no unit that runs is stopped, and no host rebooted.")
    words = f"no balancer declared, so nothing is drained: {'; '.join(plan.interruptions)}."
    return Finding.not_applicable(words)


def _is_drained(steps: Iterable[Step]) -> bool:
    """Whether nothing but staging happens to an instance while it has work, and it gets work afterwards.

    A Ray node that has joined takes work by itself.
    """
    actions = [step.action for step in steps if not isinstance(step.action, _STAGING)]
    if not actions:
        return False
    is_last = isinstance(actions[-1], RejoinServer | VerifyNode | StopService)
    return isinstance(actions[0], DrainServer | DrainNode) and is_last


def _observed(plan: Plan) -> Finding:
    if not plan.steps:
        return NOTHING_TO_DO
    watches = [step.action for step in plan.steps if isinstance(step.action, ObserveBatch)]
    seen = {name for watch in watches if watch.observe_s > 0 for name in watch.instances}
    left = {name for name in plan.touched if plan.after.instances[name].running is not None}
    missed = sorted(left - seen)
    times = ", ".join(sorted({f"{watch.observe_s:g} s" for watch in watches})) or "not at all"
    words = f"{len(watches)} batches, observed for {times}; not observed: {', '.join(missed) or 'none'}."
    return Finding.judged(words, ok=not missed)


def _batches_go_back(plan: Plan, fleet: Fleet) -> Finding:
    if not plan.steps:
        return NOTHING_TO_DO
    stuck = [name for name in sorted(plan.touched) if not _goes_back(plan, fleet, name)]
    words = (
        f"{len(plan.touched)} instances with their recorded release; not so: {', '.join(stuck) or 'none'}."
    )
    return Finding.judged(words, ok=not stuck)


def _goes_back(plan: Plan, fleet: Fleet, name: str) -> bool:
    """Whether every change of an instance names its recorded, running release and its balancer state."""
    recorded = plan.before.instances[name]
    steps = _steps_of(plan, name)
    changes = [s.undo for s in steps if isinstance(s.action, _CHANGES)]
    home = all(
        isinstance(undo, InstanceUndo)
        and (undo.release, undo.running) == (recorded.release, recorded.running)
        for undo in changes
    )
    drains = [s.undo for s in steps if isinstance(s.action, DrainServer)]
    # a node that is added has nothing to go back to but not being there
    is_recorded = (recorded.release is not None and recorded.running is not None) or fleet.ray is not None
    has_drain = all(isinstance(undo, RestoreServer) and undo.admin == "ready" for undo in drains)
    is_drained = bool(drains) or fleet.route is None
    return is_recorded and bool(changes) and home and has_drain and is_drained
