"""The rows of the checklist that a change of IPFS content answers by its plan."""

from __future__ import annotations

from rules.content_actions import SetReferences, VerifyContent
from rules.finding import Finding
from rules.fleet import Fleet
from rules.fleet_checklist import fleet_findings
from rules.plan import Plan

_NOT_BY_BALANCER = Finding.not_applicable("content is changed; no traffic is shifted.")


def content_findings(plan: Plan, fleet: Fleet) -> dict[str, Finding]:
    """Return the findings for `release-present`, `instances-healthy`, `balancer-ready`, `rollback-plan`.

    Args:
        plan: what is to be done: its files were read, and their checksum compared, for it.
        fleet: the application whose users are watched; one without instances: nobody declared one.
    """
    nobody = Finding.not_applicable("no application is declared that works with it.")
    watched = fleet_findings(plan.change, fleet, plan.before)["instances-healthy"]
    return {
        "release-present": Finding.passed(
            "the files were read and are what was asked for, by their checksum."
        ),
        "instances-healthy": watched if fleet.instances else nobody,
        "balancer-ready": _NOT_BY_BALANCER,
        "rollback-plan": _way_back(plan),
    }


def _way_back(plan: Plan) -> Finding:
    """References go back in one transaction, to content that stays pinned until nobody may return to it."""
    rows = [c for step in plan.steps if isinstance(step.action, SetReferences) for c in step.action.changes]
    verified = [step.number for step in plan.steps if isinstance(step.action, VerifyContent)]
    set_at = [step.number for step in plan.steps if isinstance(step.action, SetReferences)]
    bare = [step.title for step in plan.steps if isinstance(step.action, SetReferences) and step.undo is None]
    words = (
        f"{len(rows)} rows keep their old value for the way back; without one: {', '.join(bare) or 'none'}."
    )
    is_after = all(any(v < number for v in verified) for number in set_at)
    return Finding.judged(words, ok=not bare and is_after)
