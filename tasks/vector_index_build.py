"""Build a vector index concurrently: watched while it is built, and hidden until it is swapped in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import psycopg

from rules.database import Database
from rules.database_plan import BuildIndex
from rules.errors import DeployError, StepFailedError, WorldMovedError
from rules.index_build import BuildMemory, BuildProgress, build_memory, done_ratio
from tasks.index_visibility import hide, mark_built
from tasks.postgres import Session, connection, end_sessions, error_words
from tasks.vector_catalog import at_home, index_state, memory_facts
from tasks.vector_index import create_statement
from tasks.vector_index_removal import drop_concurrently

log = logging.getLogger(__name__)
_POLL_S = 1.0
_MIB = 1024**2

_ROWS = """
SELECT CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE
    (pg_relation_size(c.oid) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)) / %(row_bytes)s END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %(table)s
"""
_PROGRESS = """
SELECT p.phase, coalesce(p.blocks_done, 0), coalesce(p.blocks_total, 0),
    'pid ' || nullif(p.current_locker_pid, 0)
        || coalesce(' (' || other.application_name || ' of ' || other.usename || ', ' || other.state
        || ', in a transaction that is '
        || extract(epoch FROM clock_timestamp() - other.xact_start)::numeric(12, 1) || ' s old)', '')
