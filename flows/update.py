"""What every component's update flow does: roll a change out and verify it, alone or under `deploy`."""

from __future__ import annotations

from flows.guard import guarded, taken_back_on_failure
from flows.rollout import OPEN, ended_with_nothing_to_do, keep_plan, opening, verify, walk
from rules.change import Change
from rules.record import DeploymentRecord, record_of
from rules.strategy import Strategy
from tasks.deployment import OpenDeployment, supersede_promoted
from tasks.planning import plan_now, renewed
from tasks.settings import Settings

#: With the wait for an approval, and the build of an index on a large table.
TIMEOUT_S = 48 * 3600


def update(change: Change, strategy: Strategy) -> DeploymentRecord:
    """Roll a change out and verify it; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    deployment = OPEN.get()
    if deployment is not None:
        with taken_back_on_failure(deployment):
            _roll_out(deployment)
        return record_of(deployment.journal.read())
    settings = Settings()
    opened = opening(change, strategy, settings)
    with guarded(opened, settings) as deployment:
        plan = plan_now(change, strategy, opened, settings)
        keep_plan(deployment, plan)
        if ended_with_nothing_to_do(deployment, plan):
            return record_of(deployment.journal.read())
        _roll_out(deployment)
        deployment.promote("Every step was done and verified.")
        supersede_promoted(deployment.opened, deployment.api, settings)
    return record_of(deployment.journal.read())


def _roll_out(deployment: OpenDeployment) -> None:
    plan = renewed(deployment.plan, deployment.opened, deployment.settings)
    if plan != deployment.plan:
        deployment.planned(plan)
    walk(deployment, plan)
    verify(deployment, plan)
