"""Print the first file of a route, so that nginx has one before the first deployment.

    python -m tasks.nginx_route BLOCK ROUTE LIVE >/etc/nginx/sovereign/ROUTE.conf

BLOCK is the name of a Sovereign nginx block, ROUTE the application's route or name, LIVE the side that users
are on.
"""

from __future__ import annotations

import argparse
import sys

from blocks.balancer import load_route
from rules.errors import InvalidRequestError
from rules.nginx import RouteState, route_file
from rules.traffic import NginxAddress, Route, Traffic


def first_file(route: Route, live: str) -> str:
    """Return the file of a route that sends everybody to `live`, with every server in it.

    Raises:
        InvalidRequestError: its balancer is no nginx, or has no such side.
    """
    address = route.balancer
    if not isinstance(address, NginxAddress):
        raise InvalidRequestError(f"The balancer is no nginx but {address.balancer}: it has no such file.")
    if live not in address.sides:
        raise InvalidRequestError(f"It has no side {live}; it has {', '.join(address.sides)}.")
    candidate = next(side for side in address.sides if side != live)
    return route_file(address, route.key, RouteState(traffic=Traffic(live=live, candidate=candidate)))


def main() -> None:
    """Print the file that the arguments ask for."""
    arguments = argparse.ArgumentParser(prog="python -m tasks.nginx_route", description=__doc__)
    arguments.add_argument("block", help="name of a Sovereign nginx block")
    arguments.add_argument("route", help="the application's route, or its name")
    arguments.add_argument("live", help="side that users are on")
    given = arguments.parse_args()
    route = load_route(given.block, given.route)
    if route is None:
        arguments.error("the block needs a name")
    try:
        sys.stdout.write(first_file(route, given.live))
    except InvalidRequestError as error:
        arguments.error(str(error))


if __name__ == "__main__":
    main()
