"""Who gets the traffic: the balancer's absolute state, and arithmetic on its counters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rules.frozen import AbsolutePath, BasisPoints, Count, Frozen, Name, PositiveSeconds, Ratio
from rules.hosts import HostAddress

#: A HAProxy backend or server name.
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

    socket: AbsolutePath = Field(description="the runtime API's admin socket")
    route_map: AbsolutePath = Field(description="map file: route -> live:candidate:basis points")
    server_state: AbsolutePath | None = Field(
        default=None, description="server-state-file, so that drained servers stay drained"
    )
    host: HostAddress = HostAddress()
    timeout_s: PositiveSeconds = 5.0


class Route(Frozen):
    """The entry of a balancer's map that one application's traffic follows."""

    balancer: HaproxyAddress
    key: Name


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
