"""Journals of deployments that went wrong in one way or another, for the tests of what is told of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from rules.entries import (
    Decided,
    DeploymentState,
    Done,
    Entry,
    Intent,
    Locked,
    Moved,
    Opened,
    Planned,
    stamped,
)
from rules.fleet import Fleet, FleetState
from rules.journal import JournalView, view
from rules.plan import Plan, Step
from rules.rollout import plan_rollout
from rules.strategy import Strategy
from rules.verdict import Outcome
from tests.rules.builders import CHANGE, fleet, state

BEGAN = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
DEPLOYMENT = "web-2-0-abc"


def opened(of: Fleet | None = None) -> Opened:
    """Return the opening entry."""
    return Opened(
        deployment=DEPLOYMENT,
        target="application-web",
        flow_run_id="run",
        host="host-a",
        fleet=of or fleet(),
        summary="application web, release 2.0",
    )


def planned(strategy: Strategy, of: Fleet | None = None, before: FleetState | None = None) -> Plan:
    """Return the plan of a deployment by `strategy`."""
    return plan_rollout(CHANGE, strategy, of or fleet(), before or state(of or fleet()))


def walked(plan: Plan, *, until: str = "") -> tuple[Entry, ...]:
    """Return intent and done of each step, up to the first whose title begins with `until`."""
    entries: list[Entry] = []
    for step in plan.steps:
        entries += _done(step)
        if until and step.title.startswith(until):
            break
    else:
        assert not until, f"no step begins with {until}: {[step.title for step in plan.steps]}"
    return tuple(entries)


def _done(step: Step) -> list[Entry]:
    if step.undo is None:
        return []
    return [Intent(number=step.number, title=step.title, undo=step.undo), Done(number=step.number)]


def moved(to: DeploymentState, reason: str = "15 % errors.", by: str = "flow") -> Moved:
    """Return a change of state."""
    return Moved(state=to, reason=reason, by=by)


def failed_watch(requests: int, errors: int, title: str = "watch green at 10 %") -> Decided:
    """Return the verdict on a side that failed."""
    return Decided(
        title=title,
        outcome=Outcome.FAIL,
        reasons=(f"{errors} errors in {requests} requests: above the failure limit 0.1",),
        canary_requests=requests,
        canary_error_ratio=errors / requests,
        stable_requests=900,
        stable_error_ratio=0.01,
    )


def ended(
    entries: Iterable[Entry],
    end: DeploymentState = "rolled_back",
    *,
    plan: Plan | None = None,
    reason: str = "",
) -> JournalView:
    """Return a journal of `entries` that ends in `end`, an entry a second."""
    back = [moved("rolling_back")] if end in {"rolled_back", "rollback_failed"} else []
    last = moved(end, reason or "15 % errors.")
    first: list[Entry] = [opened(), Locked(token="t"), *([Planned(plan=plan)] if plan else [])]
    written = [*first, *entries, *back, last]
    return view(stamped(entry, BEGAN + timedelta(seconds=n)) for n, entry in enumerate(written))
