"""The checklist's rows for content: they pass on a sound plan, and fail on what each is there for."""

from __future__ import annotations

import pytest

from rules.content_actions import SetReferences, VerifyContent
from rules.content_checklist import content_findings
from rules.content_plan import plan_content
from rules.finding import Result
from rules.fleet import NOBODY
from rules.plan import Plan
from tests.rules import builders
from tests.rules.contents import change, content, situation, watched

FLEET = builders.fleet()


def planned(**more) -> Plan:
    return plan_content(change(), content(), watched(), situation(**more))


def results(plan: Plan, fleet=FLEET) -> dict[str, Result]:
    return {row: finding.result for row, finding in content_findings(plan, fleet).items()}


def test_a_sound_plan_passes_and_says_what_it_rests_upon() -> None:
    assert results(planned()) == {
        "release-present": Result.PASSED,
        "instances-healthy": Result.PASSED,
        "balancer-ready": Result.NOT_APPLICABLE,
        "rollback-plan": Result.PASSED,
    }
    words = content_findings(planned(), FLEET)["rollback-plan"].evidence
    assert words.startswith("2 rows keep their old value")


def test_users_that_are_badly_off_before_block_it_and_where_nobody_is_watched_that_is_said() -> None:
    ill = watched().instances["blue-1"].model_copy(update={"running": None})
    plan = planned()
    before = plan.before.model_copy(update={"instances": {**plan.before.instances, "blue-1": ill}})
    assert results(plan.model_copy(update={"before": before}))["instances-healthy"] is Result.FAILED
    assert results(plan, NOBODY)["instances-healthy"] is Result.NOT_APPLICABLE


def without_undo(plan: Plan) -> Plan:
    steps = tuple(
        step.model_copy(update={"undo": None}) if isinstance(step.action, SetReferences) else step
        for step in plan.steps
    )
    return plan.model_copy(update={"steps": steps})


def unverified(plan: Plan) -> Plan:
    steps = tuple(step for step in plan.steps if not isinstance(step.action, VerifyContent))
    return plan.model_copy(update={"steps": steps})


def verified_too_late(plan: Plan) -> Plan:
    last = len(plan.steps)
    steps = tuple(
        step.model_copy(update={"number": last}) if isinstance(step.action, VerifyContent) else step
        for step in plan.steps
    )
    return plan.model_copy(update={"steps": steps})


@pytest.mark.parametrize("broken", [without_undo, unverified, verified_too_late])
def test_rows_without_a_way_back_or_set_before_the_proof_are_no_rollback_plan(broken):
    assert results(broken(planned()))["rollback-plan"] is Result.FAILED
