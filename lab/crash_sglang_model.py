"""What a model brings to the crash tests: simulated servers on two sides behind HAProxy, asked by users."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lab.crash_staging import ENVIRONMENT, Staging
from lab.register import save_blocks
from lab.sglang import LabSglang
from lab.sglang_load import PromptLoad
from rules.change import ModelRelease
from rules.strategy import BlueGreen, CanaryLimits, InPlace, Rolling, Watching

_RELEASE = "m2"
_REQUESTS_PER_S = 10.0
#: Few requests are enough here: what is tested is the way back, not the verdict.
_LIMITS = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.9, min_observation_s=0.2)
_STRATEGIES: dict[str, InPlace | BlueGreen | Rolling] = {
    "hot_swap": InPlace(instance="blue-1"),
    "in_place": InPlace(instance="blue-1"),
    "rolling": Rolling(observe_s=0.2, limits=_LIMITS),
    "blue_green": BlueGreen(watch=Watching(tick_s=0.2, deadline_s=30, limits=_LIMITS)),
}


class CrashLab:
    """One blue server, two for `rolling`, and a green one, under a small load of prompts.

    Args:
        directory: everything lives below it; a short path.
        strategy: how the model is brought to them; `hot_swap` goes into a running server.
    """

    def __init__(self, directory: Path, strategy: str) -> None:
        self._strategy = _STRATEGIES[strategy]
        self._way = "hot_swap" if strategy == "hot_swap" else "restart"
        real = os.environ.get("SGLANG_REAL") == "1"  # for hot swaps: a start takes it half a minute
        blue = 2 if strategy == "rolling" else 1
        self.model = LabSglang(directory / "chat", blue=blue, green=1, real=real)
        self._staging = Staging(directory / "evidence", release=_RELEASE)
        self._load: PromptLoad | None = None
        self._change: ModelRelease | None = None
        self._directory = directory

    def start(self) -> None:
        """Bring the servers up in their first release, with users, and make the next one."""
        self._staging.build()
        self.model.start()
        self._change = self.model.change(_RELEASE).model_copy(update={"way": self._way})
        self._load = self.model.load(_REQUESTS_PER_S, self._directory / "load")
        self._load.max_duration_s = 3600.0
        self._load.__enter__()

    def stop(self) -> None:
        """Leave nothing behind."""
        if self._load:
            self._load.__exit__(None, None, None)
        self.model.stop()

    def prepare(self) -> None:
        """Save the blocks of the model and of the environment."""
        save_blocks(self.model.fleet)
        self._staging.save()

    def deploy(self) -> None:
        """Deploy the good model."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        assert self._change is not None  # noqa: S101 - started
        deploy(self._change, self._strategy, environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return links, releases, what each server has loaded and says, the balancer, locks, and watch."""
        return {**self.model.observed(), **self._staging.seen()}
