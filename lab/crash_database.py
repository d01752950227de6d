"""What all changes of a database bring to the crash tests, whatever they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.crash_staging import ENVIRONMENT, Staging
from lab.database import LabDatabase
from lab.database_load import DatabaseLoad
from lab.database_observed import Observer
from lab.processes import LabError
from lab.register import save_database
from rules.change import IndexChange, SchemaChange
from rules.strategy import InPlace

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
        self._staging = Staging(directory / "evidence", release=change.release)
        self._load = DatabaseLoad(
            database.database.address,
            directory / "load",
            readers=1,
            writers=0,
            read_pause_s=_READ_PAUSE_S,
            max_duration_s=_MAX_DURATION_S,
        )
        self._observer: Observer | None = None

    def start(self) -> None:
        """Make the change's evidence, and bring the database up with its reader."""
        self._staging.build()
        self.database.start()
        self._observer = Observer(self.database)
        self._load.start()

    def stop(self) -> None:
        """Leave nothing behind."""
        self._load.stop()
        self.database.stop()

    def prepare(self) -> None:
        """Save the blocks of the database and of the environment."""
        save_database(self.database.database)
        self._staging.save()

    def deploy(self) -> None:
        """Deploy the good change."""
        from flows.deploy import deploy  # noqa: PLC0415 - only a child talks to Prefect

        deploy(self.change, InPlace(), environment=ENVIRONMENT, evidence=self._staging.papers)

    def snapshot(self) -> dict[str, Any]:
        """Return all of the database, failed reads, locks, and the runs that watch.

        Snapshots are not part of it: they stay when a change is taken back, and their retention removes them.

        Raises:
            LabError: it was not started, or the database cannot be read.
        """
        if not self._observer:
            raise LabError("the database was not started")
        seen = {**self._staging.seen(), "failed_reads": self._load.figures().failed}
        return {**self._observer.look(), **seen}
