"""The workflow for applications' repositories, run for real: runner, command line, Prefect, worker."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from lab.processes import wait_until
from lab.releases import GOOD, Behaviour
from rules.strategy import Canary, InPlace, Strategy, Watching
from tests.flows.caller import Caller
from tests.flows.site import EASY, ENDLESS, PATIENCE_S
from tests.triggers.acting import Ran, Repository

TREE = Path(__file__).parents[2] / "triggers/forgejo"
pytestmark = [
    pytest.mark.timeout(900),  # several programs that start, each after the other
    pytest.mark.xdist_group("ways-in"),  # one process of the session has the server and the worker
]
QUICK = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=30, limits=EASY))
STRICT = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=60))
AUTH = "ada:engine-no-1"
#: A workflow of the application that deploys and then does something with what came of it.
AFTERWARDS = """\
on: workflow_dispatch
jobs:
  ship:
    uses: ./.forgejo/workflows/deploy.yml
    with: {release: "2.0.0"}
    secrets: inherit
  tell:
    needs: ship
    runs-on: nixos
    steps:
      - run: echo "told of $RELEASE, $STATE as $DEPLOYMENT"
        env:
          RELEASE: ${{ needs.ship.outputs.release }}
          STATE: ${{ needs.ship.outputs.state }}
          DEPLOYMENT: ${{ needs.ship.outputs.deployment }}
"""


class Forge:
    """The application's repository, with what is copied into it, and the forge's settings."""

    def __init__(self, directory: Path, caller: Caller) -> None:
        self.caller = caller
        self.repository = Repository(directory)
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TREE, self.repository.directory, dirs_exist_ok=True, ignore=no_bytecode)

    def declare(self, strategy: Strategy, *, behaviour: Behaviour = GOOD, expect: str = "{release}") -> str:
        """Write deploy.json for release 2.0.0, its checksum beside it; return the commit."""
        site = self.caller.site
        change = site.change("2.0.0", behaviour).model_dump(mode="json")
        archive = Path(change["artefact"]["path"])
        archive.with_name(f"{archive.name}.sha256").write_text(
            f"{change['artefact']['sha256']}  {archive.name}\n"
        )
        change["release"] = "{release}"
        change["artefact"] |= {"path": f"{archive.parent}/{{release}}.tar.gz", "sha256": ""}
        health = {"url": f"{site.application.url}health", "expect": expect, "every_s": 0.1, "within_s": 1}
        said = {
            "change": change,
            "strategy": strategy.model_dump(mode="json"),
            "environment": "development",
            "health": health,
        }
        (self.repository.directory / ".forgejo/deploy/deploy.json").write_text(json.dumps(said, indent=2))
        return self.repository.commit()

    def settings(self, number: int) -> dict[str, dict[str, str]]:
        """Return what the forge gives the run with this number."""
        return {
            "variables": {"PREFECT_API_URL": self.caller.site.server.api_url},
            "secrets": {"PREFECT_API_AUTH_STRING": AUTH, "GITHUB_TOKEN": "token-of-the-job"},
            "run": {"GITHUB_RUN_ID": str(number)},
        }

    def start_again(self, number: int) -> str:
        """Start the deployment as the same attempt of a run would that is repeated; return what is said."""
        values = self._values(number)
        return "".join(self.repository.step(name, RELEASE="2.0.0", **values) for name in ("ask", "start"))

    def abort_unheard(self, number: int) -> str:
        """Do the last step of a cancelled run whose start was killed before it said what it had started."""
        (started,) = self.repository.forge.glob(f"sovereign-{number}-1/started.json")
        started.unlink()
        return self.repository.step("abort", GITHUB_ACTOR="ada", **self._values(number))

    def _values(self, number: int) -> dict[str, str]:
        settings = self.settings(number)
        commit = {"GITHUB_SHA": self.repository.head(), "GITHUB_RUN_ATTEMPT": "1"}
        return {**settings["variables"], **settings["secrets"], **settings["run"], **commit}

    def dispatch(self, number: int) -> Ran:
        """Run the workflow as a person starts it."""
        inputs = {"release": "2.0.0"}
        return self.repository.run("workflow_dispatch", "deploy.yml", inputs=inputs, **self.settings(number))


@pytest.fixture
def forge(caller: Caller, tmp_path: Path) -> Forge:
    """The repository of the site's application."""
    return Forge(tmp_path / "forge", caller)


