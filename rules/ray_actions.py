"""What is done to a node of a Ray cluster, beside what is done to any instance."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rules.frozen import Count, Frozen, Name, PositiveSeconds


class DrainNode(Frozen):
    """Have the node take no new tasks, and wait until it runs none: several readings in a row."""

    action: Literal["drain_node"] = "drain_node"
    instance: Name
    node_id: str
    drain_s: PositiveSeconds
    reason: str = Field(description="what Ray shows people")


class StopService(Frozen):
    """Stop the instance's service, and wait until the cluster lists its node as dead."""

    action: Literal["stop_service"] = "stop_service"
    instance: Name


class VerifyNode(Frozen):
    """Prove that the new node works: its id and label, a job pinned to it, the cluster's actors and tasks."""

    action: Literal["verify_node"] = "verify_node"
    instance: Name
    old_node_id: str | None
    actors_before: Count = Field(description="of the whole cluster that were alive or could restart")
    unsettled_before: tuple[str, ...] = Field(
        default=(), description="ids of those of them that were not alive either: nobody waits for them"
    )
    failed_tasks_before: Count = Field(description="on the old node")
    accept_lost: tuple[str, ...] = Field(
        default=(), description="names of actors and tasks whose loss a person has accepted"
    )


RayAction = DrainNode | StopService | VerifyNode
