"""Deploy a change, and always end in a known good state."""

from __future__ import annotations

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from blocks.application import load_fleet
from flows.application import update_application
from flows.guard import guarded, take_back_after
from flows.rollout import OPEN, ended_with_nothing_to_do, keep_plan, opening, plan_now
from rules.baseline import Baseline, compare
from rules.change import ApplicationRelease
from rules.errors import GateBlockedError, StepFailedError
from rules.fleet import Fleet
from rules.frozen import slug
from rules.plan import Plan
from rules.record import DeploymentRecord, plan_page, record_of
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from tasks.baseline import measure_baseline
from tasks.deployment import OpenDeployment, supersede_promoted
from tasks.gate import run_checklist
from tasks.report import publish_checklist, publish_comparison
from tasks.settings import Settings

_TIMEOUT_S = 6 * 3600
checklist = task(name="checklist", cache_policy=NO_CACHE)(run_checklist)
baseline = task(name="baseline", cache_policy=NO_CACHE)(measure_baseline)


@flow(
    name="deploy",
    flow_run_name="{change.application} {change.release}",
    timeout_seconds=_TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def deploy(
    change: ApplicationRelease,
    strategy: InPlace | BlueGreen | Canary | Rolling,
    dry_run: bool = False,  # noqa: FBT001, FBT002 - a field of the run form
) -> DeploymentRecord | Plan:
    """Take the lock, plan, gate, measure, roll out, verify, record; on any failure take it all back.

    Args:
        change: what to deploy.
        strategy: in place, blue-green, canary or rolling.
        dry_run: only show the plan: steps, order, way back of each, and what users will notice.

    Raises:
        InvalidRequestError: the request makes no sense for this system; nothing was changed.
        GateBlockedError: the checklist does not allow it; nothing was changed.
        LockHeldError: another deployment has the target; nothing was changed.
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    settings, fleet = Settings(), load_fleet(change.application)
    if dry_run:
        return _show(plan_now(change, strategy, fleet), fleet)
    with guarded(opening(change, strategy, fleet, settings), settings) as deployment:
        plan = plan_now(change, strategy, fleet)
        keep_plan(deployment, plan)
        _gate(deployment, plan)
        if ended_with_nothing_to_do(deployment, plan):
            return record_of(deployment.journal.read())
        before = baseline(fleet, window_s=settings.baseline_s)
        _roll_out(deployment, plan)
        _compare(deployment, before, window_s=settings.baseline_s)
        deployment.promote("Every step was done, watched and verified.")
        supersede_promoted(deployment.opened, deployment.api, settings)
    return record_of(deployment.journal.read())


def _show(plan: Plan, fleet: Fleet) -> Plan:
    report = run_checklist(plan.change, fleet, plan)
    gate = report.in_words or "The gate is open."
    page = f"{plan_page(plan)}\n\n{gate}"
    create_markdown_artifact(
        page, key=f"dry-run-{slug(plan.change.target)}", description="What would be done"
    )
    get_run_logger().info("%s", page)
    return plan


def _gate(deployment: OpenDeployment, plan: Plan) -> None:
    report = checklist(plan.change, deployment.fleet, plan)
    publish_checklist(deployment, report)
    if report.blocking:
        raise GateBlockedError(
            f"The checklist blocks this deployment, nothing was changed. {report.in_words}"
        )


def _roll_out(deployment: OpenDeployment, plan: Plan) -> None:
    token = OPEN.set(deployment)
    try:
        update_application(plan.change, plan.strategy)
    finally:
        OPEN.reset(token)


def _compare(deployment: OpenDeployment, before: Baseline, *, window_s: float) -> None:
    """Compare with the baseline; an error ratio that got worse takes the change back."""
    comparisons = compare(before, baseline(deployment.fleet, window_s=window_s))
    publish_comparison(deployment, comparisons)
    worse = [c for c in comparisons if c.result == "worse" and c.name == "error_ratio"]
    if worse:
        raise StepFailedError("; ".join(f"{c.name}: {c.change}" for c in worse))
