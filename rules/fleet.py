"""An application's instances: where each lives, how it is started, asked and reached."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.errors import InvalidRequestError
from rules.frozen import AbsolutePath, Argv, Count, Frozen, Name, PositiveSeconds
from rules.hosts import HostAddress
from rules.nixos import NixosHost, NixosProbe
from rules.ray_cluster import RayCluster, RayNodeProbe
from rules.serving import ModelServing
from rules.traffic import AdminState, ProxyName, Route, Traffic


class ReleaseDirectory(Frozen):
    """`<root>/releases/<release>` for each release, `<root>/current` a link to the one in use."""

    layout: Literal["release_directory"] = "release_directory"
    root: AbsolutePath


class NixProfile(Frozen):
    """A Nix profile; a release is a store path that the profile is set to."""

    layout: Literal["nix_profile"] = "nix_profile"
    profile: AbsolutePath


class SystemdService(Frozen):
    """A systemd unit."""

    service: Literal["systemd"] = "systemd"
    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9:_.@\\-]+\.service$")]
    scope: Literal["system", "user"] = "system"


class CommandService(Frozen):
    """A service with commands of its own. `status` exits 0 when it runs and 3 when it is stopped."""

    service: Literal["command"] = "command"
    start: Argv
    stop: Argv
    status: Argv


class HostService(Frozen):
    """The whole host: it runs as long as it can be asked, and is neither started nor stopped by itself."""

    service: Literal["host"] = "host"


class Probe(Frozen):
    """How an instance says that it is ready, and which release it runs."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    version_key: str = Field(default="version", description="key of the JSON answer that names the release")
    ready_url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None, description="must answer 2xx as well; none: the answer itself says that it is ready"
    )
    timeout_s: PositiveSeconds = 2.0


class SmokeTest(Frozen):
    """A request that a freshly updated instance must answer before it gets traffic."""

    path: Annotated[str, Field(pattern=r"^/")]
    method: Literal["GET", "POST", "HEAD"] = "GET"
    body: str | None = None
    expected_status: Annotated[int, Field(ge=100, le=599)] = 200


class Instance(Frozen):
    """One member of a fleet."""

    name: Name
    host: HostAddress = HostAddress()
    layout: ReleaseDirectory | NixProfile
    service: SystemdService | CommandService | HostService
    probe: Probe | RayNodeProbe | NixosProbe
    nixos: NixosHost | None = Field(default=None, description="where it is a NixOS host, deployed as a whole")
    gpus: tuple[Count, ...] = Field(default=(), description="NVML indexes of those it uses; empty: all")
    backend: ProxyName | None = Field(default=None, description="balancer backend it belongs to: its side")
    server: ProxyName | None = Field(default=None, description="its server name in that backend")
    start_timeout_s: PositiveSeconds = 60.0

    @property
    def nixos_host(self) -> NixosHost:
        """What is declared about this host as a NixOS system.

        Raises:
            InvalidRequestError: it is none.
        """
        if self.nixos is None:
            raise InvalidRequestError(f"{self.name} is no NixOS host")
        return self.nixos


class Fleet(Frozen):
    """All that is needed to reach an application, in one value that holds no secret."""

    application: Name
    instances: tuple[Instance, ...]
    route: Route | None = None
    smoke_tests: tuple[SmokeTest, ...] = ()
    smoke_script: str | None = Field(
        default=None, description="bash, run with set -euo pipefail; INSTANCE_URL and RELEASE are set"
    )
    serving: ModelServing | None = Field(default=None, description="where its instances serve a model")
    ray: RayCluster | None = Field(default=None, description="where its instances are nodes of a cluster")

    @property
    def model_serving(self) -> ModelServing:
        """What is declared about serving a model.

        Raises:
            InvalidRequestError: its instances serve none.
        """
        if self.serving is None:
            raise InvalidRequestError(f"the instances of {self.application} serve no model")
        return self.serving

    @property
    def ray_cluster(self) -> RayCluster:
        """The cluster that its instances are nodes of.

        Raises:
            InvalidRequestError: they are nodes of none.
        """
        if self.ray is None:
            raise InvalidRequestError(f"the instances of {self.application} are nodes of no Ray cluster")
        return self.ray

    @model_validator(mode="after")
    def _names_are_unique_and_servers_known(self) -> Self:
        names = [instance.name for instance in self.instances]
        if len(set(names)) != len(names):
            raise ValueError(f"two instances of {self.application} have one name: {sorted(names)}")
        if self.route:
            bare = [i.name for i in self.instances if not (i.backend and i.server)]
            if bare:
                raise ValueError(f"{self.application} has a balancer, so {bare} need backend and server")
        return self

    def instance(self, name: str) -> Instance:
        """Return the instance of that name.

        Raises:
            KeyError: there is none.
        """
        for instance in self.instances:
            if instance.name == name:
                return instance
        raise KeyError(f"{self.application} has no instance {name}; it has {self.names}")

    def side(self, backend: str) -> tuple[Instance, ...]:
        """Return the instances behind `backend`, in their declared order."""
        return tuple(instance for instance in self.instances if instance.backend == backend)

    @property
    def names(self) -> tuple[str, ...]:
        """The instances' names, in their declared order."""
        return tuple(instance.name for instance in self.instances)

    @property
    def sides(self) -> tuple[str, ...]:
        """The balancer backends that instances belong to, each once."""
        return tuple(dict.fromkeys(i.backend for i in self.instances if i.backend))


#: Where a change names no application, nobody's users are watched.
NOBODY = Fleet(application="nobody", instances=())


class InstanceState(Frozen):
    """What one instance has and runs, as read from the system."""

    release: str | None = Field(description="release its link or profile points to; None: none yet")
    running: str | None = Field(description="release that answers its probe; None: nothing healthy answers")
    releases: tuple[str, ...] = Field(default=(), description="staged releases, sorted")


class FleetState(Frozen):
    """The whole observable state of a fleet: what undo restores and verification compares."""

    instances: dict[Name, InstanceState]
    traffic: Traffic | None = None
    servers: dict[Name, AdminState] = Field(default_factory=dict, description="instance -> balancer state")

    def healthy(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `names` that answer their probe."""
        return tuple(name for name in names if self.instances[name].running is not None)

    def with_health_of(self, now: FleetState, *, except_for: set[str]) -> FleetState:
        """Return this state with the health that the instances not in `except_for` have `now`.

        An instance that a deployment never touched and that fell ill by itself says nothing about it.
        """
        instances = {
            name: state
            if name in except_for
            else state.model_copy(update={"running": now.instances[name].running})
            for name, state in self.instances.items()
        }
        return self.model_copy(update={"instances": instances})

    def differences(self, expected: FleetState) -> tuple[str, ...]:
        """Say in words where this state is not the `expected` one; empty when they agree."""
        words = [
            f"{name}: {field} is {getattr(self.instances[name], field)}, not {getattr(want, field)}"
            for name, want in sorted(expected.instances.items())
            for field in ("release", "running", "releases")
            if getattr(self.instances[name], field) != getattr(want, field)
        ]
        if self.traffic != expected.traffic:
            words.append(f"traffic is {self.traffic!r}, not {expected.traffic!r}")
        words += [
            f"{name}: balancer state is {self.servers.get(name)}, not {admin}"
            for name, admin in sorted(expected.servers.items())
            if self.servers.get(name) != admin
        ]
        return tuple(words)
