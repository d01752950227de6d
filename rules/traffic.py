"""Who gets the traffic: the balancer's absolute state, and arithmetic on its counters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rules.frozen import (
    AbsolutePath,
    Argv,
    BasisPoints,
    Count,
    Frozen,
    Name,
    PositiveSeconds,
    Ratio,
    Seconds,
)
from rules.hosts import HostAddress

#: The name of a side or of a server: HAProxy's backends and servers, or an API's environments.
ProxyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
AdminState = Literal["ready", "drain", "maint"]


class Traffic(Frozen):
    """One route's split: `canary_basis_points` of 10,000 requests go to `candidate`, the rest to `live`."""

    live: ProxyName
    candidate: ProxyName
    canary_basis_points: BasisPoints = 0

    @property
    def carrying(self) -> tuple[str, ...]:
        """The sides that get requests now."""
        shares = {self.live: 10_000 - self.canary_basis_points, self.candidate: self.canary_basis_points}
        return tuple(side for side, share in shares.items() if share > 0)


class HaproxyAddress(Frozen):
    """Where a HAProxy is driven, and where its state is kept over its restart."""

    balancer: Literal["haproxy"] = "haproxy"
    socket: AbsolutePath = Field(description="the runtime API's admin socket")
    route_map: AbsolutePath = Field(description="map file: route -> live:candidate:basis points")
    server_state: AbsolutePath | None = Field(
        default=None, description="server-state-file, so that drained servers stay drained"
    )
    host: HostAddress = HostAddress()
    timeout_s: PositiveSeconds = 5.0


#: What nginx takes as a server of an upstream: a host and a port, or a Unix socket.
ServerAddress = Annotated[str, Field(pattern=r"^(unix:/[^\s;{}\"']+|[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5})$")]
#: One directive's words, as nginx's configuration has them: nothing that would end it or begin another.
NginxWords = Annotated[str, Field(pattern=r"^[^;{}\n\"'#\\]*$")]


class NginxAddress(Frozen):
    """An upstream group of an nginx: its two sides, the directory of our files, how it is told to read them.

    nginx includes `directory/*.conf` in its `http` block. Each route is one file there, written as a whole.
    """

    balancer: Literal["nginx"] = "nginx"
    directory: AbsolutePath = Field(description="nginx includes DIRECTORY/*.conf in its http block")
    sides: dict[ProxyName, dict[ProxyName, ServerAddress]] = Field(
        description="side -> server -> address, such as 127.0.0.1:8001"
    )
    status_port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        description="port of 127.0.0.1 where nginx says which split it applies"
    )
    # with what is added to it, nginx's `variables_hash_bucket_size` of 64 takes no longer one
    upstream: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")] = Field(
        default="emily_active", description="upstream of the live side; $NAME is the side of one request"
    )
    user_cookie: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")] = Field(
        default="uid", description="cookie that keeps a user on one side while the share grows"
    )
    access_log: AbsolutePath | None = Field(
        default=None, description="log in our format, from which answers are counted; none: nobody counts"
    )
    server_parameters: NginxWords = Field(default="", description="of every server, such as max_fails=1")
    upstream_directives: tuple[NginxWords, ...] = Field(
        default=(), description="of every upstream, such as keepalive 32"
    )
    test: Argv = ("nginx", "-t")
    reload: Argv = ("nginx", "-s", "reload")
    host: HostAddress = HostAddress()
    timeout_s: PositiveSeconds = Field(default=15.0, description="until a configuration is in force")
    settle_s: Seconds = Field(
        default=5.0, description="how long a change waits for requests of before to end where they are"
    )

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        if len(self.sides) != 2 or not all(self.sides.values()):  # noqa: PLR2004 - live and candidate
            raise ValueError(f"two sides with a server each are needed, not {self.sides}")
        return self


class HttpBalancerAddress(Frozen):
    """A balancer with an HTTP API of its own: `POST /switch`, `POST /canary`, and its state by GET.

    It knows which environment is live and a whole percentage that goes to the other one, nothing of servers.
    """

    balancer: Literal["http_api"] = "http_api"
    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")]
    sides: tuple[ProxyName, ProxyName] = Field(
        default=("blue", "green"), description="the two environments, by the names that the API has for them"
    )
    token_file: AbsolutePath | None = Field(
        default=None, description="bearer token, on the worker's host, for its owner alone"
    )
    status_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/status"
    switch_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/switch"
    canary_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/canary"
    counts_path: Annotated[str, Field(pattern=r"^/\S*$")] | None = Field(
        default=None, description="answers of each side since it began; none: nobody counts"
    )
    switch_resets_canary: bool = Field(
        default=False, description="whether a switch also sets the percentage to 0, in one act"
    )
    timeout_s: PositiveSeconds = 5.0

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        if len(set(self.sides)) != len(self.sides):
            raise ValueError(f"the two environments need two names, not {self.sides}")
        return self


#: Plain, with a default in each literal: journals written before there were several have no `balancer`.
Balancer = HaproxyAddress | NginxAddress | HttpBalancerAddress


class Route(Frozen):
    """The way of one application's traffic through a balancer.

    `key` names it there: HAProxy's map entry, nginx's file. An HTTP API has one way only.
    """

    balancer: Balancer
    key: Name

    @property
    def drains(self) -> bool:
        """Whether single servers can be taken out and put back."""
        return not isinstance(self.balancer, HttpBalancerAddress)

    @property
    def counts(self) -> bool:
        """Whether it tells how many requests a side has answered, and how many of them with an error."""
        match self.balancer:
            case HaproxyAddress():
                return True
            case NginxAddress(access_log=log):
                return log is not None
            case HttpBalancerAddress(counts_path=path):
                return path is not None

    @property
    def finest_basis_points(self) -> int:
        """The smallest step of a split that it can make."""
        return 100 if isinstance(self.balancer, HttpBalancerAddress) else 1


class Counts(Frozen):
    """Answers of one side over some time: how many, and how many of them were errors."""

    requests: Count = 0
    errors: Count = 0

    def __init__(self, requests: int = 0, errors: int = 0, **unknown: object) -> None:
        # also by position: `Counts(20, 1)` is 20 requests, 1 of them an error
        fields: dict[str, Any] = {"requests": requests, "errors": errors, **unknown}
        super().__init__(**fields)

    @property
    def error_ratio(self) -> Ratio | None:
        """Errors per request; None without requests, which is never the same as 0."""
        return self.errors / self.requests if self.requests else None

    def __add__(self, other: Counts) -> Counts:
        return Counts(requests=self.requests + other.requests, errors=self.errors + other.errors)

    def since(self, earlier: Counts) -> Counts:
        """Return what was counted after `earlier`; a counter that went down was restarted from zero."""
        if self.requests < earlier.requests or self.errors < earlier.errors:
            return self
        return Counts(requests=self.requests - earlier.requests, errors=self.errors - earlier.errors)
