"""A model, the SGLang servers that serve it, and the balancer before them."""

from __future__ import annotations

from typing import ClassVar, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field

from blocks.balancer import load_route
from blocks.host import address_of
from rules.fleet import (
    CommandService,
    Fleet,
    Instance,
    Probe,
    ReleaseDirectory,
    SmokeTest,
    SystemdService,
)
from rules.serving import DeclaredPrompt, FlagValue, ModelServing, ServingLimits, refuse_flags


class ModelServer(BaseModel):
    """One SGLang server, with its host by the name of a Host block."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="short and unique, such as blue-1")
    host: str = Field(default="", description="name of a Host block; empty: the worker's own host")
    root: str = Field(
        description="directory of its releases; its service starts with --config ROOT/current/server.yaml"
    )
    url: str = Field(description="where it answers the worker, such as http://127.0.0.1:30000")
    service: SystemdService | CommandService = Field(description="how it is started and stopped")
    gpus: list[int] = Field(default_factory=list, description="NVML indexes of its GPUs; none: all")
    backend: str | None = Field(default=None, description="balancer backend: blue or green")
    server: str | None = Field(default=None, description="server name in that backend")
    start_timeout_s: float = Field(default=600.0, description="how long a start may take, with loading")


class SovereignModel(Block):
    """A model and the servers that serve it, deployed as one.

    It holds no key: a model must be taken back also when Prefect, which keeps the blocks, is down. The key
    for the servers' admin routes is in `admin_key_file` on the worker's host.
    """

    _block_type_name: ClassVar[str] = "Sovereign Model"
    _block_type_slug: ClassVar[str] = "sovereign-model"
    _description: ClassVar[str] = "SGLang servers of one model, and the balancer before them."

    servers: list[ModelServer] = Field(min_length=1, description="the servers")
    balancer: str = Field(
        default="", description="name of a balancer's block (HAProxy, nginx, HTTP); empty: none"
    )
    route: str = Field(default="", description="name of this model's route in the balancer")
    flags: dict[str, FlagValue] = Field(
        default_factory=dict, description="the server's flags of every release, such as context-length"
    )
    prompts: list[DeclaredPrompt] = Field(
        default_factory=list, description="that every release must answer, with what must be true of it"
    )
    limits: ServingLimits = Field(
        default_factory=ServingLimits, description="what a new release may cost beside the one before"
    )
    admin_key_file: str = Field(
        default="", description="on the worker's host, for its owner alone; empty: the servers ask for no key"
    )
    smoke_tests: list[SmokeTest] = Field(
        default_factory=list, description="further requests each new server must answer"
    )

    def fleet(self, name: str) -> Fleet:
        """Return all that is needed to reach these servers, with the blocks they name resolved.

        Raises:
            ValueError: a block it names does not exist, or its parts do not fit together.
            InvalidRequestError: a flag is a secret, or ours to set: the journal keeps what is returned here.
        """
        refuse_flags(self.flags)
        return Fleet(
            application=name,
            instances=tuple(_instance(server) for server in self.servers),
            route=load_route(self.balancer, self.route or name),
            smoke_tests=tuple(self.smoke_tests),
            serving=ModelServing(
                flags=self.flags,
                prompts=tuple(self.prompts),
                limits=self.limits,
                admin_key_file=self.admin_key_file or None,
            ),
        )


def load_model(name: str) -> Fleet:
    """Return the fleet that the Sovereign Model block of this name describes.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
    """
    return cast("SovereignModel", SovereignModel.load(name)).fleet(name)


def _instance(server: ModelServer) -> Instance:
    url = server.url.rstrip("/")
    return Instance.model_validate(
        {
            **server.model_dump(exclude={"host", "root", "url"}),
            "host": address_of(server.host).model_dump(),
            "layout": ReleaseDirectory(root=server.root),
            "probe": Probe(
                url=f"{url}/model_info",
                version_key="weight_version",
                ready_url=f"{url}/ready",
                timeout_s=5.0,
            ),
        }
    )
