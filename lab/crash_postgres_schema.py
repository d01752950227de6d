"""What a schema change brings to the crash tests: a database of its own, and migrations that go well.

`down` takes two migrations back by their own ways down, `snapshot` one that no way down brings back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lab.crash_database import CrashDatabase
from lab.database import LabDatabase
from lab.database_migrations import LabMigrations, good_contract, good_expand
from lab.processes import LabError
from lab.zfs import LabZfs, why_not

_STRATEGIES: dict[str, Callable[[Path], LabMigrations]] = {"down": good_expand, "snapshot": good_contract}


class CrashLab(CrashDatabase):
    """A small database, on ZFS where the way back is a snapshot, and a user who reads now and then.

    Args:
        directory: everything lives below it.
        strategy: `down` or `snapshot`.

    Raises:
        LabError: `snapshot`, where there can be no ZFS; says why.
    """

    def __init__(self, directory: Path, strategy: str) -> None:
        self._parts = ExitStack()
        zfs = LabZfs(directory / "zfs") if strategy == "snapshot" else None
        if zfs and (reason := why_not()):
            raise LabError(f"no way back through a snapshot here: {reason}")
        self._zfs = zfs
        database = LabDatabase(directory / "database", zfs=zfs)
        migrations = _STRATEGIES[strategy](directory / "migrations")
        super().__init__(directory, database, migrations.change(database.name))

    def start(self) -> None:
        """Bring the pool up, if there is one, and the database with its reader."""
        if self._zfs:
            self._parts.enter_context(self._zfs)
        super().start()

    def stop(self) -> None:
        """Leave nothing behind."""
        with self._parts:
            super().stop()
