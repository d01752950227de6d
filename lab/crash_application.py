"""What the application brings to the crash tests: a small fleet, a good release, a look at all of it.

The release goes through the whole way: a gate with real evidence, a backup, and monitoring afterwards.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import httpx

from lab.application import LabApplication
from lab.evidence import LabEvidence
from lab.load import Load
from lab.register import save_blocks
from rules.environment import GateLimits, Monitoring, Stage
from rules.evidence.sources import Evidence
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Watching

#: Few requests are enough here: what is tested is the way back, not the verdict.
_LIMITS = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.9, min_observation_s=0.2)
_WATCH = Watching(tick_s=0.2, deadline_s=30, limits=_LIMITS)
_STRATEGIES: dict[str, InPlace | BlueGreen | Canary | Rolling] = {
    "in_place": InPlace(instance="blue-1"),
    "blue_green": BlueGreen(watch=_WATCH),
    "canary": Canary(steps_percent=(25, 50, 100), watch=_WATCH),
    "rolling": Rolling(observe_s=0.2, limits=_LIMITS),
}
_REQUESTS_PER_S = 60.0
_ENVIRONMENT = "crash"
_REPOSITORY = "crash"
#: Two runs, far enough away not to begin while a point is tried.
_MONITORING = Monitoring(every_s=43_200, for_s=86_400)
_RESTIC_PASSWORD = "lab"  # noqa: S105 - of a repository that lives as long as the test


class CrashLab:
    """Two blue instances and a green one behind HAProxy, under a small load."""

    def __init__(self, directory: Path, strategy: str) -> None:
        self.strategy = _STRATEGIES[strategy]
        self.application = LabApplication(directory / "web", blue=2, green=1)
        self.change = self.application.change("2.0.0")
        self._load: Load | None = None
        self._directory = directory
        self._evidence = LabEvidence(directory / "evidence", release="2.0.0", commit="a" * 40, pull_request=1)
        self._papers = Evidence()
        # each call of restic takes a second, so one strategy does it for all; where it is installed
        self._backs_up = strategy == "in_place" and shutil.which("restic") is not None
        self._repository = {
            "repository": str(directory / "restic"),
            "password": _RESTIC_PASSWORD,
            "paths": [str(directory / "evidence")],
        }
        self._http = httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))

    def start(self) -> None:
        """Bring the fleet up in its first release, with users, and make the release's evidence."""
        from blocks.restic import ResticAccess  # noqa: PLC0415 - Prefect reads its settings when imported
        from tasks.restic import initialise  # noqa: PLC0415

        self._papers = self._evidence.build()
        if self._backs_up:
            initialise(ResticAccess.model_validate(self._repository))
        self.application.start()
        self._load = Load(
            self.application.url, _REQUESTS_PER_S, self._directory / "load", max_duration_s=3600
        )
        self._load.__enter__()

    def stop(self) -> None:
        """Leave nothing behind."""
        if self._load:
            self._load.__exit__(None, None, None)
        self.application.stop()

    def prepare(self) -> None:
        """Save the blocks, and make the deployment known that watches after a promotion."""
        from blocks.environment import Environment  # noqa: PLC0415 - only a child talks to Prefect
        from blocks.restic import ResticRepository  # noqa: PLC0415

        save_blocks(self.application.fleet)
        limits = GateLimits(sops_recipients=(self._evidence.key.recipient,))
        backups = [f"sovereign-restic-repository/{_REPOSITORY}"] if self._backs_up else []
        ResticRepository.model_validate(self._repository).save(_REPOSITORY, overwrite=True)
        environment = Environment(stage=Stage.STAGING, limits=limits, monitoring=_MONITORING, backups=backups)
        environment.save(_ENVIRONMENT, overwrite=True)
        flow = self._ask("POST", "flows/", {"name": "monitor"})["id"]
        self._ask("POST", "deployments/", {"name": "monitor", "flow_id": flow})

    def deploy(self) -> None:
        """Deploy the good release."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        deploy(self.change, self.strategy, environment=_ENVIRONMENT, evidence=self._papers)

    def snapshot(self) -> dict[str, Any]:
        """Return links, staged releases, running versions, the balancer's memory and file, lock, and watch.

        Backups are not part of it: they stay when a change is taken back, and their retention removes them.
        """
        variables = self._ask("POST", "variables/filter", {})
        runs = self._ask("POST", "flow_runs/filter", {"flow_runs": {"tags": {"all_": ["sovereign-monitor"]}}})
        waiting = [run for run in runs if run["state_type"] == "SCHEDULED"]
        locks = sorted(row["name"] for row in variables)
        return {**self.application.observed(), "locks": locks, "monitoring_runs": len(waiting)}

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.request(method, f"{os.environ['PREFECT_API_URL']}/{path}", json=body)
        return answer.raise_for_status().json()
