"""Update NixOS hosts: build, test, verify, switch, verify, reboot where that is needed, confirm."""

from __future__ import annotations

from prefect import flow

from flows.guard import take_back_after
from flows.update import TIMEOUT_S, update
from rules.record import DeploymentRecord
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.system_change import SystemRelease


@flow(
    name="update-systems",
    flow_run_name="{change.hosts} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def update_systems(
    change: SystemRelease, strategy: InPlace | BlueGreen | Canary | Rolling
) -> DeploymentRecord:
    """Bring a new NixOS system to hosts, one after the other; on any failure take it back.

    Alone it takes the lock and keeps the journal itself, without the parent's gate and baseline. Under
    `deploy` it goes on with the deployment that the parent has opened.

    Args:
        change: the release, the hosts it is for, and where it comes from.
        strategy: in place for one host, rolling, or blue-green and canary for nodes behind a balancer.

    Raises:
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    return update(change, strategy)
