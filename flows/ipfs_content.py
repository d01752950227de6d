"""Update content in IPFS: add, pin, verify, refer to it; old pins are kept through the bake."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.content_change import ContentRelease
from rules.record import DeploymentRecord
from rules.strategy import InPlace


@flow(
    name="update-content",
    flow_run_name="{change.content} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_content(change: ContentRelease) -> DeploymentRecord:
    """Add content, pin and verify it, and have rows refer to it; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the content, and the rows that are to refer to it.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    return update(change, InPlace())
