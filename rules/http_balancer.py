"""The calls that bring a balancer with an HTTP API from one split to another."""

from __future__ import annotations

from pydantic import Field

from rules.frozen import Frozen
from rules.traffic import Counts, ProxyName, Traffic

_PERCENT = 100


class Switch(Frozen):
    """Make this environment the live one."""

    environment: ProxyName


class SetCanary(Frozen):
    """Send this percentage to the environment that is not live."""

    percentage: int = Field(ge=0, le=100)


class ReportedStatus(Frozen):
    """What the API says of its state; what else it says is left out before."""

    environment: ProxyName
    percentage: float = Field(ge=0, le=100)


class SideCounts(Frozen):
    """What the API says that one side has answered since it began to count."""

    requests: int = Field(ge=0)
    errors: int = Field(ge=0)
    mean_response_s: float | None = Field(default=None, ge=0)

    @property
    def counts(self) -> Counts:
        """The same without the response time."""
        return Counts(requests=self.requests, errors=self.errors)


def calls(
    now: Traffic, wanted: Traffic, *, switch_resets_canary: bool = False
) -> tuple[Switch | SetCanary, ...]:
    """Return the calls from one split to another, in their order; none where they are the same.

    The percentage goes to the side that is not live, so a switch alone would turn the split round. The canary
    is ended first: in between all users are on the side that is live `now`, which has served all of them
    before the canary began. An API whose switch does both in one act has no such moment.
    """
    share = wanted.canary_basis_points // _PERCENT
    if now.live == wanted.live:
        is_other = now.canary_basis_points != wanted.canary_basis_points
        return (SetCanary(percentage=share),) if is_other else ()
    is_split = now.canary_basis_points > 0 and not switch_resets_canary
    before = (SetCanary(percentage=0),) if is_split else ()
    after = (SetCanary(percentage=share),) if share else ()
    return (*before, Switch(environment=wanted.live), *after)


def traffic_of(status: ReportedStatus, sides: tuple[str, str]) -> Traffic:
    """Return the split that the API reports.

    Raises:
        ValueError: it names an environment that is none of `sides`, or a split that is no whole basis points.
    """
    if status.environment not in sides:
        raise ValueError(f"the live environment is {status.environment}, none of {list(sides)}")
    basis_points = round(status.percentage * _PERCENT)
    # not the product: 0.29 * 100 is a little less than 29
    if basis_points / _PERCENT != status.percentage:
        raise ValueError(f"the percentage is {status.percentage}, finer than a hundredth of a percent")
    candidate = next(side for side in sides if side != status.environment)
    return Traffic(live=status.environment, candidate=candidate, canary_basis_points=basis_points)
