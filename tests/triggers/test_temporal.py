"""Deployments that Temporal starts: its server, its command line, our worker and an application, all real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.environment import Environment
from lab.ports import LOCALHOST, free_port
from lab.prefect_server import PrefectServer
from lab.processes import clean_environment, wait_until
from lab.releases import Behaviour
from lab.temporal import LabTemporal, LabTemporalWorker
from rules.strategy import InPlace
from tests.flows.caller import Caller
from tests.flows.site import ENDLESS, PATIENCE_S

#: Most of it is waiting: for Prefect's worker to begin, and for a worker of ours that is missed.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("ways-in"),  # one process of the session has the server and the worker
]
ALONE = InPlace(instance="blue-1")
START = ("workflow", "start", "--task-queue", "sovereign", "--type", "deploy_workflow", "--fail-existing")


class Desk:
    """Where a person types `temporal`, beside a worker with a directory of requests."""

    def __init__(self, server: LabTemporal, worker: LabTemporalWorker, requests: Path) -> None:
        self.server, self.worker, self.requests = server, worker, requests

    def start(self, workflow: str, **sent: Any) -> subprocess.CompletedProcess[str]:
        """Start a workflow by the guide's line; `sent` is its input beside the deployment's name."""
        asked = json.dumps({"deployment": "production", **sent})
        return self.server.command(*START, "--workflow-id", workflow, "--input", asked, "-o", "json")

    def about(self, workflow: str, *arguments: str) -> dict[str, Any]:
        """Return what a command says about a workflow."""
        done = self.server.command("workflow", *arguments, "--workflow-id", workflow, "-o", "json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ended(self, workflow: str) -> dict[str, Any]:
        """Wait until a workflow has ended; return how."""
        return self.about(workflow, "result")

    def watcher(self, workflow: str) -> tuple[int, str]:
        """Return which attempt watches a workflow's deployment, and what it told last; 0: none does."""
        pending = self.about(workflow, "describe").get("pendingActivities", [])
        found = [one for one in pending if one["activityType"]["name"] == "watch_deployment"]
        return (found[0]["attempt"], str(found[0].get("heartbeatDetails"))) if found else (0, "")

    def wait_for_watcher(self, workflow: str, words: str, *, attempt: int = 1) -> None:
        """Wait until the attempt of that number watches, and has told this."""

        def watches() -> bool:
            number, told = self.watcher(workflow)
            return number == attempt and words in told

        wait_until(watches, timeout_s=2 * PATIENCE_S, what=f"watcher {attempt} to tell: {words}")

    def memo(self, workflow: str, name: str) -> str:
        return str(self.about(workflow, "describe")["workflowExecutionInfo"]["memo"]["fields"][name])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer) -> Iterator[Desk]:
    """A Temporal server and our worker, for the Prefect server that this room's tests share."""
    directory = tmp_path_factory.mktemp("temporal")
    requests = directory / "requests"
    requests.mkdir()
    with (
        LabTemporal(directory / "server") as server,
        LabTemporalWorker(directory / "worker", server, prefect_server.environment(), requests) as worker,
    ):
        yield Desk(server, worker, requests)


def runs_of_deploy(caller: Caller) -> int:
    """Return how many runs of the flow `deploy` Prefect knows."""
    wanted = {"flows": {"name": {"any_": ["deploy"]}}}
    return int(caller.site.ask("POST", "flow_runs/count", wanted).raise_for_status().json())


