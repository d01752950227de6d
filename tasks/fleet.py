"""Read a whole fleet's state: what plans start from and what verification compares."""

from __future__ import annotations

from collections.abc import Iterable

from rules.fleet import Fleet, FleetState, Instance
from rules.rollout import serving
from rules.traffic import AdminState, Route
from tasks import balancer
from tasks.application import read_instance


def observe_fleet(fleet: Fleet) -> FleetState:
    """Return the state of every instance and of the balancer, as they are now.

    Raises:
        CommandError: a host cannot be asked.
        BalancerError: the balancer cannot be asked.
    """
    return FleetState(
        instances={instance.name: read_instance(instance) for instance in fleet.instances},
        traffic=balancer.read_traffic(fleet.route) if fleet.route else None,
        servers={i.name: admin_state(fleet, i) for i in fleet.instances} if fleet.route else {},
    )


def running_releases(fleets: Iterable[Fleet]) -> dict[str, tuple[str, ...]]:
    """Return for each application which releases serve its users now.

    Raises:
        CommandError, BalancerError: it cannot be asked.
    """
    found = {}
    for fleet in fleets:
        state = observe_fleet(fleet)
        names = [instance.name for instance in serving(fleet, state)]
        found[fleet.application] = tuple(sorted({state.instances[n].running or "" for n in names} - {""}))
    return found


def serving_now(fleet: Fleet) -> tuple[Instance, ...]:
    """Return the instances that get users' requests now: ready ones of each side that carries traffic.

    Without a balancer that is all of them; of a Ray cluster none, for which of them are to run is its plan's
    to say.

    Raises:
        BalancerError: the balancer cannot be asked.
    """
    if fleet.ray:
        return ()
    if fleet.route is None:
        return fleet.instances
    carrying = balancer.read_traffic(fleet.route).carrying
    members = [instance for side in carrying for instance in fleet.side(side)]
    return tuple(instance for instance in members if admin_state(fleet, instance) == "ready")


def admin_state(fleet: Fleet, instance: Instance) -> AdminState:
    """Return an instance's state in the balancer."""
    return balancer.server_admin(*place(fleet, instance))


def place(fleet: Fleet, instance: Instance) -> tuple[Route, str, str]:
    """Return where an instance stands in the balancer: the route, its side, its server.

    Raises:
        ValueError: the fleet has no balancer.
    """
    if not (fleet.route and instance.backend and instance.server):
        raise ValueError(f"{instance.name} stands behind no balancer")
    return fleet.route, instance.backend, instance.server
