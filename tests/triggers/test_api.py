"""Deployments as the other ways in start and follow them: by the client alone, run by a worker."""

from __future__ import annotations

import os
import signal
import uuid

import pytest

from blocks.environment import Environment
from lab.releases import Behaviour
from rules.environment import Stage
from rules.strategy import Canary, InPlace, Watching
from tests.flows.caller import Caller
from tests.flows.site import EASY, ENDLESS, PATIENCE_S
from triggers.api import BadRequestError, DeployApi, Exit, Progress, UnknownError

HERE = InPlace(instance="blue-1")
QUICK = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=60, limits=EASY))
#: A release that fails most of its users.
BAD = Behaviour(error_ratio=0.95)
TIMEOUT_S = 4 * PATIENCE_S
#: One worker of Prefect is enough for all processes of a session; several flow runs, one after the other.
pytestmark = [pytest.mark.xdist_group("ways-in"), pytest.mark.timeout(600)]


def watched(api: DeployApi, run: str) -> list[Progress]:
    return list(api.watch(run, every_s=0.2, timeout_s=TIMEOUT_S))


def halfway(caller: Caller, run: str) -> None:
    """Wait until a canary of 2.0.0 has half of the users; a run may need a while to begin."""
    caller.begins_to_be(run, "RUNNING")
    caller.halfway(run, "2.0.0")


def test_a_good_release_is_followed_to_its_promotion_and_taken_back_by_a_person(caller: Caller) -> None:
    site, key = caller.site, str(uuid.uuid4())
    with DeployApi() as api:
        started = api.deploy(site.change("2.0.0"), HERE, key=key)
        again = api.deploy(site.change("2.0.0"), HERE, key=key)
        assert (started.is_new, again.is_new) == (True, False)
        assert again.flow_run_id == started.flow_run_id

        seen = watched(api, started.flow_run_id)
        assert seen[0].state == ""
        assert "running" in {one.state for one in seen}
        assert [one.steps_done for one in seen] == sorted(one.steps_done for one in seen)
        last = seen[-1]
        assert (last.run_state, last.state, last.steps_done) == ("COMPLETED", "promoted", last.steps)
        assert last.journal == caller.view(started.flow_run_id)
        ended = api.ended(started.flow_run_id)
        assert (ended.exit_code, ended.state, ended.deployment) == (Exit.GOOD, "promoted", last.deployment)

        assert api.find(last.deployment) == api.find(started.flow_run_id) == last
        assert api.find(last.deployment[:-2]).flow_run_id == started.flow_run_id
        assert api.find(started.flow_run_id[:8]) == last
        assert last.record in api.history(component="application", state="promoted")
        with pytest.raises(BadRequestError, match="not paused"):
            api.approve(started.flow_run_id, approved=True, by="Ada")
        with pytest.raises(BadRequestError, match="already in terminal state COMPLETED"):
            api.cancel(started.flow_run_id)

        back = api.roll_back(last.deployment, reason="users do not like it")
        taken_back = api.ended(back.flow_run_id, timeout_s=TIMEOUT_S)
        assert (taken_back.exit_code, taken_back.state) == (Exit.GOOD, "rolled_back")
        assert taken_back.reason == "users do not like it"
        # asked about the deployment itself, a script hears that it is not there any more
        assert api.ended(started.flow_run_id).exit_code == Exit.ROLLED_BACK
        assert taken_back.record in api.history(state="rolled_back")
    assert site.application.observed() == site.before


def test_a_deployment_is_refused_and_another_one_of_the_same_target_is_locked_out(caller: Caller) -> None:
    site = caller.site
    name = "asks-by-client"
    Environment(stage=Stage.DEVELOPMENT, approval=True, approval_timeout_s=300).save(name, overwrite=True)
    with DeployApi() as api:
        nowhere = api.deploy(site.change("2.0.0"), HERE, environment="nowhere")
        first = api.deploy(site.change("2.0.0"), HERE, environment=name)
        caller.begins_to_be(first.flow_run_id, "PAUSED")
        assert api.look(first.flow_run_id).waits_for_approval
        second = api.ended(api.deploy(site.change("3.0.0"), HERE).flow_run_id, timeout_s=TIMEOUT_S)
        assert (second.exit_code, second.state) == (Exit.NOTHING_CHANGED, "aborted")
        assert f"is being deployed by {api.look(first.flow_run_id).deployment}" in second.reason

        with pytest.raises(BadRequestError, match="'by'"):
            api.approve(first.flow_run_id, approved=True, by="A")
        assert api.look(first.flow_run_id).waits_for_approval
        api.approve(first.flow_run_id, approved=False, by="Ada", words="not on a Friday")
        refused = api.ended(first.flow_run_id, timeout_s=TIMEOUT_S)
        assert (refused.exit_code, refused.state) == (Exit.NOTHING_CHANGED, "aborted")
        assert "Refused by Ada: not on a Friday" in refused.reason

        of_nowhere = api.ended(nowhere.flow_run_id, timeout_s=TIMEOUT_S)
        assert (of_nowhere.exit_code, of_nowhere.state) == (Exit.BAD_REQUEST, "failed")
        assert "nowhere" in of_nowhere.reason
    assert site.application.observed() == site.before


def test_a_deployment_whose_process_was_killed_is_told_as_rolled_back(caller: Caller) -> None:
    site = caller.site
    with DeployApi() as api:
        killed = api.deploy(site.change("2.0.0"), ENDLESS).flow_run_id
        halfway(caller, killed)
        owner = site.owner()
        assert owner
        os.kill(owner.pid, signal.SIGKILL)
        # Prefect calls it crashed seconds before its hook has taken it back: that is not its end
        ended = api.ended(killed, timeout_s=TIMEOUT_S)
        assert (ended.exit_code, ended.state) == (Exit.ROLLED_BACK, "rolled_back")
    assert site.application.observed() == site.before


def test_of_bad_parameters_the_server_and_the_client_name_the_field(caller: Caller) -> None:
    change = caller.site.change("2.0.0")
    steep = {"strategy": "canary", "steps_percent": [150]}
    with DeployApi() as api:
        with pytest.raises(BadRequestError, match=r"strategy.steps_percent.0: .* less than or equal to 100"):
            api.deploy(change, steep)
        parameters = {"change": change.model_dump(mode="json"), "strategy": steep}
        with pytest.raises(
            BadRequestError, match=r"strategy\.steps_percent\[0\]'.*HTTP 409.*Nothing was done"
        ):
            api.start("deploy/deploy", parameters)
        with pytest.raises(BadRequestError, match=r"'strategy' is a required property.*HTTP 409"):
            api.start("deploy/deploy", {"change": parameters["change"]})
        with pytest.raises(BadRequestError, match=r"'word'.*HTTP 409"):
            api.control("web-1", "restart", by="Ada", reason="just so")  # type: ignore[arg-type]
        with pytest.raises(UnknownError, match="is called '0000'"):
            api.find("0000")
