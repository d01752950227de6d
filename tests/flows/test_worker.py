"""Deployments as users start them: by Prefect's API, run by a worker, with hooks and schedule."""

from __future__ import annotations

import os
import signal
import uuid
from typing import Any

import httpx
import pytest

from lab.processes import wait_until
from rules.entries import Moved
from rules.strategy import Canary, InPlace, Watching
from tests.flows.caller import Caller
from tests.flows.site import EASY, ENDLESS, PATIENCE_S
from triggers.register import SILENT_RUNS

#: One worker of Prefect is enough for all processes of a session.
pytestmark = pytest.mark.xdist_group("worker")
QUICK = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=30, limits=EASY))


def test_a_call_that_is_repeated_with_its_key_deploys_once(caller: Caller) -> None:
    site, key = caller.site, str(uuid.uuid4())
    parameters = caller.parameters("2.0.0", QUICK)
    first = caller.post("deploy/deploy", parameters, key=key)
    again = caller.post("deploy/deploy", parameters, key=key)

    assert (first.status_code, again.status_code) == (201, 200)
    run = first.json()["id"]
    assert again.json()["id"] == run
    assert caller.ended(run) == "COMPLETED"
    assert caller.view(run).state == "promoted"
    assert site.application.observed()["route_map"] == {site.application.name: "green:blue:0"}
    assert site.owner() is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param({"strategy": {"strategy": "canary", "steps_percent": [150]}}, "150", id="percent"),
        # of a union Prefect names the field and the value, not the part of it that is wrong
        pytest.param({"change": {"application": "web"}}, "field 'change'", id="no release"),
    ],
)
def test_bad_parameters_are_refused_at_once_with_field_and_reason(
    caller: Caller, wrong: dict[str, Any], words: str
) -> None:
    answer = caller.post("deploy/deploy", {**caller.parameters("2.0.0", QUICK), **wrong})

    assert answer.status_code == httpx.codes.CONFLICT
    assert words in answer.text
    assert caller.site.application.observed() == caller.site.before


def test_a_cancelled_deployment_takes_itself_back(caller: Caller) -> None:
    site = caller.site
    run = caller.deploy("2.0.0", ENDLESS)
    caller.halfway(run, "2.0.0")
    site.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}}).raise_for_status()

    assert caller.ended(run) == "CANCELLED"
    assert caller.view(run).state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_a_killed_flow_is_recovered_by_its_hook(caller: Caller) -> None:
    site = caller.site
    run = caller.deploy("2.0.0", ENDLESS)
    caller.halfway(run, "2.0.0")
    owner = site.owner()
    assert owner
    os.kill(owner.pid, signal.SIGKILL)
    caller.terminal(run)

    assert caller.view(run).state == "rolled_back"
    last = caller.view(run).entries[-1]
    assert isinstance(last, Moved)
    assert last.by == "hook Crashed"
    assert site.application.observed() == site.before
    assert caller.ended(run) == "CRASHED"
    wait_until(lambda: site.owner() is None, timeout_s=PATIENCE_S, what="the lock to be free")


def test_what_a_dead_worker_and_its_dead_flow_left_is_recovered_by_the_deployment_recover(
    caller: Caller,
) -> None:
    site = caller.site
    run = caller.deploy("2.0.0", ENDLESS)
    caller.halfway(run, "2.0.0")
    owner = site.owner()
    assert owner
    caller.worker.kill()
    os.kill(owner.pid, signal.SIGKILL)
    assert site.run_state(run)[0] == "RUNNING"  # nobody was left to say otherwise

    caller.worker.start()
    recovery = caller.post("recover/recover", {}).raise_for_status().json()["id"]
    assert caller.ended(recovery) == "COMPLETED"
    assert caller.view(run).state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None
    for dead in (run, *site.children(run)):
        assert site.run_state(dead)[0] == "CRASHED"


def test_recover_is_scheduled_each_minute_and_silent_runs_are_watched(caller: Caller) -> None:
    (schedule,) = caller.deployment("recover/recover")["schedules"]
    assert schedule["schedule"]["interval"] == 60
    wanted = {"automations": {"name": {"any_": [SILENT_RUNS]}}}
    (automation,) = caller.site.ask("POST", "automations/filter", wanted).raise_for_status().json()
    assert automation["enabled"]
    assert [action["type"] for action in automation["actions"]] == ["change-flow-run-state", "run-deployment"]


def test_a_promoted_release_is_taken_back_through_the_api(caller: Caller) -> None:
    site = caller.site
    run = caller.deploy("2.0.0", InPlace(instance="blue-1"))
    assert caller.ended(run) == "COMPLETED"
    name = caller.view(run).opened.deployment
    taken_back = caller.post("roll-back/roll-back", {"deployment": name, "reason": "second thoughts"})

    assert caller.ended(taken_back.raise_for_status().json()["id"]) == "COMPLETED"
    assert caller.view(run).state == "rolled_back"
    assert site.application.observed() == site.before
