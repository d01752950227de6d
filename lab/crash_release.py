"""What a release brings to the crash tests: a schema, an index and an application, one after the other.

`failing` ends with an application whose every answer is an error: all three go back. `promoted` goes well.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.application import LabApplication
from lab.crash_staging import MONITORING, Staging
from lab.database import LabDatabase
from lab.database_content import COLUMN, INDEX, TABLE
from lab.database_load import DatabaseLoad
from lab.database_migrations import good_expand
from lab.database_observed import Observer
from lab.load import Load
from lab.processes import LabError
from lab.register import save_blocks, save_database, save_environment
from lab.releases import GOOD, Behaviour
from rules.change import IndexChange, Served
from rules.environment import Environment
from rules.release import Component, Release
from rules.strategy import BlueGreen, CanaryLimits, Watching
from rules.vector_index import Hnsw, IndexGate

_BEHAVIOUR = {"failing": Behaviour(error_ratio=1.0), "promoted": GOOD}
_ENVIRONMENT = "crash-release"
_NEW = "2.0.0"
_REQUESTS_PER_S = 60.0
_READ_PAUSE_S = 0.25
_MAX_DURATION_S = 7200.0
#: Few requests are enough here: what is tested is the way back, not the verdict.
_LIMITS = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.9, min_observation_s=0.2)
_STRATEGY = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=30, limits=_LIMITS))
_GATE = IndexGate(queries=10, min_recall=0.5, max_latency_ratio=100.0)


class CrashLab:
    """An application and the database that it works on, both with users.

    Args:
        directory: everything lives below it.
        strategy: `failing` or `promoted`.
    """

    def __init__(self, directory: Path, strategy: str) -> None:
        self._directory, self._parts = directory, ExitStack()
        self._is_bad = strategy == "failing"
        self.application = LabApplication(directory / "web", blue=1, green=1)
        self.database = LabDatabase(directory / "database")
        application = self.application.change(_NEW, _BEHAVIOUR[strategy])
        serves = (Served(application=self.application.name, before=("1.*",), after=("1.*", "2.*")),)
        schema = good_expand(directory / "migrations").change(self.database.name, serves=serves)
        index = IndexChange(
            database=self.database.name,
            table=TABLE,
            column=COLUMN,
            index=INDEX,
            how=Hnsw(m=16, ef_construction=64),
            gate=_GATE,
        )
        self.change = Release(
            name="emily",
            release=_NEW,
            components=(
                Component(name="schema", change=schema),
                Component(name="index", change=index, after=("schema",)),
                Component(name="web", change=application, strategy=_STRATEGY, after=("schema", "index")),
            ),
        )
        self._staging = Staging(directory / "evidence", release=_NEW)
        self._observer: Observer | None = None
        self._readers = DatabaseLoad(
            self.database.database.address,
            directory / "readers",
            readers=1,
            writers=0,
            read_pause_s=_READ_PAUSE_S,
            max_duration_s=_MAX_DURATION_S,
        )

    def start(self) -> None:
        """Bring application and database up, each with its users."""
        self.database.start()
        self._parts.callback(self.database.stop)
        self._observer = Observer(self.database)
        self._readers.start()
        self._parts.callback(self._readers.stop)
        self.application.start()
        self._parts.callback(self.application.stop)
        self._parts.enter_context(
            Load(
                self.application.url,
                _REQUESTS_PER_S,
                self._directory / "load",
                max_duration_s=_MAX_DURATION_S,
            )
        )

    def stop(self) -> None:
        """Leave nothing behind."""
        self._parts.close()

    def prepare(self) -> None:
        """Save the blocks of the application, of the database, and of the environment."""
        save_blocks(self.application.fleet)
        save_database(self.database.database)
        save_environment(Environment(name=_ENVIRONMENT, monitoring=MONITORING))
        self._staging.save()

    def deploy(self) -> None:
        """Release all three; the failing release takes itself back.

        Raises:
            LabError: the failing release went through.
        """
        from flows.guard import TakenBackError  # noqa: PLC0415 - only a child talks to Prefect
        from flows.release import release  # noqa: PLC0415

        try:
            release(self.change, environment=_ENVIRONMENT)
        except TakenBackError:
            if self._is_bad:
                return
            raise
        if self._is_bad:
            raise LabError("a release whose last component answers only errors went through")

    def snapshot(self) -> dict[str, Any]:
        """Return all of the application and the database, failed reads, locks, and the runs that watch.

        Raises:
            LabError: it was not started, or something cannot be read.
        """
        if not self._observer:
            raise LabError("the database was not started")
        return {
            "application": self.application.observed(),
            "database": self._observer.look(),
            "failed_reads": self._readers.figures().failed,
            **self._staging.seen(),
        }
