"""The rows of the checklist that the fleet answers: who serves users, what a rollback returns to."""

from __future__ import annotations

from rules.finding import Finding
from rules.fleet import Fleet, FleetState
from rules.release import Deployed
from rules.rollout import serving


def fleet_findings(change: Deployed, fleet: Fleet, before: FleetState) -> dict[str, Finding]:
    """Return the findings for `instances-healthy`, `balancer-ready` and `rollback-plan`.

    Args:
        change: what is to be deployed.
        fleet: where.
        before: the fleet's state as it was just read.
    """
    names = tuple(instance.name for instance in serving(fleet, before))
    return {
        "instances-healthy": _instances_healthy(before, names),
        "balancer-ready": _balancer_ready(fleet, before, names),
        "rollback-plan": _rollback_target(change, before, names),
    }


def artefact_finding(*, found: str | None, wanted: str, where: str) -> Finding:
    """Return the finding for `release-present`: whether the release is there and is what was asked for.

    Args:
        found: the artefact's checksum as read; None: it is not there.
        wanted: the checksum of the request.
        where: the artefact's place, for people.
    """
    is_what = "missing" if found is None else found
    return Finding.judged(f"{where} is {is_what}, wanted {wanted}.", ok=found == wanted)


def _instances_healthy(before: FleetState, names: tuple[str, ...]) -> Finding:
    if not names:
        return Finding.failed("no instance serves users.")
    up = before.healthy(names)
    down = [name for name in names if name not in up]
    words = f"{len(up)} of {len(names)} answer their probe; down: {', '.join(down) or 'none'}."
    return Finding.judged(words, ok=not down)


def _balancer_ready(fleet: Fleet, before: FleetState, names: tuple[str, ...]) -> Finding:
    traffic = before.traffic
    if fleet.route is None or traffic is None:
        return Finding.not_applicable("no balancer declared.")
    out = [name for name in names if before.servers.get(name) != "ready"]
    words = f"all traffic to {traffic.live}; taken out: {', '.join(out) or 'none'}."
    return Finding.judged(words, ok=not out)


def _rollback_target(change: Deployed, before: FleetState, names: tuple[str, ...]) -> Finding:
    """What a rollback returns to must be alive: the instances that serve users now, on a known release."""
    states = {name: before.instances[name] for name in names}
    bad = sorted(name for name, state in states.items() if state.running is None or state.release is None)
    words = f"without a healthy recorded release: {', '.join(bad) or 'none'} (new: {change.release})."
    return Finding.judged(words, ok=bool(names) and not bad)
