"""What the application brings to the crash tests: a small fleet, a good release, a look at all of it.

The release goes through the whole way: a gate with real evidence, a backup, and monitoring afterwards.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lab.application import LabApplication
from lab.crash_staging import ENVIRONMENT, Staging
from lab.load import Load
from lab.register import save_blocks
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
_REPOSITORY = "crash"
_RESTIC_PASSWORD = "lab"  # noqa: S105 - of a repository that lives as long as the test


class CrashLab:
    """Two blue instances and a green one behind HAProxy, under a small load."""

    def __init__(self, directory: Path, strategy: str) -> None:
        self.strategy = _STRATEGIES[strategy]
        self.application = LabApplication(directory / "web", blue=2, green=1)
        self.change = self.application.change("2.0.0")
        self._load: Load | None = None
        self._directory = directory
        self._staging = Staging(directory / "evidence", release="2.0.0")
        # each call of restic takes a second, so one strategy does it for all; where it is installed
        self._backs_up = strategy == "in_place" and shutil.which("restic") is not None
        self._repository = {
            "repository": str(directory / "restic"),
            "password": _RESTIC_PASSWORD,
            "paths": [str(directory / "evidence")],
        }

    def start(self) -> None:
        """Bring the fleet up in its first release, with users, and make the release's evidence."""
        from blocks.restic import ResticAccess  # noqa: PLC0415 - Prefect reads its settings when imported
        from tasks.restic import initialise  # noqa: PLC0415

        self._staging.build()
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
        """Save the blocks of the application, of its backups, and of the environment."""
        from blocks.restic import ResticRepository  # noqa: PLC0415 - only a child talks to Prefect

        save_blocks(self.application.fleet)
        ResticRepository.model_validate(self._repository).save(_REPOSITORY, overwrite=True)
        self._staging.save(backups=[f"sovereign-restic-repository/{_REPOSITORY}"] if self._backs_up else [])

    def deploy(self) -> None:
        """Deploy the good release."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        deploy(self.change, self.strategy, environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return links, staged releases, running versions, the balancer's memory and file, lock, and watch.

        Backups are not part of it: they stay when a change is taken back, and their retention removes them.
        """
        return {**self.application.observed(), **self._staging.seen()}
