"""What a statement does to tables and indexes that are there: exact locks, and which it writes anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import errors

from rules.migration import LockTaken, RehearsedStatement
from tasks.postgres import Session

#: What no write and no read waits for.
_HARMLESS = frozenset({"AccessShareLock", "RowShareLock"})
#: Of a relation the name, and the number of the file that holds it.
Relations = dict[int, tuple[str, int]]

# the migration decides on the search path: nothing here may depend on it
_RELATIONS = """
SELECT
    c.oid::bigint, n.nspname || '.' || c.relname,
    COALESCE(pg_catalog.pg_relation_filenode(c.oid), 0)::bigint
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_LOCKS = """
SELECT COALESCE(l.relation, 0)::bigint, l.mode, l.granted, l.locktype
FROM pg_catalog.pg_locks AS l
WHERE l.pid = %s AND (l.locktype <> 'relation' OR l.database = (
    SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()
))
"""
_HOLD_A_SNAPSHOT = """
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT pg_catalog.pg_backend_pid()
"""


def run_in_transaction(session: Session, statements: tuple[str, ...]) -> Iterator[RehearsedStatement]:
    """Run each statement in the session's transaction, and say what it did as soon as it has.

    Relations that the transaction itself makes are left out: nobody else can wait for them.

    Raises:
        psycopg.Error: the server refuses the statement that comes after the last one yielded.
    """
    pid = session.info.backend_pid
    before = _relations(session)
    files = {oid: number for oid, (_, number) in before.items()}
    held: set[tuple[int, str]] = set()
    for statement in statements:
        began = time.monotonic()
        session.execute(statement.encode(), prepare=False)
        took_s = time.monotonic() - began
        locks = _held(session, pid)
        now = {oid: number for oid, (_, number) in _relations(session).items() if oid in before}
        rewritten = [oid for oid, number in now.items() if files[oid] not in {0, number}]
        yield _rehearsed(statement, before, locks - held, rewritten=rewritten, took_s=took_s)
        held |= locks
        files |= now


def run_alone(session: Session, observer: Session, gate: Session, statement: str) -> RehearsedStatement:
    """Run a statement that no transaction may hold, and say what it did.

    Its locks are looked at while it runs. So that it cannot be over too soon to be seen, it meets an open
    snapshot, which whatever is done concurrently waits for, and which ends once it was seen waiting.

    Args:
        session: with autocommit.
        observer: another one, with autocommit.
        gate: another one, without.
        statement: what is run.

    Raises:
        psycopg.Error: the server refuses it.
    """
    before = _relations(observer)
    with _watched(observer, gate, session.info.backend_pid) as locks:
        began = time.monotonic()
        session.execute(statement.encode(), prepare=False)
        took_s = time.monotonic() - began
    now = _relations(observer)
    rewritten = [oid for oid, (_, old) in before.items() if oid in now and old not in {0, now[oid][1]}]
    return _rehearsed(statement, before, locks, rewritten=rewritten, took_s=took_s)


def needs_to_run_alone(sqlstate: str | None) -> bool:
    """Return whether a statement was refused, or stopped half-way, because it ran in a transaction."""
    return sqlstate in {errors.ActiveSqlTransaction.sqlstate, errors.InvalidTransactionTermination.sqlstate}


@contextmanager
def _watched(observer: Session, gate: Session, pid: int) -> Iterator[set[tuple[int, str]]]:
    """Collect the locks that the backend `pid` holds within the block: while it waits, if it does.

    What it takes for a moment before and after, to swap entries of the catalog, is seen by chance only.
    """
    seen: set[tuple[int, str]] = set()
    waiting: set[tuple[int, str]] = set()
    over = threading.Event()
    gate.execute(_HOLD_A_SNAPSHOT)

    def watch() -> None:
        with suppress(psycopg.Error):  # lost with its server: then the statement says so
            while not over.is_set():
                rows = observer.execute(_LOCKS, (pid,)).fetchall()
                held = _of_relations(rows)
                seen.update(held)
                if any(kind == "virtualxid" and not granted for _, _, granted, kind in rows):
                    waiting.update(held)
                    gate.rollback()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()
        gate.rollback()
        if waiting:
            seen.intersection_update(waiting)


def _relations(session: Session) -> Relations:
    return {oid: (name, number) for oid, name, number in session.execute(_RELATIONS).fetchall()}


def _held(session: Session, pid: int) -> set[tuple[int, str]]:
    return _of_relations(session.execute(_LOCKS, (pid,)).fetchall())


def _of_relations(rows: list[tuple[int, str, bool, str]]) -> set[tuple[int, str]]:
    return {
        (oid, mode)
        for oid, mode, granted, kind in rows
        if granted and kind == "relation" and mode not in _HARMLESS
    }


def _rehearsed(
    statement: str, before: Relations, locks: set[tuple[int, str]], *, rewritten: list[int], took_s: float
) -> RehearsedStatement:
    taken = sorted((before[oid][0], mode) for oid, mode in locks if oid in before)
    return RehearsedStatement(
        sql=statement,
        locks=tuple(LockTaken(relation=name, mode=mode) for name, mode in taken),
        rewrites=tuple(sorted(before[oid][0] for oid in rewritten)),
        duration_s=took_s,
    )
