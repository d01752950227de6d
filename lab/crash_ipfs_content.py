"""What IPFS content brings to the crash tests: two nodes, and rows that must always resolve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.content import LabContent
from lab.crash_staging import ENVIRONMENT, Staging
from lab.register import save_content, save_database
from rules.content_change import ContentRelease
from rules.strategy import InPlace

_RELEASE = "c2"


class CrashLab:
    """Content that three rows refer to, and its next release.

    Args:
        directory: everything lives below it.
        strategy: `in_place` is all that there is.
    """

    def __init__(self, directory: Path, strategy: str = "in_place") -> None:
        if strategy != "in_place":
            raise ValueError(f"content is changed in_place, not {strategy}")
        self.content = LabContent(directory / "content")
        self._staging = Staging(directory / "evidence", release=_RELEASE)
        self._change: ContentRelease | None = None

    def start(self) -> None:
        """Bring nodes and database up with the first release, and write the next one's files."""
        self._staging.build()
        self.content.start()
        self._change = self.content.change(_RELEASE)

    def stop(self) -> None:
        """Leave nothing behind."""
        self.content.stop()

    def prepare(self) -> None:
        """Save the blocks of the content, of its database, and of the environment."""
        save_database(self.content.database)
        save_content(self.content.content, database=self.content.database.name)
        self._staging.save()

    def deploy(self) -> None:
        """Deploy the good content."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        assert self._change is not None  # noqa: S101 - started
        deploy(self._change, InPlace(), environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return rows and pins, what a row refers to and a node lacks, locks, and watch."""
        return {**self.content.observed(), "missing": self.content.missing(), **self._staging.seen()}