def test_the_guides_line_deploys_what_is_on_file_once_a_person_approves(caller: Caller, desk: Desk) -> None:
    Environment(approval=True).save("by-temporal", overwrite=True)
    request = {**caller.parameters("2.0.0", ALONE), "environment": "by-temporal"}
    (desk.requests / "production.yaml").write_text(json.dumps(request))
    assert desk.start("by-the-guide").returncode == 0
    assert desk.start("by-the-guide").returncode != 0, "the same id must not start another one"
    desk.wait_for_watcher("by-the-guide", "PAUSED")
    answer = '{"by": "Ada Lovelace", "approved": true, "words": "seen in staging"}'
    desk.about("by-the-guide", "update", "execute", "--name", "approve", "--input", answer)

    ended = desk.ended("by-the-guide")
    assert ended["status"] == "COMPLETED"
    view = caller.view(ended["result"]["flow_run_id"])
    assert view.state == ended["result"]["state"] == "promoted"
    assert view.approval
    assert (view.approval.by, view.approval.words) == ("Ada Lovelace", "seen in staging")
    assert ended["result"]["record"]["release"] == "2.0.0"
    assert desk.memo("by-the-guide", "deployment") == view.opened.deployment
    (progress,) = desk.about("by-the-guide", "query", "--type", "progress")["queryResult"]
    assert progress["flow_run_id"] == view.opened.flow_run_id


def test_a_deployment_that_was_taken_back_fails_the_workflow_with_state_and_reason(
    caller: Caller, desk: Desk
) -> None:
    change = caller.site.change("2.1.0", Behaviour(fails_to_start=True)).model_dump(mode="json")
    desk.start("taken-back", environment="development", change=change, strategy=ALONE.model_dump(mode="json"))

    ended = desk.ended("taken-back")
    assert ended["status"] == "FAILED"
    failure = ended["closeEvent"]["workflowExecutionFailedEventAttributes"]["failure"]
    assert failure["applicationFailureInfo"]["type"] == "rolled_back"
    assert "is rolled_back: blue-1 is not ready with 2.1.0" in failure["message"]
    (details,) = failure["applicationFailureInfo"]["details"]
    assert caller.view(details["flow_run_id"]).state == details["state"] == "rolled_back"
    assert desk.memo("taken-back", "state") == "rolled_back"
    assert caller.site.application.observed() == caller.site.before


def test_a_request_that_is_not_on_file_is_refused_in_words(caller: Caller, desk: Desk) -> None:
    before = runs_of_deploy(caller)
    desk.start("unknown", deployment="prodution")

    failure = desk.ended("unknown")["closeEvent"]["workflowExecutionFailedEventAttributes"]["failure"]
    assert failure["applicationFailureInfo"]["type"] == "bad_request"
    assert "There is no request 'prodution'" in failure["message"]
    assert runs_of_deploy(caller) == before


def test_what_an_ended_and_a_killed_worker_watched_is_watched_on_and_taken_back_when_cancelled(
    caller: Caller, desk: Desk
) -> None:
    before = runs_of_deploy(caller)
    desk.start("cancelled", environment="development", **caller.parameters("3.0.0", ENDLESS))
    desk.wait_for_watcher("cancelled", "is running")
    run = desk.memo("cancelled", "flow_run_id")
    caller.halfway(run, "3.0.0")
    desk.worker.stop()  # hands back what it watches
    desk.worker.start()
    desk.wait_for_watcher("cancelled", "is running", attempt=2)
    desk.worker.kill()  # does not: it is missed after 30 s
    desk.worker.start()
    desk.wait_for_watcher("cancelled", "is running", attempt=3)
    assert caller.view(run).state == "running"
    assert desk.server.command("workflow", "cancel", "--workflow-id", "cancelled").returncode == 0

    assert desk.ended("cancelled")["status"] == "CANCELED"
    assert desk.memo("cancelled", "state") == caller.view(run).state == "rolled_back"
    assert caller.site.application.observed() == caller.site.before
    assert runs_of_deploy(caller) == before + 1


@pytest.mark.parametrize(
    ("api_url", "words"),
    [("http://127.0.0.1:1/api", "The worker does not serve: Failed client connect"), ("", "PREFECT_API_URL")],
)
def test_a_worker_that_cannot_serve_says_so(tmp_path: Path, api_url: str, words: str) -> None:
    argv = (sys.executable, "-m", "triggers.temporal", "--address", f"{LOCALHOST}:{free_port()}")
    settings = {"PREFECT_HOME": str(tmp_path), **({"PREFECT_API_URL": api_url} if api_url else {})}
    environment = clean_environment(tmp_path, settings)
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120, env=environment)

    assert done.returncode == 8
    assert words in done.stderr
    assert "Traceback" not in done.stderr
