"""Remove vector indexes: what a deployment made, whole or not, and what was kept for its way back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from psycopg import errors, sql

from rules.database import Database, QualifiedName
from rules.database_plan import DropOldIndex
from rules.database_undo import RemoveIndex
from rules.errors import StepFailedError, UndoFailedError
from tasks.postgres import Session, connection, end_sessions, in_short_tries, quoted
from tasks.vector_catalog import index_state

log = logging.getLogger(__name__)


def remove_index(database: Database, step: RemoveIndex, *, deployment: str) -> None:
    """Remove an index that this deployment made, whole or not; first end what a dead deployer still builds.

    Raises:
        UndoFailedError: what has that name is on another table; it was left alone.
        StepFailedError: somebody still used it, or a lock was not to be had; says what is left.
        DatabaseError: see `connection`.
    """
    end_sessions(database, deployment=deployment)
    _drop(database, step.index, step.table, is_partitioned=step.is_partitioned, deployment=deployment)


def drop_old_index(
    database: Database, finish: DropOldIndex, *, deployment: str, heed: Callable[[], None] = lambda: None
) -> None:
    """Drop what was kept through the bake: concurrently, or a partitioned one in short tries.

    Args:
        database: which.
        finish: what is dropped.
        deployment: for whom it was kept.
        heed: asked before each try to drop what is still there; may raise to leave it.

    Raises:
        UndoFailedError: what has that name is on another table; it was left alone.
        StepFailedError: somebody still used it, or a lock was not to be had; says what is left.
        DatabaseError: see `connection`.
    """
    _drop(
        database,
        finish.index,
        finish.table,
        is_partitioned=finish.is_partitioned,
        deployment=deployment,
        heed=heed,
    )


def _drop(
    database: Database,
    index: QualifiedName,
    table: QualifiedName,
    *,
    is_partitioned: bool,
    deployment: str,
    heed: Callable[[], None] = lambda: None,
) -> None:
    with connection(database, deployment=deployment, autocommit=True) as session:
        state = index_state(session, index)
        if state is None:
            return
        if state.found.table != table:
            raise UndoFailedError(
                f"{index} is on {state.found.table}, not on {table}: it is not ours and was left alone. Look "
                "at both, and remove by hand what should not be there."
            )
        heed()
        if not is_partitioned:
            drop_concurrently(session, index, patience_s=database.lock.patience_s)
            return
    statement = sql.SQL("DROP INDEX IF EXISTS {}").format(quoted(index))

    def work(session: Session) -> None:
        session.execute(statement)

    in_short_tries(database, work, deployment=deployment, what=f"dropping {index}", heed=heed)
    log.info("dropped %s and its parts", index)


def drop_concurrently(session: Session, index: QualifiedName, *, patience_s: float) -> None:
    """Drop an index that nobody waits for; gone already is fine.

    Args:
        session: one that commits each statement.
        index: no partitioned one.
        patience_s: how long each transaction that still uses it is waited for.

    Raises:
        StepFailedError: one of those did not end; the index serves nobody and can be dropped again.
    """
    try:
        session.execute("SELECT set_config('lock_timeout', %s, false)", (f"{patience_s * 1000:.0f}ms",))
        session.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(quoted(index)))
    except errors.LockNotAvailable as error:
        raise StepFailedError(
            f"{index} is still used by a transaction that did not end within {patience_s:g} s: it is left, "
            "and serves nobody. Let that transaction end (see pg_stat_activity), and try again."
        ) from error
    finally:
        if not session.broken:
            session.execute("SELECT set_config('lock_timeout', '0', false)")
    log.info("dropped %s", index)