FROM pg_stat_progress_create_index AS p
LEFT JOIN pg_stat_activity AS other ON other.pid = nullif(p.current_locker_pid, 0)
WHERE p.pid = %s
"""


def _nothing() -> None:
    """Heed nothing."""


def _tell_nobody(_: BuildProgress) -> None:
    """Keep progress to oneself."""


def build_index(
    database: Database,
    action: BuildIndex,
    *,
    deployment: str,
    progress: Callable[[BuildProgress], None] = _tell_nobody,
    heed: Callable[[], None] = _nothing,
    poll_s: float = _POLL_S,
) -> None:
    """Build the index on one leaf beside the old one, and hide it; one that is whole already is kept.

    Nobody waits for it. It waits for transactions that are older than its phases, however long they take.

    Args:
        database: which.
        action: what is built.
        deployment: for whom.
        progress: told about once in `poll_s` how far it is.
        heed: asked first of all, and as often; when it raises, the build is cancelled and what there is of it
            is dropped.
        poll_s: seconds between two looks.

    Raises:
        WorldMovedError: another index has this name.
        StepFailedError: the build failed; what there was of it is dropped.
        DatabaseError: see `connection`.
    """
    heed()  # one that was fenced off must not begin again when it is retried, nor end who goes on with it
    end_sessions(database, deployment=deployment)
    index = action.partition.index
    with connection(database, deployment=deployment, autocommit=True) as session:
        at_home(session)
        state = index_state(session, index)
        if state and (state.found.definition, state.found.table) != (
            action.definition,
            action.partition.table,
        ):
            raise WorldMovedError(
                f"{index} is {state.found.definition}, not {action.definition}: it was left alone. "
                "Deploy again."
            )
        if state and not state.is_whole:
            log.info("an earlier build of %s was cut short: it is dropped and built anew", index)
            drop_concurrently(session, index, patience_s=database.lock.patience_s)
        if not state or not state.is_whole:
            build = _Build(database, action, session, deployment=deployment, tell=progress, heed=heed)
            build.run(poll_s)
        if not state or not state.is_built:
            with session.transaction():
                hide(session, [index])
                mark_built(session, index)


class _Build:
    """One build: its session works in a thread, while another session looks."""

    def __init__(
        self,
        database: Database,
        action: BuildIndex,
        session: Session,
        *,
        deployment: str,
        tell: Callable[[BuildProgress], None],
        heed: Callable[[], None],
    ) -> None:
        self.database, self.action, self.session = database, action, session
        self.deployment, self.tell, self.heed = deployment, tell, heed
        self.index = action.partition.index
        self.notices: list[str] = []
        self._most = 0.0

    def run(self, poll_s: float) -> None:
        """Build it, and once more without workers where their shared memory does not fit."""
        rows = self.session.execute(
            _ROWS, {"table": self.action.partition.table, "row_bytes": 4 * self.action.parts.dimensions + 40}
        ).fetchone()
        memory = build_memory(rows[0] if rows else 0, self.action.parts, memory_facts(self.session))
        self.session.add_notice_handler(self._notice)
        try:
            try:
                self._build(memory, poll_s)
            except psycopg.errors.DiskFull as error:  # /dev/shm, which containers keep small
                if not memory.workers:
                    raise
                self.notices.append(f"built without workers: {error_words(error)}")
                log.warning("%s: %s", self.index, self.notices[-1])
                self._drop()
                self._build(memory.model_copy(update={"workers": 0}), poll_s)
        except psycopg.Error as error:
            left = self._drop()
            raise StepFailedError(f"{self.index} was not built: {error_words(error)}. {left}") from error
        except BaseException:
            log.warning("the build of %s was stopped. %s", self.index, self._drop())
            raise

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.message_primary:
            self.notices.append(notice.message_primary)

    def _build(self, memory: BuildMemory, poll_s: float) -> None:
        log.info(
            "building %s with maintenance_work_mem %s MB and up to %s workers; about %s MB are needed",
            self.index,
            memory.maintenance_work_mem_bytes // _MIB,
            memory.workers,
            memory.needed_bytes // _MIB,
        )
        _give(self.session, memory)
        statement = create_statement(
            self.index, self.action.partition.table, self.action.parts, how="CONCURRENTLY"
        )
        with (
            connection(self.database, deployment=self.deployment, autocommit=True) as observer,
            ThreadPoolExecutor(1, "build-index") as pool,
        ):
            building = pool.submit(self.session.execute, statement)
            try:
                while not wait([building], timeout=poll_s).done:
                    self.tell(self._progress(observer))
                    self.heed()
            finally:
                self._cancel(observer, building)
        building.result()
        self.tell(BuildProgress(index=self.index, phase="done", done_ratio=1.0, notices=tuple(self.notices)))

    def _progress(self, observer: Session) -> BuildProgress:
        row = observer.execute(_PROGRESS, (self.session.info.backend_pid,)).fetchone()
        phase, done, total, waits_for = row or ("starting", 0, 0, None)
        if waits_for:
            log.info("%s: %s: waits for %s", self.index, phase, waits_for)
        ratio = done_ratio(phase, blocks_done=done, blocks_total=total)
        if ratio is not None:  # the server's view of a phase that ends can fall back for a moment
            ratio = self._most = max(self._most, ratio)
        return BuildProgress(
            index=self.index,
            phase=phase,
            done_ratio=ratio,
            blocks_done=done,
            blocks_total=total,
            waits_for=waits_for,
            notices=tuple(self.notices),
        )

    def _cancel(self, observer: Session, building: Future[psycopg.Cursor[tuple[object, ...]]]) -> None:
        """End a build that goes on; the session is free again after it."""
        while not building.done():
            try:
                observer.execute("SELECT pg_cancel_backend(%s)", (self.session.info.backend_pid,))
            except psycopg.Error:  # whoever closes the session ends its statement, a little later
                self.session.cancel_safe()
            wait([building], timeout=1.0)

    def _drop(self) -> str:
        """Drop what there is of the index, and say how that went."""
        try:
            drop_concurrently(self.session, self.index, patience_s=self.database.lock.patience_s)
        except (psycopg.Error, DeployError) as error:
            return f"Part of it is left, which serves nobody, and is dropped by the way back: {error}"
        return "Nothing of it is left."


def _give(session: Session, memory: BuildMemory) -> None:
    settings = {
        "maintenance_work_mem": f"{memory.maintenance_work_mem_bytes // 1024}kB",
        "max_parallel_maintenance_workers": str(memory.workers),
        # long vectors are stored apart, so that their table looks too small for workers
        "min_parallel_table_scan_size": "0",
    }
    for name, value in settings.items():
        session.execute("SELECT set_config(%s, %s, false)", (name, value))
