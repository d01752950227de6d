"""NixOS hosts that are deployed to as a whole: how each is reached, built, guarded and asked."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar, Literal, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field

from blocks.balancer import load_route
from blocks.host import address_of
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, HostService, Instance, NixProfile
from rules.hosts import HostAddress
from rules.nixos import NixosHost, NixosPlaces, NixosProbe

#: Of a member, what is about the system itself.
_SYSTEM = set(NixosHost.model_fields)


class NixosMember(BaseModel):
    """One host, by the name of a Host block."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="short and unique, such as web-1")
    host: str = Field(default="", description="name of a Host block; empty: the worker's own host")
    attribute: str | None = Field(
        default=None, description="its name in a flake's nixosConfigurations; empty: the name above"
    )
    channel: str = Field(default="nixos", description="the channel that its system is built from")
    build_on: Literal["host", "worker"] = Field(
        default="host", description="where a flake is built; worker: what the host lacks is copied to it"
    )
    urls: list[str] = Field(
        default_factory=list, description="each must answer 2xx, asked by the worker, on the new system"
    )
    backend: str | None = Field(default=None, description="balancer backend: blue or green")
    server: str | None = Field(default=None, description="server name in that backend")
    guard_s: float = Field(
        default=300.0,
        description="the host takes itself back this long after the deployment was last heard there; at "
        "least activate_s and settle_s together",
    )
    activate_s: float = Field(default=240.0, description="one activation may take this long")
    settle_s: float = Field(default=60.0, description="until all services have started")
    reboot_s: float = Field(default=600.0, description="until it answers again after a reboot")
    build_s: float = Field(default=7200.0, description="a build, with all downloads")
    places: NixosPlaces = Field(
        default=NixosPlaces(), description="where things are; the defaults are NixOS's own"
    )


class SovereignNixosHosts(Block):
    """NixOS hosts that are deployed to one after the other, or side by side behind a balancer.

    It holds no secret: hosts must be taken back also when Prefect, which keeps the blocks, is down.
    """

    _block_type_name: ClassVar[str] = "Sovereign NixOS Hosts"
    _block_type_slug: ClassVar[str] = "sovereign-nixos-hosts"
    _description: ClassVar[str] = "NixOS hosts whose whole system is deployed, and the balancer before them."

    hosts: list[NixosMember] = Field(min_length=1, description="the hosts")
    balancer: str = Field(
        default="", description="name of a balancer's block (HAProxy, nginx, HTTP); empty: none"
    )
    route: str = Field(
        default="", description="key of these hosts in the balancer's route map; empty: the block's name"
    )
    smoke_script: str | None = Field(
        default=None,
        description="bash, run on the worker for each new system; INSTANCE, INSTANCE_URL (the first of its "
        "urls) and RELEASE are set; a non-zero exit fails the step",
    )

    def fleet(self, name: str) -> Fleet:
        """Return all that is needed to reach these hosts, with the blocks they name resolved.

        Raises:
            ValueError: a block it names does not exist, or a field is not what a host can take.
            InvalidRequestError: two hosts are one, or a guard would act before an activation can be over.
        """
        instances = tuple(_instance(member) for member in self.hosts)
        for instance in instances:
            _require_patience(instance.name, instance.nixos_host)
        _require_apart(instances)
        return Fleet(
            application=name,
            instances=instances,
            route=load_route(self.balancer, self.route or name),
            smoke_script=self.smoke_script,
        )


def load_nixos_hosts(name: str) -> Fleet:
    """Return the fleet that the Sovereign NixOS Hosts block of this name describes.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
        InvalidRequestError: its parts do not fit together.
    """
    return cast("SovereignNixosHosts", SovereignNixosHosts.load(name)).fleet(name)


def _instance(member: NixosMember) -> Instance:
    if any("@" in url for url in member.urls):
        # checked here, because what is refused later is repeated in the message
        raise InvalidRequestError(
            f"{member.name}: one of its urls has an @, as after a password, which journals and messages "
            f"would show. Nothing was touched. Name a URL that answers without one."
        )
    host = NixosHost.model_validate(member.model_dump(include=_SYSTEM))
    return Instance.model_validate(
        {
            **member.model_dump(include={"name", "backend", "server"}),
            "host": address_of(member.host),
            "layout": NixProfile(profile=host.places.profile),
            "service": HostService(),
            "probe": NixosProbe(current=host.places.current, urls=host.urls),
            "nixos": host,
            "start_timeout_s": host.settle_s,
        }
    )


def _require_patience(name: str, host: NixosHost) -> None:
    if host.guard_s < host.activate_s + host.settle_s:
        raise InvalidRequestError(
            f"{name} would take itself back {host.guard_s:g} s (guard_s) after the deployment was last heard "
            f"there, but one activation may take {host.activate_s:g} s (activate_s) and its services "
            f"{host.settle_s:g} s more (settle_s). Nothing was touched. Give it a guard_s of "
            f"{host.activate_s + host.settle_s:g} s or more, or shorter limits."
        )


def _require_apart(instances: tuple[Instance, ...]) -> None:
    """Refuse two names for one host: its guard, roots and generations would be both's."""
    for one, other in combinations(instances, 2):
        if _machine(one.host) == _machine(other.host) and one.layout == other.layout:
            raise InvalidRequestError(
                f"{one.name} and {other.name} are one host: {one.host.address or 'the worker itself'}, port "
                f"{one.host.port}, with the profile {one.nixos_host.places.profile}. Nothing was touched. "
                f"Name each host once."
            )


def _machine(host: HostAddress) -> tuple[str | None, int]:
    return host.address, host.port
