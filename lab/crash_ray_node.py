"""What a Ray cluster brings to the crash tests: two nodes and a spare, with tasks that are repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.crash_staging import ENVIRONMENT, Staging
from lab.ray_cluster import LabRay
from lab.register import save_blocks
from rules.change import RayRelease
from rules.strategy import InPlace, Rolling

_RELEASE = "r2"


class CrashLab:
    """A cluster that a release is brought to: to one node, to both, or, by `scale`, to one that is added too.

    Args:
        directory: everything lives below it.
        strategy: `in_place`, `rolling`, or `scale`, which also takes a node out.
    """

    def __init__(self, directory: Path, strategy: str) -> None:
        self.cluster = LabRay(directory / "ray", workers=2, spares=1, drain_s=2.0)
        first, second, spare = (*self.cluster.nodes, *self.cluster.spares)
        self._nodes = {"in_place": (), "rolling": (first, second), "scale": (second, spare)}[strategy]
        self._strategy: InPlace | Rolling = Rolling(observe_s=0.2)
        if strategy == "in_place":
            self._strategy = InPlace(instance=first)
        self._staging = Staging(directory / "evidence", release=_RELEASE)
        self._change: RayRelease | None = None

    def start(self) -> None:
        """Bring the cluster up in its first release."""
        self._staging.build()
        self.cluster.start()
        self._change = RayRelease(
            cluster=self.cluster.name,
            release=_RELEASE,
            artefact=self.cluster.archive(_RELEASE),
            nodes=self._nodes,
        )

    def stop(self) -> None:
        """Leave nothing behind."""
        self.cluster.stop()

    def prepare(self) -> None:
        """Save the blocks of the cluster and of the environment."""
        save_blocks(self.cluster.fleet)
        self._staging.save()

    def deploy(self) -> None:
        """Deploy the good release."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        assert self._change is not None  # noqa: S101 - started
        deploy(self._change, self._strategy, environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return links, releases, labels of the nodes that are alive, their services, locks, and watch."""
        return {**self.cluster.snapshot(), **self._staging.seen()}
