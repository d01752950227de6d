"""A program that deploys through Prefect's API, and a worker that does what it asks for."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from lab.prefect_server import Worker
from lab.processes import wait_until
from rules.journal import JournalView
from rules.strategy import Strategy
from tasks.monitoring import cancel_monitoring
from tasks.prefect_api import PrefectApi
from tests.flows.site import PATIENCE_S, Site


class Caller:
    """A program that has nothing but Prefect's API."""

    def __init__(self, site: Site, worker: Worker) -> None:
        self.site, self.worker = site, worker

    def deployment(self, name: str) -> dict[str, Any]:
        """Return a deployment as Prefect knows it."""
        found: dict[str, Any] = self.site.ask("GET", f"deployments/name/{name}").raise_for_status().json()
        return found

    def post(self, name: str, parameters: dict[str, Any], *, key: str | None = None) -> httpx.Response:
        """Ask for a flow run."""
        body = {"parameters": parameters, "idempotency_key": key or str(uuid.uuid4())}
        return self.site.ask("POST", f"deployments/{self.deployment(name)['id']}/create_flow_run", body)

    def deploy(self, release: str, strategy: Strategy) -> str:
        """Start a deployment; return its flow run's id."""
        answer = self.post("deploy/deploy", self.parameters(release, strategy))
        return str(answer.raise_for_status().json()["id"])

    def parameters(self, release: str, strategy: Strategy) -> dict[str, Any]:
        """Return what a caller sends for a deployment."""
        change = self.site.change(release).model_dump(mode="json")
        return {"change": change, "strategy": strategy.model_dump(mode="json")}

    def begins_to_be(self, run: str, state: str) -> None:
        """Wait until a flow run is in a state of this type."""
        wait_until(
            lambda: self.site.run_state(run)[0] == state,
            timeout_s=2 * PATIENCE_S,
            what=f"flow run {run} to be {state}",
            process=self.worker.process,
        )

    def ended(self, run: str) -> str:
        """Wait until a flow run is over; return the type of its state."""
        over = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        wait_until(
            lambda: self.site.run_state(run)[0] in over,
            timeout_s=2 * PATIENCE_S,
            what=f"flow run {run} to end",
            process=self.worker.process,
        )
        return self.site.run_state(run)[0]

    def terminal(self, run: str) -> None:
        """Wait until a flow run's deployment has ended: what a hook does, comes after the run's own end."""
        wait_until(
            lambda: self.view(run).is_terminal,
            timeout_s=2 * PATIENCE_S,
            what=f"the deployment of flow run {run} to end",
            process=self.worker.process,
        )

    def halfway(self, run: str, release: str) -> None:
        """Wait until a canary has half of the users."""
        self.site.wait_until_halfway(release, self.worker.process, flow_run_id=run)

    def end_monitoring(self) -> None:
        """Have the worker watch nothing of what tests have promoted: it would for hours, under others."""
        with PrefectApi(self.site.settings()) as api:
            for view in self.site.views():
                cancel_monitoring(api, view.opened.deployment)
        running = {"tags": {"all_": ["sovereign-monitor"]}, "state": {"type": {"any_": ["RUNNING"]}}}
        cancelling = {"state": {"type": "CANCELLING"}}
        for run in self.site.ask("POST", "flow_runs/filter", {"flow_runs": running}).json():
            self.site.ask("POST", f"flow_runs/{run['id']}/set_state", cancelling).raise_for_status()

    def view(self, run: str) -> JournalView:
        """Return the journal of a flow run's deployment."""
        (view,) = [view for view in self.site.views() if view.opened.flow_run_id == run]
        return view
