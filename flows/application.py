"""Update an application: stage, switch, restart, verify, by the chosen strategy."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.change import ApplicationRelease
from rules.record import DeploymentRecord
from rules.strategy import BlueGreen, Canary, InPlace, Rolling


@flow(
    name="update-application",
    flow_run_name="{change.application} {change.release}",
    timeout_seconds=TIMEOUT_S,
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
    return update(change, strategy)
