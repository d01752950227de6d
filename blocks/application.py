"""An application: its fleet of instances and the balancer before them."""

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
    NixProfile,
    Probe,
    ReleaseDirectory,
    SmokeTest,
    SystemdService,
)


class Member(BaseModel):
    """One instance, with its host by the name of a Host block."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="short and unique, such as blue-1")
    host: str = Field(default="", description="name of a Host block; empty: the worker's own host")
    layout: ReleaseDirectory | NixProfile = Field(description="where its releases are")
    service: SystemdService | CommandService = Field(description="how it is started and stopped")
    probe: Probe = Field(description="how it says that it is ready, and which release it runs")
    backend: str | None = Field(default=None, description="balancer backend: blue or green")
    server: str | None = Field(default=None, description="server name in that backend")
    start_timeout_s: float = Field(default=60.0, description="how long a start may take")


class Application(Block):
    """A fleet of instances that is deployed as one."""

    _block_type_name: ClassVar[str] = "Sovereign Application"
    _block_type_slug: ClassVar[str] = "sovereign-application"
    _description: ClassVar[str] = "Instances of an application, and the balancer before them."

    members: list[Member] = Field(min_length=1, description="the instances")
    balancer: str = Field(
        default="", description="name of a balancer's block (HAProxy, nginx, HTTP); empty: none"
    )
    route: str = Field(default="", description="name of this application's route in the balancer")
    smoke_tests: list[SmokeTest] = Field(
        default_factory=list, description="requests each new instance must answer"
    )
    smoke_script: str | None = Field(
        default=None, description="bash; INSTANCE_URL and RELEASE are set; a non-zero exit fails the step"
    )

    def fleet(self, name: str) -> Fleet:
        """Return all that is needed to reach this application, with the blocks it names resolved.

        Raises:
            ValueError: a block it names does not exist, or its parts do not fit together.
        """
        return Fleet(
            application=name,
            instances=tuple(_instance(member) for member in self.members),
            route=load_route(self.balancer, self.route or name),
            smoke_tests=tuple(self.smoke_tests),
            smoke_script=self.smoke_script,
        )


def load_fleet(application: str) -> Fleet:
    """Return the fleet that the Application block of this name describes.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
    """
    return cast("Application", Application.load(application)).fleet(application)


def _instance(member: Member) -> Instance:
    return Instance.model_validate(
        {**member.model_dump(exclude={"host"}), "host": address_of(member.host).model_dump()}
    )
