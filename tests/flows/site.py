"""A site to break deployments on: an application with users, a journal, and Prefect's word on all of it."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lab import processes
from lab.application import LabApplication, Observed
from lab.load import Load
from lab.prefect_server import PrefectServer
from lab.releases import GOOD, Behaviour
from rules.change import ApplicationRelease
from rules.fleet import Fleet
from rules.journal import Intent, JournalView
from rules.strategy import Canary, CanaryLimits, Strategy, Watching
from tasks.journal import journals
from tasks.lease import Owner, lock_name
from tasks.settings import Settings

#: What a deployment waits for: long enough for two slow cores, short enough to fail a test.
PATIENCE_S = 60.0
#: A canary that never passes its first step: something can happen to it there.
ENDLESS = Canary(
    steps_percent=(50, 100),
    watch=Watching(tick_s=0.2, deadline_s=600, limits=CanaryLimits(min_observation_s=600)),
)
#: A lease that is over within a test. Only for tests that wait for that: on a busy machine it is tight.
SHORT_LEASE = {
    "SOVEREIGN_LEASE_S": "6",
    "SOVEREIGN_RENEW_EVERY_S": "0.5",
    "SOVEREIGN_CUT_OFF_AFTER_S": "3",
    "SOVEREIGN_TAKEOVER_PATIENCE_S": "0.5",
}
#: Runs one flow as a person would from a program: a process that knows only its environment.
_RUN = """\
import importlib, json, sys
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
module, name, parameters = sys.argv[1:]
with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
    getattr(importlib.import_module(module), name)(**json.loads(parameters))
"""
_RATE_PER_S = 60.0


class Site:
    """An application of two blue and one green instance, its users, its journal, its Prefect server.

    Args:
        directory: all of it lives there.
        server: the Prefect server that deployments talk to.
    """

    def __init__(self, directory: Path, server: PrefectServer) -> None:
        self.directory, self.server = directory, server
        self.journal_dir = directory / "journal"
        # a name of its own: a lock that a failed test leaves is in nobody's way
        name = f"web-{secrets.token_hex(3)}"
        self.application = LabApplication(directory / "web", blue=2, green=1, name=name)
        self.load = Load(self.application.url, _RATE_PER_S, directory / "load")
        self.before: Observed | None = None
        self._started: list[processes.Process] = []

    def __enter__(self) -> Self:
        self.application.start()
        try:
            self.load.start()
            _save(self.application.fleet)
            self.before = self.application.observed()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave nothing behind, also of processes that a test has stopped and not woken."""
        for process in self._started:
            process.kill()
        self.load.stop()
        self.application.stop()

    def variables(self) -> dict[str, str]:
        """Return the environment of a process that deploys here."""
        return {
            **self.server.environment(),
            "SOVEREIGN_JOURNAL_DIR": str(self.journal_dir),
            "SOVEREIGN_HOST": "here",
            "SOVEREIGN_BASELINE_S": "0.3",
            "SOVEREIGN_API_PATIENCE_UNDOING_S": "1",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }

    def change(self, release: str = "2.0.0", behaviour: Behaviour = GOOD) -> ApplicationRelease:
        """Build a release and return the change that deploys it."""
        return self.application.change(release, behaviour)

    # --- processes that deploy ---------------------------------------------------------------------

    def run(
        self, flow: str, parameters: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> processes.Process:
        """Start a flow, such as `flows.deploy.deploy`, in a process of its own; does not wait for it."""
        module, _, name = flow.rpartition(".")
        number = len(self._started)
        process = processes.start(
            f"{name}-{number}",
            (sys.executable, "-c", _RUN, module, name, json.dumps(parameters)),
            log=self.directory / f"{name}-{number}.log",
            env=processes.clean_environment(self.directory, {**self.variables(), **(environment or {})}),
        )
        self._started.append(process)
        return process

    def deploying(
        self,
        change: ApplicationRelease,
        strategy: Strategy = ENDLESS,
        environment: Mapping[str, str] | None = None,
    ) -> processes.Process:
        """Start a deployment in a process of its own."""
        parameters = {
            "change": change.model_dump(mode="json"),
            "strategy": strategy.model_dump(mode="json"),
        }
        return self.run("flows.deploy.deploy", parameters, environment)

    def deploying_halfway(
        self, change: ApplicationRelease, environment: Mapping[str, str] | None = None
    ) -> processes.Process:
        """Start a canary and return while it has half of the users, and stays like that."""
        process = self.deploying(change, ENDLESS, environment)
        processes.wait_until(
            lambda: self.is_watching(change.release), timeout_s=PATIENCE_S, what="a canary", process=process
        )
        return process

    def is_watching(self, release: str) -> bool:
        """Whether the newest deployment of `release` has moved traffic and watches it."""
        views = [view for view in self.views() if view.plan and view.plan.change.release == release]
        if not views:
            return False
        title = "send 50 % of traffic to green"
        numbers = {e.number for e in views[-1].entries if isinstance(e, Intent) and e.title == title}
        return any(entry.entry == "done" and entry.number in numbers for entry in views[-1].entries)

    def ended(self, process: processes.Process, *, within_s: float = PATIENCE_S) -> float:
        """Wait until a process has ended; return how many seconds that took."""
        return processes.wait_until(
            lambda: not process.is_alive(), timeout_s=within_s, what=f"{process.name} to end"
        )

    # --- what is seen ------------------------------------------------------------------------------

    def settings(self, **changed: Any) -> Settings:
        """Return the settings of this host, some of them changed."""
        return Settings(**changed)

    def views(self) -> tuple[JournalView, ...]:
        """Return all journals of this host, oldest first."""
        found = [journal.read() for journal in journals(self.journal_dir)]
        return tuple(sorted(found, key=lambda view: view.opened.at))

    def view(self) -> JournalView:
        """Return the journal of the only deployment there was."""
        (view,) = self.views()
        return view

    def owner(self) -> Owner | None:
        """Return who has the lock of the application; None when it is free."""
        name = lock_name(f"application-{self.application.name}")
        answer = self.ask("GET", f"variables/name/{name}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return Owner.model_validate(answer.raise_for_status().json()["value"])

    def run_state(self, flow_run_id: str) -> tuple[str, str]:
        """Return the type of a flow run's state in Prefect, and what it says."""
        state = self.ask("GET", f"flow_runs/{flow_run_id}").raise_for_status().json()["state"]
        return state["type"], state["message"] or ""

    def artifact(self, key: str) -> str:
        """Return the newest artifact of a key as text; empty when there is none."""
        answer = self.ask("GET", f"artifacts/{key}/latest")
        return str(answer.json()["data"]) if answer.is_success else ""

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send a request to Prefect's API, as any program would."""
        return httpx.request(method, f"{self.server.api_url}/{path}", json=body, timeout=10)


def _save(fleet: Fleet) -> None:
    from lab.register import save_blocks  # noqa: PLC0415 - Prefect's settings are set by then

    save_blocks(fleet)
