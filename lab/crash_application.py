"""What the application brings to the crash tests: a small fleet, a good release, a look at all of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from lab.application import LabApplication
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


class CrashLab:
    """Two blue instances and a green one behind HAProxy, under a small load."""

    def __init__(self, directory: Path, strategy: str) -> None:
        self.strategy = _STRATEGIES[strategy]
        self.application = LabApplication(directory / "web", blue=2, green=1)
        self.change = self.application.change("2.0.0")
        self._load: Load | None = None
        self._directory = directory
        self._http = httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))

    def start(self) -> None:
        """Bring the fleet up in its first release, with users."""
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
        """Save the blocks."""
        save_blocks(self.application.fleet)

    def deploy(self) -> None:
        """Deploy the good release."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        deploy(self.change, self.strategy)

    def snapshot(self) -> dict[str, Any]:
        """Return links, staged releases, running versions, the balancer's memory and file, and the lock."""
        answer = self._http.post(f"{os.environ['PREFECT_API_URL']}/variables/filter", json={})
        locks = sorted(row["name"] for row in answer.raise_for_status().json())
        return {**self.application.observed(), "locks": locks}
