"""Update a model that SGLang serves: restarted, swapped hot, or on servers that nobody uses yet."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.change import ModelRelease
from rules.record import DeploymentRecord
from rules.strategy import BlueGreen, Canary, InPlace, Rolling


@flow(
    name="update-model",
    flow_run_name="{change.model} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_model(change: ModelRelease, strategy: InPlace | BlueGreen | Canary | Rolling) -> DeploymentRecord:
    """Bring a model to its servers and prove that it is the one that answers; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the release and the model it is one of.
        strategy: in place, blue-green, canary or rolling.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    return update(change, strategy)
