"""Update an application: stage, switch, restart, verify, by the chosen strategy."""

from __future__ import annotations

from prefect import flow

from blocks.application import load_fleet
from flows.guard import guarded, take_back_after, taken_back_on_failure
from flows.rollout import OPEN, ended_with_nothing_to_do, keep_plan, opening, plan_now, verify, walk
from rules.change import ApplicationRelease
from rules.record import DeploymentRecord, record_of
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from tasks.deployment import OpenDeployment, supersede_promoted
from tasks.settings import Settings

_TIMEOUT_S = 6 * 3600


@flow(
    name="update-application",
    flow_run_name="{change.application} {change.release}",
    timeout_seconds=_TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_application(
    change: ApplicationRelease, strategy: InPlace | BlueGreen | Canary | Rolling
) -> DeploymentRecord:
    """Roll a release out and verify it; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the release and the application it is for.
        strategy: in place, blue-green, canary or rolling.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    deployment = OPEN.get()
    if deployment is not None:
        with taken_back_on_failure(deployment):
            _roll_out(deployment)
        return record_of(deployment.journal.read())
    settings, fleet = Settings(), load_fleet(change.application)
    with guarded(opening(change, strategy, fleet, settings), settings) as deployment:
        plan = plan_now(change, strategy, fleet)
        keep_plan(deployment, plan)
        if ended_with_nothing_to_do(deployment, plan):
            return record_of(deployment.journal.read())
        _roll_out(deployment)
        deployment.promote("Every step was done and verified.")
        supersede_promoted(deployment.opened, deployment.api, settings)
    return record_of(deployment.journal.read())


def _roll_out(deployment: OpenDeployment) -> None:
    plan = deployment.plan
    walk(deployment, plan)
    verify(deployment, plan)
