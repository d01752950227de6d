"""What all changes of a database bring to the crash tests, whatever they change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from lab.database import LabDatabase
from lab.database_load import DatabaseLoad
from lab.database_observed import Observer
from lab.evidence import LabEvidence
from lab.processes import LabError
from lab.register import save_database
from rules.change import IndexChange, SchemaChange
from rules.environment import GateLimits, Monitoring, Stage
from rules.evidence.sources import Evidence
from rules.strategy import InPlace

_ENVIRONMENT = "crash"
#: Two runs, far enough away not to begin while a point is tried.
_MONITORING = Monitoring(every_s=43_200, for_s=86_400)
_READ_PAUSE_S = 0.25
_MAX_DURATION_S = 7200.0


class CrashDatabase:
    """A database with a reader, a change of it that goes well, and a look at all of it.

    Args:
        directory: everything lives below it.
        database: what is changed; not started yet.
        change: the good change.
    """

    def __init__(self, directory: Path, database: LabDatabase, change: SchemaChange | IndexChange) -> None:
        self.database, self.change = database, change
        self._evidence = LabEvidence(
            directory / "evidence", release=change.release, commit="b" * 40, pull_request=2
        )
        self._papers = Evidence()
        self._load = DatabaseLoad(
            database.database.address,
            directory / "load",
            readers=1,
            writers=0,
            read_pause_s=_READ_PAUSE_S,
            max_duration_s=_MAX_DURATION_S,
        )
        self._observer: Observer | None = None
        self._http = httpx.Client(
            timeout=10, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False
        )

    def start(self) -> None:
        """Make the change's evidence, and bring the database up with its reader."""
        self._papers = self._evidence.build()
        self.database.start()
        self._observer = Observer(self.database)
        self._load.start()

    def stop(self) -> None:
        """Leave nothing behind."""
        self._load.stop()
        self.database.stop()

    def prepare(self) -> None:
        """Save the blocks, and make the deployment known that watches after a promotion."""
        from blocks.environment import Environment  # noqa: PLC0415 - only a child talks to Prefect

        save_database(self.database.database)
        limits = GateLimits(sops_recipients=(self._evidence.key.recipient,))
        environment = Environment(stage=Stage.STAGING, limits=limits, monitoring=_MONITORING)
        environment.save(_ENVIRONMENT, overwrite=True)
        flow = self._ask("POST", "flows/", {"name": "monitor"})["id"]
        self._ask("POST", "deployments/", {"name": "monitor", "flow_id": flow})

    def deploy(self) -> None:
        """Deploy the good change."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        deploy(self.change, InPlace(), environment=_ENVIRONMENT, evidence=self._papers)

    def snapshot(self) -> dict[str, Any]:
        """Return all of the database, failed reads, locks, and the runs that watch.

        Snapshots are not part of it: they stay when a change is taken back, and their retention removes them.

        Raises:
            LabError: it was not started, or the database cannot be read.
        """
        if not self._observer:
            raise LabError("the database was not started")
        variables = self._ask("POST", "variables/filter", {})
        runs = self._ask("POST", "flow_runs/filter", {"flow_runs": {"tags": {"all_": ["sovereign-monitor"]}}})
        waiting = [run for run in runs if run["state_type"] == "SCHEDULED"]
        locks = sorted(row["name"] for row in variables)
        found = {"locks": locks, "monitoring_runs": len(waiting), "failed_reads": self._load.figures().failed}
        return {**self._observer.look(), **found}

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.request(method, f"{os.environ['PREFECT_API_URL']}/{path}", json=body)
        return answer.raise_for_status().json()
