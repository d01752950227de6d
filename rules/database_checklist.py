"""The rows of the checklist that a change of a database answers by its plan."""

from __future__ import annotations

from rules.database_plan import ApplyMigration, BuildIndex
from rules.database_undo import RestoreSnapshot
from rules.finding import Finding
from rules.fleet import Fleet
from rules.fleet_checklist import fleet_findings
from rules.plan import Plan

_NOT_BY_BALANCER = Finding.not_applicable("a database is changed; no traffic is shifted.")


def database_findings(plan: Plan, fleet: Fleet) -> dict[str, Finding]:
    """Return the findings for `release-present`, `instances-healthy`, `balancer-ready`, `rollback-plan`.

    Args:
        plan: what is to be done: its migrations were read, and their checksum compared, for it.
        fleet: the application whose users are watched; one without instances: nobody declared one.
    """
    nobody = Finding.not_applicable("no application is declared that works with it.")
    watched = fleet_findings(plan.change, fleet, plan.before)["instances-healthy"]
    return {
        "release-present": _present(plan),
        "instances-healthy": watched if fleet.instances else nobody,
        "balancer-ready": _NOT_BY_BALANCER,
        "rollback-plan": _way_back(plan),
    }


def rehearsed_finding(plan: Plan) -> Finding:
    """Return the finding for `migrations-prepared`: without a rehearsal there would be no plan."""
    names = [s.action.migration.revision for s in plan.steps if isinstance(s.action, ApplyMigration)]
    if not names:
        return Finding.not_applicable("nothing is pending.")
    return Finding.passed(f"rehearsed on a copy, with the way back: {', '.join(names)}.")


def _present(plan: Plan) -> Finding:
    if any(isinstance(step.action, BuildIndex) for step in plan.steps):
        return Finding.not_applicable("an index is built from the table itself.")
    return Finding.passed("the migrations were read and are what was asked for, by their checksum.")


def _way_back(plan: Plan) -> Finding:
    changing = [step for step in plan.steps if step.undo is not None]
    lossy = [step.title for step in changing if isinstance(step.undo, RestoreSnapshot)]
    words = f"{len(changing)} steps change something, each with its way back"
    if lossy:
        return Finding.passed(f"{words}; through the snapshot, with a loss: {'; '.join(lossy)}.")
    return Finding.passed(f"{words}, none with a loss.")
