"""The gate before a deployment: what was checked, with which evidence, and whether it blocks."""

from __future__ import annotations

from enum import StrEnum

from rules.change import Change
from rules.fleet import Fleet, FleetState
from rules.frozen import Frozen
from rules.rollout import serving


class Result(StrEnum):
    """How a check came out. Unknown is not passed."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Check(Frozen):
    """One row of the checklist."""

    id: str
    title: str
    result: Result
    evidence: str
    remedy: str = ""


class ChecklistReport(Frozen):
    """All rows of one deployment."""

    checks: tuple[Check, ...]

    @property
    def blocking(self) -> tuple[Check, ...]:
        """The rows that do not allow the deployment."""
        return tuple(check for check in self.checks if check.result is not Result.PASSED)

    @property
    def in_words(self) -> str:
        """What is missing, and how to supply it."""
        return " ".join(f"{c.title}: {c.result}, {c.evidence}. {c.remedy}" for c in self.blocking)


def judge_fleet(change: Change, fleet: Fleet, before: FleetState) -> tuple[Check, ...]:
    """Return the rows that the fleet's state answers: who serves users, and what a rollback returns to."""
    users = serving(fleet, before)
    names = tuple(instance.name for instance in users)
    up = before.healthy(names)
    return (
        _check(
            "instances-healthy",
            "Instances that serve users are healthy",
            ok=len(up) == len(names),
            evidence=f"{len(up)} of {len(names)} answer their probe",
            remedy=f"Bring {', '.join(sorted(set(names) - set(up)))} up first.",
        ),
        _balancer_ready(fleet, before, names=names),
        _rollback_target(change, fleet, before),
    )


def _balancer_ready(fleet: Fleet, before: FleetState, *, names: tuple[str, ...]) -> Check:
    out = [name for name in names if fleet.route and before.servers.get(name) != "ready"]
    traffic = before.traffic
    words = f"all traffic to {traffic.live}" if traffic else "no balancer declared"
    return _check(
        "balancer-ready",
        "Balancer answers and sends traffic to the instances",
        ok=not out,
        evidence=f"{words}; taken out: {', '.join(out) or 'none'}",
        remedy="Bring the instances that are taken out back to ready.",
    )


def _rollback_target(change: Change, fleet: Fleet, before: FleetState) -> Check:
    """What a rollback returns to must be alive: the instances that serve users now, on a known release."""
    back_to = {instance.name for instance in serving(fleet, before)}
    bad = sorted(
        name
        for name in back_to
        if before.instances[name].running is None or before.instances[name].release is None
    )
    return _check(
        "rollback-target",
        "Rollback target is present and healthy",
        ok=not bad,
        evidence=f"without a healthy recorded release: {', '.join(bad) or 'none'} (new: {change.release})",
        remedy="A first installation has nothing to return to: bring a release up by hand once.",
    )


def artefact_check(*, found: str | None, wanted: str, where: str) -> Check:
    """Return the row that says whether the release is there and is what was asked for."""
    return _check(
        "release-present",
        "Release is present and its checksum is right",
        ok=found == wanted,
        evidence=f"{where} is {'missing' if found is None else found}, wanted {wanted}",
        remedy="Put the archive there, or correct the path or sha256 of the request.",
    )


def _check(name: str, title: str, *, ok: bool, evidence: str, remedy: str) -> Check:
    result = Result.PASSED if ok else Result.FAILED
    return Check(id=name, title=title, result=result, evidence=evidence, remedy="" if ok else remedy)
