"""What a balancer cannot do is refused when the plan is made, not when half of it is done."""

from __future__ import annotations

from rules.errors import InvalidRequestError
from rules.plan import Action, DrainServer, RejoinServer, SetTraffic, WatchSide
from rules.traffic import Route, Traffic


def refuse_unfit(action: Action, route: Route) -> None:
    """Refuse an action that this route's balancer cannot do.

    Raises:
        InvalidRequestError: it cannot; says why, and what would work.
    """
    match action:
        case DrainServer(instance=name) | RejoinServer(instance=name) if not route.drains:
            raise InvalidRequestError(
                f"{name} would have to be taken out of the balancer, which knows whole environments only: "
                "use blue_green or canary. Nothing was touched."
            )
        case WatchSide(side=side) if not route.counts:
            raise InvalidRequestError(
                f"{side} would have to be watched, but the balancer does not count what its sides answer, "
                f"and no data is never a pass. {_HOW[route.balancer.balancer]} Nothing was touched."
            )
        case SetTraffic(traffic=traffic):
            _refuse_finer(traffic, route)
        case _:
            pass


_HOW = {
    "haproxy": "",
    "nginx": "Declare access_log in its block, or use rolling, which is judged by the instances' probes.",
    "http_api": "Declare counts_path in its block, or use in_place.",
}


def _refuse_finer(traffic: Traffic, route: Route) -> None:
    finest = route.finest_basis_points
    if traffic.canary_basis_points % finest:
        raise InvalidRequestError(
            f"{traffic.canary_basis_points / 100:g} % cannot be sent to {traffic.candidate}: the balancer "
            f"takes steps of {finest / 100:g} %. Choose other steps_percent. Nothing was touched."
        )
