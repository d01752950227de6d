"""What NixOS hosts bring to the crash tests: real profiles and channels, and a guard on each host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.crash_staging import ENVIRONMENT, Staging
from lab.nixos import NEXT_VERSION, LabNixos
from lab.register import save_blocks
from rules.strategy import InPlace, Rolling
from rules.system_change import NixosChannel, NixosClosures, SystemRelease

_STRATEGIES: dict[str, InPlace | Rolling] = {
    "in_place": InPlace(instance="alpha"),
    "rolling": Rolling(observe_s=0.2),
    "reboot": InPlace(instance="alpha"),
}


class CrashLab:
    """Two hosts: one gets a system from its channel, or both one that was built already, or one a kernel.

    Args:
        directory: everything lives below it.
        strategy: `in_place` from the channel; `rolling` over both; `reboot`: in place, into another kernel.
    """

    def __init__(self, directory: Path, strategy: str) -> None:
        self._strategy, self._reboots = _STRATEGIES[strategy], strategy == "reboot"
        self.hosts = LabNixos(directory / "nixos", hosts=("alpha", "beta"))
        self._staging = Staging(directory / "evidence", release=NEXT_VERSION)
        self._change: SystemRelease | None = None

    def start(self) -> None:
        """Install the hosts, and have the next version ready where it comes from."""
        self._staging.build()
        self.hosts.start()
        self._change = SystemRelease(
            hosts=self.hosts.fleet.application, release=NEXT_VERSION, source=self._source()
        )

    def stop(self) -> None:
        """Leave nothing behind."""
        self.hosts.stop()

    def prepare(self) -> None:
        """Save the blocks of the hosts and of the environment."""
        save_blocks(self.hosts.fleet)
        self._staging.save()

    def deploy(self) -> None:
        """Deploy the good system."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        assert self._change is not None  # noqa: S101 - started
        deploy(self._change, self._strategy, environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return what each host boots, runs, follows and keeps for us, locks, and watch."""
        hosts = {name: self._host(name) for name in ("alpha", "beta")}
        return {**hosts, **self._staging.seen()}

    def _host(self, name: str) -> dict[str, Any]:
        seen = self.hosts.observed(name)
        # below a directory named after the deployment, whose name is another each time
        return {**seen, "roots": [Path(root).name for root in seen["roots"]]}

    def _source(self) -> NixosChannel | NixosClosures:
        if isinstance(self._strategy, InPlace) and not self._reboots:
            self.hosts.publish_channel(NEXT_VERSION)
            return NixosChannel()
        options = {"kernel": "6.12.40"} if self._reboots else {}
        return NixosClosures(paths={name: self.hosts.build(name, **options) for name in ("alpha", "beta")})
