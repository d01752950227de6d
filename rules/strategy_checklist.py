"""What the strategies' checklists find, from the plan and the system it was made for."""

from __future__ import annotations

from rules.evalue import log_below, requests_to_show_below
from rules.finding import Finding
from rules.fleet import Fleet, FleetState, Instance
from rules.model_actions import TestInference
from rules.nixos import NixosProbe
from rules.nixos_actions import VerifySystem
from rules.plan import (
    Action,
    Plan,
    RehearseSwitch,
    SetTraffic,
    Step,
    TestInstance,
    WatchSide,
)
from rules.rolling_checklist import NOTHING_TO_DO, all_serve, rolling_findings
from rules.rollout import serving
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Watching
from rules.strategy_items import STRATEGY_ITEMS
from rules.traffic import Counts, Traffic
from rules.undo import RemoveRehearsal, RestoreTraffic
from rules.verdict import CanaryEvidence

__all__ = ["STRATEGY_ITEMS", "strategy_findings"]

_ALL = 10_000
_LARGEST_FIRST_STEP = 2_500
_LARGEST_FAILURE_RATIO = 0.10
#: With this many requests expected in the time that counts as silence, silence is chance once in 150 times.
_EXPECTED_BEFORE_SILENCE = 5.0


def strategy_findings(plan: Plan, fleet: Fleet, *, requests_per_s: float | None) -> dict[str, Finding]:
    """Return a finding for each of `STRATEGY_ITEMS[plan.strategy.strategy]`, by the item's id.

    Args:
        plan: what is to be done, with the state of the fleet that it was made for.
        fleet: where.
        requests_per_s: what the route has now; None: not known.
    """
    match plan.strategy:
        case InPlace():
            return {}
        case BlueGreen():
            return _blue_green(plan, fleet)
        case Canary():
            return _canary(plan, plan.strategy, fleet, requests_per_s=requests_per_s)
        case Rolling():
            return rolling_findings(plan, plan.strategy, fleet)


def _blue_green(plan: Plan, fleet: Fleet) -> dict[str, Finding]:
    before, idle = plan.before, _idle(fleet, plan.before)
    return {
        "blue-green-two-sides": _two_sides(fleet, before),
        "blue-green-idle-size": _idle_size(serving(fleet, before), idle),
        "blue-green-idle-quiet": _idle_quiet(before.traffic, idle),
        "blue-green-idle-ready": _all_ready(idle, before),
        "blue-green-own-probes": _own_probes(fleet, before),
        "blue-green-smoke-tests": _smoke_tests(plan, fleet, idle),
        "blue-green-switch-rehearsed": _rehearsed(plan),
        "blue-green-way-back": _straight_back(plan, fleet),
    }


def _canary(
    plan: Plan, strategy: Canary, fleet: Fleet, *, requests_per_s: float | None
) -> dict[str, Finding]:
    first_share = round(strategy.steps_percent[0] * 100)
    return {
        "canary-two-sides": _two_sides(fleet, plan.before),
        "canary-none-under-way": _none_under_way(plan.before.traffic),
        "canary-first-step": Finding.judged(
            f"the first step is {first_share / 100:g} % of the users.", ok=first_share <= _LARGEST_FIRST_STEP
        ),
        "canary-steps-rise": _steps_rise(plan),
        "canary-limits": _limits(strategy.watch.limits),
        "canary-traffic": _enough_traffic(strategy.watch, first_share / _ALL, requests_per_s),
        "canary-stable-healthy": all_serve(serving(fleet, plan.before), plan.before),
        "canary-switch-rehearsed": _rehearsed(plan),
        "canary-way-back": _straight_back(plan, fleet),
    }


# --- sides -----------------------------------------------------------------------------------------


def _idle(fleet: Fleet, before: FleetState) -> tuple[Instance, ...]:
    """Return the instances that the route does not send its live traffic to."""
    live = before.traffic.live if before.traffic else None
    return tuple(instance for instance in fleet.instances if instance.backend != live)


def _two_sides(fleet: Fleet, before: FleetState) -> Finding:
    live = before.traffic.live if before.traffic else None
    words = f"sides: {', '.join(fleet.sides) or 'none'}; all traffic to {live or 'no balancer'}."
    return Finding.judged(words, ok=len(fleet.sides) == 2 and live in fleet.sides)  # noqa: PLR2004 - a pair


