"""A Ray cluster: its head, which is only asked, and its worker nodes, which are deployed to."""

from __future__ import annotations

from typing import ClassVar, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field

from blocks.host import address_of
from rules.fleet import CommandService, Fleet, Instance, ReleaseDirectory, SystemdService
from rules.ray_cluster import RayCluster, RayNodeProbe


class RayWorker(BaseModel):
    """One worker node, with its host by the name of a Host block."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="short and unique: the node's label `host`, and a resource of this name")
    host: str = Field(default="", description="name of a Host block; empty: the worker's own host")
    root: str = Field(
        description="directory of its releases; its service takes --labels-file ROOT/current/labels.yaml"
    )
    service: SystemdService | CommandService = Field(
        description="how it is started and stopped: this node's processes and no other's"
    )
    start_timeout_s: float = Field(default=60.0, description="how long joining the cluster may take")


class SovereignRayCluster(Block):
    """A Ray cluster whose worker nodes are deployed to, one after the other.

    It holds no token: nodes must be taken back also when Prefect, which keeps the blocks, is down.
    """

    _block_type_name: ClassVar[str] = "Sovereign Ray Cluster"
    _block_type_slug: ClassVar[str] = "sovereign-ray-cluster"
    _description: ClassVar[str] = "The worker nodes of a Ray cluster, and the head that is asked about them."

    dashboard: str = Field(description="where the head's dashboard answers, such as http://head:8265")
    gcs: str = Field(description="host:port of the head's control store, as the nodes reach it")
    nodes: list[RayWorker] = Field(
        min_length=1, description="all that may run; some may stand ready to be added"
    )
    program: str = Field(default="ray", description="the ray program on every node's host")
    token_file: str = Field(
        default="", description="on the worker's host, for its owner alone; empty: no token is asked"
    )
    drain_s: float = Field(default=300.0, description="seconds that running tasks are waited for")
    canary: str = Field(
        default="", description="entrypoint of a job that must succeed on each new node; empty: a minimal one"
    )
    canary_timeout_s: float = Field(default=120.0, description="seconds that this job may take")

    def fleet(self, name: str) -> Fleet:
        """Return all that is needed to reach this cluster, with the blocks it names resolved.

        Raises:
            ValueError: a block it names does not exist, or a field is not what Ray can take.
        """
        fields = self.model_dump(
            include={"dashboard", "gcs", "program", "drain_s", "canary", "canary_timeout_s"}
        )
        cluster = RayCluster(name=name, **fields, token_file=self.token_file or None)
        instances = tuple(_instance(worker, cluster) for worker in self.nodes)
        return Fleet(application=name, instances=instances, ray=cluster)


def load_ray_cluster(name: str) -> Fleet:
    """Return the fleet that the Sovereign Ray Cluster block of this name describes.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
    """
    return cast("SovereignRayCluster", SovereignRayCluster.load(name)).fleet(name)


def _instance(worker: RayWorker, cluster: RayCluster) -> Instance:
    return Instance.model_validate(
        {
            **worker.model_dump(exclude={"host", "root"}),
            "host": address_of(worker.host).model_dump(),
            "layout": ReleaseDirectory(root=worker.root),
            "probe": RayNodeProbe(
                dashboard=cluster.dashboard, node=worker.name, token_file=cluster.token_file
            ),
        }
    )
