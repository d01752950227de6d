"""Each step back, on a real fleet behind HAProxy: twice is once, and never onto a dead side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.application import FIRST_RELEASE, LabApplication
from rules.errors import DeployError, UndoFailedError
from rules.traffic import Traffic
from rules.undo import RemoveRelease, RestoreRelease, RestoreServer, RestoreTraffic
from tasks import haproxy
from tasks.application import restart_service, switch_release, wait_until_ready
from tasks.settings import Settings
from tasks.undo import TargetDeadError, healthy_share, hold_traffic, take_back
from tests.tasks.updating import DEPLOYMENT, NEXT_RELEASE, pid, stage

SETTINGS = Settings(command_timeout_s=20)
HOME = Traffic(live="blue", candidate="green")
AWAY = Traffic(live="green", candidate="blue")
SPLIT = Traffic(live="blue", candidate="green", canary_basis_points=2_500)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LabApplication]:
    """One blue and one green instance behind HAProxy."""
    with LabApplication(tmp_path / "web", blue=1, green=1) as running:
        yield running


def undo(pair, step, settings=SETTINGS):
    take_back(step, pair.fleet, deployment=DEPLOYMENT, settings=settings)


def traffic(pair):
    return haproxy.read_traffic(pair.fleet.route)


def test_every_step_back_done_twice_is_done_once(pair):
    before, green = pair.observed(), pair.fleet.instance("green-1")
    blue = pair.haproxy.address, "blue", "blue-1"
    stage(green, pair.change(NEXT_RELEASE))
    switch_release(green, NEXT_RELEASE)
    restart_service(green, settings=SETTINGS)
    wait_until_ready(green, NEXT_RELEASE, timeout_s=20)
    haproxy.set_traffic(pair.fleet.route, AWAY)
    haproxy.drain(*blue, deadline_s=5)
    steps = [
        RestoreServer(instance="blue-1", admin="ready"),
        RestoreTraffic(traffic=HOME),
        RestoreRelease(instance="green-1", release=FIRST_RELEASE, running=FIRST_RELEASE),
        RemoveRelease(instance="green-1", release=NEXT_RELEASE),
    ]
    for step in steps:
        undo(pair, step)
        once, process = pair.observed(), pid(green)
        undo(pair, step)
        assert (pair.observed(), pid(green)) == (once, process)
    assert pair.observed() == before


def test_steps_back_of_what_never_happened_change_nothing(pair):
    before, process = pair.observed(), pid(pair.fleet.instance("green-1"))
    undo(pair, RestoreTraffic(traffic=HOME))
    undo(pair, RestoreServer(instance="blue-1", admin="ready"))
    undo(pair, RestoreRelease(instance="green-1", release=FIRST_RELEASE, running=FIRST_RELEASE))
    undo(pair, RemoveRelease(instance="green-1", release=NEXT_RELEASE))
    assert (pair.observed(), pid(pair.fleet.instance("green-1"))) == (before, process)


def test_a_server_that_was_out_is_taken_out_again(pair):
    for _ in range(2):
        undo(pair, RestoreServer(instance="blue-1", admin="maint", drain_s=1))
        assert haproxy.server_admin(pair.haproxy.address, "blue", "blue-1") == "maint"


@pytest.mark.parametrize("now", [AWAY, SPLIT], ids=["switched", "canary"])
def test_traffic_never_returns_to_a_dead_side_while_the_other_answers(pair, now):
    haproxy.set_traffic(pair.fleet.route, now)
    pair.kill("blue-1")
    with pytest.raises(TargetDeadError, match="no instance of blue answers, while 100% of green do") as dead:
        undo(pair, RestoreTraffic(traffic=HOME))
    assert traffic(pair) == now
    hold_traffic(pair.fleet, dead.value.healthiest)
    hold_traffic(pair.fleet, dead.value.healthiest)
    assert traffic(pair) == AWAY
    assert httpx.get(pair.url).status_code == 200


def test_traffic_that_is_home_already_stays_there_even_if_home_is_dead(pair):
    pair.kill("blue-1")
    undo(pair, RestoreTraffic(traffic=HOME))
    assert traffic(pair) == HOME


def test_where_nothing_answers_traffic_returns_to_where_it_was(pair):
    haproxy.set_traffic(pair.fleet.route, AWAY)
    pair.kill("blue-1")
    pair.kill("green-1")
    assert healthy_share(pair.fleet, "blue") == healthy_share(pair.fleet, "green") == 0
    undo(pair, RestoreTraffic(traffic=HOME))
    assert traffic(pair) == HOME


def test_a_dead_instance_is_not_given_users(pair):
    address, backend, server = pair.haproxy.address, "blue", "blue-1"
    haproxy.drain(address, backend, server, deadline_s=5)
    pair.kill("blue-1")
    hasty = Settings(command_timeout_s=1)
    with pytest.raises(UndoFailedError, match="blue-1 does not answer"):
        undo(pair, RestoreServer(instance="blue-1", admin="ready"), settings=hasty)
    assert haproxy.server_admin(address, backend, server) == "maint"


def test_a_release_in_use_is_not_removed(pair):
    with pytest.raises(UndoFailedError, match="still points to"):
        undo(pair, RemoveRelease(instance="green-1", release=FIRST_RELEASE))
    assert pid(pair.fleet.instance("green-1"))


def test_a_balancer_that_is_down_fails_the_step_and_says_so(pair):
    haproxy.set_traffic(pair.fleet.route, AWAY)
    pair.haproxy.stop()
    hurried = pair.fleet.model_copy(
        update={
            "route": pair.fleet.route.model_copy(
                update={"balancer": pair.haproxy.address.model_copy(update={"timeout_s": 0.3})}
            )
        }
    )
    with pytest.raises(DeployError, match="HAProxy did not answer"):
        take_back(RestoreTraffic(traffic=HOME), hurried, deployment=DEPLOYMENT, settings=SETTINGS)
    pair.haproxy.start()
    assert traffic(pair) == AWAY