def _idle_size(live: tuple[Instance, ...], idle: tuple[Instance, ...]) -> Finding:
    words = f"{len(idle)} instances idle, {len(live)} live."
    return Finding.judged(words, ok=len(idle) >= len(live) > 0)


def _idle_quiet(traffic: Traffic | None, idle: tuple[Instance, ...]) -> Finding:
    carrying = traffic.carrying if traffic else ()
    busy = sorted({i.backend for i in idle if i.backend in carrying})
    return Finding.judged(
        f"idle sides with traffic: {', '.join(busy) or 'none'}.", ok=bool(idle) and not busy
    )


def _all_ready(members: tuple[Instance, ...], before: FleetState) -> Finding:
    out = {i.name: before.servers.get(i.name, "unknown to the balancer") for i in members}
    out = {name: admin for name, admin in out.items() if admin != "ready"}
    words = f"not ready: {', '.join(f'{name} ({admin})' for name, admin in out.items()) or 'none'}."
    return Finding.judged(words, ok=bool(members) and not out)


def _own_probes(fleet: Fleet, before: FleetState) -> Finding:
    urls = [_asked_at(instance) for instance in fleet.instances]
    servers = [(instance.backend, instance.server) for instance in fleet.instances]
    doubled = sorted({url for url in urls if urls.count(url) > 1})
    doubled += sorted(
        {f"{backend}/{server}" for backend, server in servers if servers.count((backend, server)) > 1}
    )
    live = tuple(instance.name for instance in serving(fleet, before))
    up = before.healthy(live)
    words = f"shared: {', '.join(doubled) or 'none'}; {len(up)} of {len(live)} live ones answer their probe."
    return Finding.judged(words, ok=not doubled and len(up) == len(live) > 0)


def _asked_at(instance: Instance) -> str:
    """Return what an instance is asked at; a NixOS host without URLs is asked by commands on it."""
    if isinstance(instance.probe, NixosProbe) and not instance.probe.urls:
        return f"{instance.host.address or 'this machine'}:{instance.host.port}:{instance.probe.current}"
    return instance.probe.url


def _smoke_tests(plan: Plan, fleet: Fleet, idle: tuple[Instance, ...]) -> Finding:
    if not plan.steps:
        return NOTHING_TO_DO
    # of a NixOS host, each declared URL must answer before its system counts as verified
    asked = {instance.name: instance.nixos.urls for instance in idle if instance.nixos}
    tested = {_tested_by(step.action, asked) for step in plan.steps}
    missed = sorted({instance.name for instance in idle} - tested)
    script = " and a script" if fleet.smoke_script else ""
    prompts = fleet.serving.prompts if fleet.serving else ()
    urls = sum(map(len, asked.values()))
    requests = f"{len(prompts)} prompts" if fleet.serving else f"{len(fleet.smoke_tests) + urls} requests"
    words = f"{requests}{script} declared; not tested: {', '.join(missed) or 'none'}."
    is_declared = bool(fleet.smoke_tests or fleet.smoke_script or prompts or urls)
    return Finding.judged(words, ok=is_declared and not missed)


def _tested_by(action: Action, asked: dict[str, tuple[str, ...]]) -> str | None:
    """Return the instance that an action tests: by smoke tests, prompts, or the URLs that it is `asked`."""
    if isinstance(action, VerifySystem) and asked.get(action.instance):
        return action.instance
    return action.instance if isinstance(action, TestInstance | TestInference) else None


# --- traffic ---------------------------------------------------------------------------------------


def _switches(plan: Plan) -> list[tuple[Step, Traffic]]:
    return [(step, step.action.traffic) for step in plan.steps if isinstance(step.action, SetTraffic)]


def _rehearsed(plan: Plan) -> Finding:
    """Whether the plan begins with the rehearsal of its first and its last split, and of the way back."""
    if not plan.steps:
        return NOTHING_TO_DO
    first, switches = plan.steps[0], _switches(plan)
    if not isinstance(first.action, RehearseSwitch) or first.undo != RemoveRehearsal() or not switches:
        return Finding.failed("the plan does not begin with a rehearsal.")
    splits = first.action.splits
    wanted = {traffic for _, traffic in (switches[0], switches[-1])}
    ok = wanted <= set(splits) and splits[-1] == plan.before.traffic
    return Finding.judged(f"rehearsed: {' → '.join(_in_words(split) for split in splits)}.", ok=ok)