def test_a_good_release_is_promoted_once_and_its_outputs_reach_other_jobs(forge: Forge) -> None:
    forge.declare(QUICK)
    workflow = forge.repository.directory / ".forgejo/workflows/ship.yml"
    workflow.write_text(AFTERWARDS)
    commit = forge.repository.commit()
    ran = forge.repository.run("workflow_dispatch", "ship.yml", **forge.settings(7001))

    assert ran.succeeded, ran.log
    view = forge.caller.view(ran.outputs["run"])
    assert view.state == "promoted"
    assert f"told of 2.0.0, promoted as {view.opened.deployment}" in ran.log
    run = forge.caller.site.ask("GET", f"flow_runs/{view.opened.flow_run_id}").raise_for_status().json()
    assert run["parameters"]["evidence"]["commit"] == commit
    before = forge.caller.site.views()
    assert "has started it before" in forge.start_again(7001)
    assert "has started it before" in forge.abort_unheard(7001), "a start that could not say its run"
    assert forge.caller.site.views() == before
    for secret in (AUTH, "engine-no-1", "token-of-the-job"):
        assert secret not in ran.log


def test_a_bad_release_is_told_as_rolled_back_with_its_reason(forge: Forge) -> None:
    forge.declare(STRICT, behaviour=Behaviour(error_ratio=0.4))
    payload = {"ref": "refs/tags/v2.0.0"}
    ran = forge.repository.run("push", "deploy.yml", payload=payload, **forge.settings(7002))

    assert not ran.succeeded
    assert "Watch it to its end" in ran.steps("Failure")
    view = forge.caller.view(ran.outputs["run"])
    assert view.state == ran.outputs["state"] == "rolled_back"
    assert ran.outputs["release"] == "2.0.0"
    assert view.cause in ran.outputs["reason"]
    assert f"Summary - # application {forge.caller.site.application.name} 2.0.0: rolled_back" in ran.log
    assert forge.caller.site.application.observed() == forge.caller.site.before


def test_a_release_that_is_not_healthy_afterwards_is_rolled_back(forge: Forge) -> None:
    forge.declare(InPlace(instance="blue-1"), expect="2.0.1")
    ran = forge.dispatch(7003)

    assert not ran.succeeded
    assert ran.steps("Failure") == ["Health check", "Summary and outputs"]
    assert "Roll back what is not healthy" in ran.steps("Success")
    view = forge.caller.view(ran.outputs["run"])
    assert view.state == ran.outputs["state"] == "rolled_back"
    assert "but not 2.0.1" in ran.outputs["reason"]
    assert "but not 2.0.1" in view.cause
    assert forge.caller.site.application.observed() == forge.caller.site.before


def test_a_job_that_is_cancelled_aborts_its_deployment(forge: Forge) -> None:
    forge.declare(ENDLESS)
    inputs, settings = {"release": "2.0.0"}, forge.settings(7004)
    ran = forge.repository.begin("workflow_dispatch", "deploy.yml", inputs=inputs, **settings)
    try:
        wait_until(
            lambda: "run" in ran.outputs, timeout_s=2 * PATIENCE_S, what="a start", process=ran.process
        )
        forge.caller.begins_to_be(ran.outputs["run"], "RUNNING")
        forge.caller.halfway(ran.outputs["run"], "2.0.0")
        ran.process.send(signal.SIGINT)
        ran.wait()
    finally:
        ran.process.kill()

    assert not ran.succeeded
    view = forge.caller.view(ran.outputs["run"])
    assert view.state == ran.outputs["state"] == "rolled_back"
    assert "the job that watched it was cancelled" in ran.outputs["reason"]
    assert forge.caller.site.application.observed() == forge.caller.site.before
