"""Update a pgvector index: build beside, judge, swap names, verify; the old one is kept through the bake."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.change import IndexChange
from rules.record import DeploymentRecord
from rules.strategy import InPlace


@flow(
    name="update-index",
    flow_run_name="{change.database} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_index(change: IndexChange) -> DeploymentRecord:
    """Replace or make a vector index; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the index and the database it is in.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    return update(change, InPlace())