def _in_words(traffic: Traffic) -> str:
    share = f", {traffic.canary_basis_points / 100:g} % to {traffic.candidate}"
    return traffic.live + (share if traffic.canary_basis_points else "")


def _straight_back(plan: Plan, fleet: Fleet) -> Finding:
    if not plan.steps or plan.before.traffic is None:
        return NOTHING_TO_DO if not plan.steps else Finding.failed("no traffic was recorded.")
    home = plan.before.traffic
    detours = [s.title for s, _ in _switches(plan) if s.undo != RestoreTraffic(traffic=home)]
    disturbed = sorted(plan.touched & {instance.name for instance in fleet.side(home.live)})
    words = (
        f"{len(_switches(plan))} traffic steps, each one switch away from {home.live}; not so: "
        f"{', '.join(detours) or 'none'}; instances of {home.live} that are changed: "
        f"{', '.join(disturbed) or 'none'}."
    )
    return Finding.judged(words, ok=bool(_switches(plan)) and not detours and not disturbed)


def _none_under_way(traffic: Traffic | None) -> Finding:
    if traffic is None:
        return Finding.failed("no balancer declared.")
    words = f"{traffic.candidate} gets {traffic.canary_basis_points / 100:g} % now."
    return Finding.judged(words, ok=not traffic.canary_basis_points)


def _steps_rise(plan: Plan) -> Finding:
    if not plan.steps:
        return NOTHING_TO_DO
    shares = [traffic.canary_basis_points for _, traffic in _switches(plan)][:-1]
    watched = [step.action.share for step in plan.steps if isinstance(step.action, WatchSide)]
    words = f"{', '.join(f'{share / 100:g} %' for share in shares) or 'none'}; watched: {len(watched)}."
    rise = shares == sorted(set(shares)) and shares[-1:] == [_ALL]
    return Finding.judged(words, ok=rise and watched == shares)


def _limits(limits: CanaryLimits) -> Finding:
    """Look at the limits; a failure limit above the guide's needs a person's word."""
    words = f"passes below {limits.success_error_ratio:g}, fails above {limits.failure_error_ratio:g}"
    if limits.success_error_ratio >= limits.failure_error_ratio:
        return Finding.failed(f"{words}: there is nothing between them.")
    if limits.failure_error_ratio > _LARGEST_FAILURE_RATIO:
        return Finding.unknown(f"{words}, which is more than {_LARGEST_FAILURE_RATIO:g}: why is not said.")
    return Finding.passed(f"{words}.")


def _enough_traffic(watch: Watching, share: float, requests_per_s: float | None) -> Finding:
    limits = watch.limits
    needed = _clean_requests_needed(limits)
    if needed is None:
        return Finding.failed("no traffic can show an error ratio below 0: set success_error_ratio above it.")
    wanted = f"about {needed} clean requests at {share:.3g} of the traffic within {watch.deadline_s:g} s"
    if requests_per_s is None:
        return Finding.unknown(f"how many requests come is not known; {wanted} are needed.")
    rate = requests_per_s * share
    takes_s = max(needed / rate, limits.min_observation_s) if rate > 0 else float("inf")
    when = f"come in {takes_s:.3g} s" if rate > 0 else "never come"
    words = f"{requests_per_s:.3g} requests/s now; {wanted} are needed and {when}"
    if takes_s <= watch.deadline_s and rate * limits.no_data_after_s < _EXPECTED_BEFORE_SILENCE:
        few = f"{rate * limits.no_data_after_s:.2g} in {limits.no_data_after_s:g} s"
        return Finding.failed(f"{words}, but so few ({few}) that a pause by chance counts as no data.")
    return Finding.judged(f"{words}.", ok=takes_s <= watch.deadline_s)


def _clean_requests_needed(limits: CanaryLimits) -> int | None:
    """Return how many requests without an error pass a side; None: no number of them does."""
    log_needed = CanaryEvidence().verdict(limits, elapsed_s=0.0).below_log_e_needed
    side = Counts()
    while (log_below(side, limits.success_error_ratio) or 0.0) < log_needed:
        # an estimate by the best single bet, so a little low: asked again from there
        more = requests_to_show_below(side, limits.success_error_ratio, log_needed=log_needed)
        if more is None:
            return None
        side += Counts(requests=more)
    return side.requests
