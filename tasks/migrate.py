"""Run a migration, and take it back: whole or not at all, its locks waited for in short tries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from rules.database import Database
from rules.database_plan import ApplyMigration
from rules.database_undo import RevertMigration
from rules.errors import StepFailedError, UndoFailedError, WorldMovedError
from rules.migration import Migration, VersionTable
from tasks.blockers import without_values
from tasks.concurrent_index import keeps_nobody_waiting, run_patiently
from tasks.postgres import (
    DatabaseError,
    Session,
    end_sessions,
    in_our_turn,
    in_short_tries,
    version_rows,
)

__all__ = ["apply_migration", "is_applied", "revert_migration", "version_rows"]

log = logging.getLogger(__name__)

T = TypeVar("T")
_SHOWN_LETTERS = 200
_INTEGRITY_VIOLATED = "23"


def apply_migration(
    database: Database,
    action: ApplyMigration,
    *,
    deployment: str,
    heed: Callable[[], None] = lambda: None,
) -> None:
    """Run a migration and write it down in the version table; if it is there already, do nothing.

    A transactional one happens whole or not at all. Any other runs statement by statement, and is written
    down last: when it fails half-way, its way down, which is right also then, takes the rest back. What an
    earlier process of the deployment left running is ended first.

    Args:
        database: which.
        action: the migration, and what the version table holds after it.
        deployment: for whom; all other sessions of it are ended.
        heed: called before each try, before COMMIT, and each second of what may take its time; may raise to
            stop.

    Raises:
        WorldMovedError: the version table is not where the migration begins; nothing was changed.
        StepFailedError: it failed, or got no lock in time; says what is left.
        DatabaseUnreachableError: the server cannot be reached; nothing was changed.
    """
    migration, table = action.migration, action.version_table
    end_sessions(database, deployment=deployment)
    if version_rows(database, table, deployment=deployment) == action.revisions:
        log.info("migration %s is applied already", migration.revision)
        return
    what = f"migration {migration.revision}"
    way = _Way(database, table, what=what, deployment=deployment, heed=heed)
    _refuse_another_beginning(way, action)
    try:
        if migration.is_transactional:
            way.go_whole(migration.up, migration.record, action.revisions)
        else:
            way.go_step_by_step(migration.up)
            way.go_whole((), migration.record, action.revisions)
    except DatabaseError as error:
        raise StepFailedError(f"{way.words(error)} {_left_by(way, migration)}") from error


def revert_migration(database: Database, step: RevertMigration, *, deployment: str) -> None:
    """Take a migration back by its own way down; right if it never happened, half, or is back already.

    What the deployment left running is ended first. If the version table says that the migration is not
    applied, a transactional one has left nothing; of any other the way down is run all the same, because it
    may have died half-way.

    Raises:
        UndoFailedError: it has no way down, or that failed, or got no lock in time, or the version table
            holds what neither the migration nor its beginning explain; says what is left.
        DatabaseUnreachableError: the server cannot be reached; nothing was changed.
    """
    migration, table = step.migration, step.version_table
    end_sessions(database, deployment=deployment)
    rows = version_rows(database, table, deployment=deployment) or ()
    applied = migration.revision in rows
    if not applied and rows != step.revisions:
        raise UndoFailedError(
            f"{table.table} holds {_listed(rows)}: neither {migration.revision} nor what was there before, "
            f"{_listed(step.revisions)}. Somebody else migrated; nothing was changed. Take it back by hand."
        )
    if not applied and migration.is_transactional:
        return
    if migration.down is None:
        raise UndoFailedError(f"migration {migration.revision} has no way down; nothing was changed.")
    what = f"the way down of migration {migration.revision}"
    # nobody can stop a way back, so that it must not wait without end
    way = _Way(database, table, what=what, deployment=deployment, lock_timeout_s=database.lock.patience_s)
    try:
        _take_down(way, step, migration.down, applied=applied)
    except DatabaseError as error:
        raise UndoFailedError(f"{way.words(error)} {_left_by(way, migration)} Roll back again.") from error
    except (StepFailedError, WorldMovedError) as error:
        raise UndoFailedError(f"{error} It was on the way back: roll back again.") from error


def is_applied(database: Database, migration: Migration, table: VersionTable, *, deployment: str) -> bool:
    """Return whether the version table holds the migration itself; with alembic, only the newest is there.

    Raises:
        DatabaseError: see `tasks.postgres.version_rows`.
    """
    return migration.revision in (version_rows(database, table, deployment=deployment) or ())


def _take_down(way: _Way, step: RevertMigration, down: tuple[str, ...], *, applied: bool) -> None:
    if applied and (rows := way.foresee(step.migration.unrecord)) != step.revisions:
        raise WorldMovedError(
            f"after {way.what} {way.table.table} would hold {_listed(rows)}, not {_listed(step.revisions)}: "
            "somebody else migrated since. Nothing was changed; take it back by hand."
        )
    if step.migration.is_transactional:
        way.go_whole(down, step.migration.unrecord, step.revisions)
        return
    way.go_step_by_step(down)
    if applied:
        way.go_whole((), step.migration.unrecord, step.revisions)


def _refuse_another_beginning(way: _Way, action: ApplyMigration) -> None:
    try:
        rows = way.foresee(action.migration.record)
    except DatabaseError as error:
        if (error.sqlstate or "").startswith(_INTEGRITY_VIOLATED):
            raise WorldMovedError(
                f"{way.table.table} is not where {way.what} begins: {error} Nothing was changed. Plan anew."
            ) from error
        raise StepFailedError(f"{way.words(error)} Nothing was changed.") from error
    if rows != action.revisions:
        raise WorldMovedError(
            f"{way.table.table} is not where {way.what} begins: after it, it would hold {_listed(rows)}, not "
            f"{_listed(action.revisions)}. Somebody else migrated; nothing was changed. Make a new plan."
        )


def _left_by(way: _Way, migration: Migration) -> str:
    if migration.is_transactional:
        return "All of it is in one transaction: nothing of it stays unless the version table says so."
    return f"{way.done} of its statements are done and stay; that one may be half done."


def _listed(rows: tuple[str, ...]) -> str:
    return ", ".join(rows) or "nothing"


class _Way:
    """One way through a migration, up or down, and how far it came."""

    def __init__(
        self,
        database: Database,
        table: VersionTable,
        *,
        what: str,
        deployment: str,
        heed: Callable[[], None] = lambda: None,
        lock_timeout_s: float = 0.0,
    ) -> None:
        self.database, self.table, self.what = database, table, what
        self._deployment, self._heed, self._lock_timeout_s = deployment, heed, lock_timeout_s
        self.done, self.current = 0, ""

    def foresee(self, record: tuple[str, ...]) -> tuple[str, ...]:
        """Return what the version table would hold after `record`, without changing it."""

        def work(session: Session) -> tuple[str, ...]:
            with session.transaction(force_rollback=True):
                self._execute(session, record)
                return version_rows(session, self.table) or ()

        return self._in_short_tries(work)

    def go_whole(self, statements: tuple[str, ...], record: tuple[str, ...], want: tuple[str, ...]) -> None:
        """Run all of it in one transaction, and let it stand only if the version table then holds `want`."""

        def work(session: Session) -> None:
            self._execute(session, statements + record)
            if (rows := version_rows(session, self.table) or ()) != want:
                raise WorldMovedError(
                    f"after {self.what} {self.table.table} would hold {_listed(rows)}, not {_listed(want)}: "
                    "somebody else migrates too. All of it was rolled back. Make a new plan."
                )
            self._heed()  # it may have taken minutes, and after this comes COMMIT

        self._in_short_tries(work)

    def go_step_by_step(self, statements: tuple[str, ...]) -> None:
        """Run each statement by itself, outside a transaction."""
        for self.done, statement in enumerate(statements):
            self.current = statement
            if keeps_nobody_waiting(statement):
                in_our_turn(
                    self.database,
                    partial(run_patiently, statement=statement, heed=self._heed),
                    deployment=self._deployment,
                    what=self.what,
                    heed=self._heed,
                    lock_timeout_s=self._lock_timeout_s,
                )
            else:
                self._in_short_tries(partial(self._execute, statements=(statement,)), in_transaction=False)
        self.done = len(statements)

    def words(self, error: DatabaseError) -> str:
        """Return what failed: the statement up to its first value, and what the server says of it."""
        shown = without_values(self.current, letters=_SHOWN_LETTERS)
        return f"{self.what} failed at `{shown}`: {error}"

    def _execute(self, session: Session, statements: tuple[str, ...]) -> None:
        for self.current in statements:
            session.execute(self.current)

    def _in_short_tries(self, work: Callable[[Session], T], *, in_transaction: bool = True) -> T:
        return in_short_tries(
            self.database,
            work,
            deployment=self._deployment,
            what=self.what,
            heed=self._heed,
            in_transaction=in_transaction,
        )
