"""Take one step back: from the journal's data alone, with no Prefect run and no API."""

from __future__ import annotations

from typing import assert_never

from rules.errors import DeployError, UndoFailedError
from rules.fleet import Fleet
from rules.nixos_actions import DisarmGuard, DropRoots, RestoreChannel, RestoreSystem
from rules.traffic import Traffic
from rules.undo import (
    FleetUndo,
    RemoveRehearsal,
    RemoveRelease,
    RestoreModel,
    RestoreNode,
    RestoreRelease,
    RestoreServer,
    RestoreTraffic,
)
from tasks import balancer
from tasks.application import remove_release, restore_release, running_release
from tasks.fleet import place
from tasks.model_server import restore_model
from tasks.nixos_undo import take_system_back
from tasks.ray_node import restore_node
from tasks.settings import Settings


class TargetDeadError(DeployError):
    """The side that traffic would return to is dead, while another one answers."""

    def __init__(self, message: str, *, healthiest: str) -> None:
        self.healthiest = healthiest
        super().__init__(message)


def take_back(step: FleetUndo, fleet: Fleet, *, deployment: str, settings: Settings) -> None:
    """Bring about the state of the fleet that `step` names. Repeating it changes nothing.

    Raises:
        TargetDeadError: traffic would go to a dead side while another one is alive.
        DeployError: it did not work; the message says how far it came.
    """
    match step:
        case RestoreTraffic():
            _restore_traffic(step, fleet)
        case RemoveRehearsal():
            if fleet.route:
                balancer.remove_rehearsal(fleet.route)
        case RestoreServer():
            _restore_server(step, fleet, settings=settings)
        case RestoreRelease():
            restore_release(fleet.instance(step.instance), step, settings=settings)
        case RestoreModel():
            restore_model(fleet.instance(step.instance), fleet.serving, step, settings=settings)
        case RestoreNode():
            restore_node(fleet, fleet.instance(step.instance), step, settings=settings)
        case RemoveRelease():
            remove_release(fleet.instance(step.instance), step, deployment=deployment)
        case RestoreSystem() | RestoreChannel() | DisarmGuard() | DropRoots():
            instance = fleet.instance(step.instance)
            take_system_back(instance, step, deployment=deployment, settings=settings)
        case unknown:
            assert_never(unknown)


def hold_traffic(fleet: Fleet, healthiest: str) -> None:
    """Give all traffic to the side that answers: a canary may be the only healthy copy left."""
    if fleet.route is None:
        return
    now = balancer.read_traffic(fleet.route)
    other = next(side for side in (now.live, now.candidate) if side != healthiest)
    balancer.set_traffic(fleet.route, Traffic(live=healthiest, candidate=other))


def healthy_share(fleet: Fleet, side: str) -> float:
    """Return which share of a side's instances answers its probe, 0 to 1."""
    members = fleet.side(side)
    answering = [instance for instance in members if running_release(instance) is not None]
    return len(answering) / len(members) if members else 0.0


def _restore_traffic(step: RestoreTraffic, fleet: Fleet) -> None:
    if fleet.route is None:
        return
    now = balancer.read_traffic(fleet.route)
    if now == step.traffic:
        balancer.keep(fleet.route)
        return
    home = step.traffic.live
    shares = {side: healthy_share(fleet, side) for side in dict.fromkeys((home, *now.carrying))}
    healthiest = max(shares, key=lambda side: shares[side])
    if shares[home] == 0 and shares[healthiest] > 0:
        raise TargetDeadError(
            f"no instance of {home} answers, while {shares[healthiest]:.0%} of {healthiest} do",
            healthiest=healthiest,
        )
    balancer.set_traffic(fleet.route, step.traffic)


def _restore_server(step: RestoreServer, fleet: Fleet, *, settings: Settings) -> None:
    route, side, server = place(fleet, fleet.instance(step.instance))
    if balancer.server_admin(route, side, server) == step.admin:
        balancer.keep(route)
        return
    if step.admin == "ready" and not step.answered:
        balancer.set_admin(route, side, server, step.admin)  # its own checks keep users away, as before
    elif step.admin == "ready":
        # the balancer would send it users at once, on the strength of a check from before it was taken out
        if running_release(fleet.instance(step.instance)) is None:
            raise UndoFailedError(
                f"{step.instance} does not answer its probe and is left out of the balancer"
            )
        balancer.rejoin(route, side, server, deadline_s=settings.command_timeout_s)
    else:
        balancer.drain(route, side, server, deadline_s=step.drain_s)
