"""Update the worker nodes of a Ray cluster: drain, update, restart, verify, one after the other."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.change import RayRelease
from rules.record import DeploymentRecord
from rules.strategy import InPlace, Rolling


@flow(
    name="update-ray-nodes",
    flow_run_name="{change.cluster} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_ray_nodes(change: RayRelease, strategy: Rolling | InPlace) -> DeploymentRecord:
    """Bring a release to the nodes, add and remove nodes; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the release, the cluster it is for, and the nodes that are to run.
        strategy: rolling, or in place for one node.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    return update(change, strategy)
