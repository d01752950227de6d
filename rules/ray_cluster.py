"""A Ray cluster: how it is asked, and what is known of its nodes, actors and tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rules.frozen import AbsolutePath, Count, Frozen, Name, PositiveSeconds

#: Of the head's dashboard; without a user, whose password would stand in Prefect and in messages.
DashboardUrl = Annotated[str, Field(pattern=r"^https?://[^/\s@]+/?$")]
#: host:port of the head's control store.
GcsAddress = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}$")]


class RayCluster(Frozen):
    """Where a cluster's head is asked. It holds no secret: the token is in a file on the worker's host."""

    name: Name = Field(description="of its Sovereign Ray Cluster block")
    dashboard: DashboardUrl = "http://127.0.0.1:8265"
    gcs: GcsAddress = "127.0.0.1:6379"
    token_file: AbsolutePath | None = Field(default=None, description="for RAY_AUTH_MODE=token")
    program: str = Field(default="ray", description="the ray program on every node's host")
    drain_s: PositiveSeconds = Field(default=300.0, description="running tasks are waited for this long")
    canary: str = Field(
        default="",
        description="entrypoint of a job that is pinned to each new node and must succeed; RELEASE and "
        "RELEASE_DIR are set in its environment. Empty: a job that only says where it runs",
    )
    canary_timeout_s: PositiveSeconds = 120.0


class RayNodeProbe(Frozen):
    """A node is ready when its cluster lists it alive; its label `release` says what it runs."""

    dashboard: DashboardUrl
    node: Name = Field(description="its label `host`")
    token_file: AbsolutePath | None = None
    timeout_s: PositiveSeconds = 5.0

    @property
    def url(self) -> str:
        """Where the cluster lists its nodes."""
        return f"{self.dashboard.rstrip('/')}/api/v0/nodes"


class RayNode(Frozen):
    """One node as the cluster lists it."""

    node_id: str
    host: str = Field(description="label `host`; empty: none")
    release: str = Field(description="label `release`; empty: none")
    is_alive: bool
    is_head: bool = False
    ip: str = ""
    words: str = Field(default="", description="why it is dead or draining, by Ray")


class RayActor(Frozen):
    """An actor that lives on a node."""

    actor_id: str
    name: str
    node_id: str
    state: str
    max_restarts: int | None = Field(default=None, description="-1: without end; None: Ray does not say")
    restarts: Count = 0

    @property
    def is_last_life(self) -> bool:
        """Whether Ray will not start it again when its node is stopped; not when Ray does not say."""
        return self.max_restarts is not None and 0 <= self.max_restarts <= self.restarts


class RayTask(Frozen):
    """A task that runs on a node."""

    task_id: str
    name: str
    node_id: str
    max_retries: int | None = Field(default=None, description="None: Ray does not say")
