"""A site to break deployments on: an application with users, a journal, and Prefect's word on all of it."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from lab import processes
from lab.application import LabApplication, Observed
from lab.load import Load
from lab.prefect_server import PrefectServer
from lab.releases import GOOD, Behaviour
from rules.change import ApplicationRelease
from rules.fleet import CommandService, FleetState
from rules.journal import JournalView
from rules.strategy import Canary, CanaryLimits, Strategy, Watching
from tasks.fleet import observe_fleet
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
#: Limits that few requests satisfy: what is tested is the way there and back, not the verdict.
EASY = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.9, min_observation_s=0.2)
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
        # a name of its own: a lock that a failed test leaves is in nobody's way
        name = f"web-{secrets.token_hex(3)}"
        self.application = LabApplication(directory / "web", blue=2, green=1, name=name)
        self.load = Load(self.application.url, _RATE_PER_S, directory / "load", max_duration_s=3600)
        self.before: Observed | None = None
        self._as_built: Observed | None = None
        self._is_saved_as_built = False
        self._journals = 0
        self._began = time.time()
        self._started: list[processes.Process] = []

    def start(self) -> None:
        """Bring the application up in its first release, with users, and make it known to Prefect."""
        self.application.start()
        try:
            self.load.start()
            self._as_built = self.application.observed()
            self.begin()
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Be ready for one more test, with a journal of its own."""
        self._journals += 1
        self._began = time.time()
        self._free_all_locks()
        if not self._is_saved_as_built:
            self.save()
        self.before = self.application.observed()

    def end(self) -> None:
        """End what a test has started, also what it has stopped and not woken, and free its lock."""
        for process in self._started:
            process.kill()
        with contextlib.suppress(httpx.HTTPError):  # that server may be one that the test has killed
            self.ask("DELETE", f"variables/name/{self._lock}")

    def stop(self) -> None:
        """Leave nothing behind."""
        self.end()
        self.load.stop()
        self.application.stop()

    def is_as_built(self) -> bool:
        """Whether nobody could tell that there has been a deployment: the next test may have this site."""
        try:
            return self.application.observed() == self._as_built
        except OSError:
            return False

    @property
    def journal_dir(self) -> Path:
        """The journals of this test's deployments."""
        return self.directory / f"journal-{self._journals}"

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

    def save(self, **changed: Any) -> None:
        """Make the application known to Prefect, its instances changed like this."""
        # Prefect's settings are set by now
        from lab.register import save_blocks  # noqa: PLC0415

        self._is_saved_as_built = not changed
        fleet = self.application.fleet
        instances = tuple(instance.model_copy(update=changed) for instance in fleet.instances)
        save_blocks(fleet.model_copy(update={"instances": instances}))

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

    def run_without_prefect(self, environment: Mapping[str, str] | None = None) -> str:
        """Recover as a person does on the host while Prefect is down; return what is said."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.recover"],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=processes.clean_environment(self.directory, {**self.variables(), **(environment or {})}),
        )
        return done.stderr

    def deploying(
        self,
        change: ApplicationRelease,
        strategy: Strategy = ENDLESS,
        environment: Mapping[str, str] | None = None,
        *,
        where: str = "development",
        **further: Any,
    ) -> processes.Process:
        """Start a deployment in a process of its own; `where` and `further` are parameters of the flow."""
        parameters = {
            "change": change.model_dump(mode="json"),
            "strategy": strategy.model_dump(mode="json"),
            "environment": where,
            **further,
        }
        return self.run("flows.deploy.deploy", parameters, environment)

    def deploying_halfway(
        self, change: ApplicationRelease, environment: Mapping[str, str] | None = None
    ) -> processes.Process:
        """Start a canary and return while it has half of the users, and stays like that."""
        process = self.deploying(change, ENDLESS, environment)
        self.wait_until_halfway(change.release, process)
        return process

    def wait_until_halfway(
        self, release: str, process: processes.Process | None, *, flow_run_id: str = ""
    ) -> None:
        """Wait until a canary of `release` has half of the users, by any flow run or that one."""
        processes.wait_until(
            lambda: any(
                view.plan is not None
                and view.plan.change.release == release
                and view.opened.flow_run_id.endswith(flow_run_id)
                and self._is_watched(view)
                for view in self.views()
            ),
            timeout_s=PATIENCE_S,
            what=f"a canary of {release}",
            process=process,
        )

    def _is_watched(self, view: JournalView) -> bool:
        """Whether its first split of the traffic is done and watched."""
        return (
            view.state == "running" and (self.journal_dir / view.opened.deployment / "samples.jsonl").exists()
        )

    def ended(self, process: processes.Process, *, within_s: float = PATIENCE_S) -> float:
        """Wait until a process has ended; return how many seconds that took."""
        return processes.wait_until(
            lambda: not process.is_alive(), timeout_s=within_s, what=f"{process.name} to end"
        )

    @property
    def _lock(self) -> str:
        return lock_name(f"application-{self.application.name}")

    def lock_as_lost_host(self, *, lease_s: float) -> None:
        """Take the application's lock as a host does that is lost at once."""
        owner = Owner(
            deployment=f"{self.application.name}-9-9-9",
            flow_run_id=str(uuid.uuid4()),
            host="lost",
            pid=1,
            since=datetime.now(UTC),
            lease_s=lease_s,
        )
        row = {"name": self._lock, "value": owner.model_dump(mode="json"), "tags": []}
        self.ask("POST", "variables/", row).raise_for_status()

    def serve_again(self, instance: str) -> None:
        """Start an instance that was killed, as its supervisor would."""
        service = self.application.fleet.instance(instance).service
        assert isinstance(service, CommandService)
        subprocess.run(service.start, check=True, stdin=subprocess.DEVNULL, timeout=20)

    # --- what is seen ------------------------------------------------------------------------------

    def failed_requests(self, since: float = 0.0) -> int:
        """Return how many users of this test have had no good answer, from a time of the day on."""
        return sum(row["failed"] for row in self.load.rows() if row["t"] >= max(since, self._began))

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

    def fleet_state(self) -> FleetState:
        """Return the application's state as deployments read it."""
        return observe_fleet(self.application.fleet)

    def owner(self) -> Owner | None:
        """Return who has the lock of the application; None when it is free."""
        answer = self.ask("GET", f"variables/name/{self._lock}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return Owner.model_validate(answer.raise_for_status().json()["value"])

    def run_state(self, flow_run_id: str) -> tuple[str, str]:
        """Return the type of a flow run's state in Prefect, and what it says."""
        state = self.ask("GET", f"flow_runs/{flow_run_id}").raise_for_status().json()["state"]
        return state["type"], state["message"] or ""

    def children(self, flow_run_id: str) -> list[str]:
        """Return the ids of a flow run's child runs."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
        return [run["id"] for run in self.ask("POST", "flow_runs/filter", wanted).json()]

    def artifact(self, key: str) -> str:
        """Return the newest artifact of a key as text; empty when there is none."""
        answer = self.ask("GET", f"artifacts/{key}/latest")
        return str(answer.json()["data"]) if answer.is_success else ""

    def _free_all_locks(self) -> None:
        """Remove what other tests have left locked on this server: `recover` looks after every lock."""
        for row in self.ask("POST", "variables/filter", {}).json():
            self.ask("DELETE", f"variables/{row['id']}")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send a request to Prefect's API, as any program would."""
        return httpx.request(method, f"{self.server.api_url}/{path}", json=body, timeout=10)
