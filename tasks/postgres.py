"""Connections to PostgreSQL, and changes in short tries: nobody queues for long behind a lock we wait for."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from rules.database import Database, LockPolicy, QualifiedName
from rules.errors import StepFailedError
from rules.migration import VersionTable
from tasks.blockers import Blocker, LockWatch, advisory_holders, in_words, lock_watch
from tasks.postgres_session import (
    DatabaseError,
    DatabaseUnreachableError,
    Session,
    application_name,
    connection,
    end_sessions,
    error_words,
    milliseconds,
)

__all__ = [
    "DatabaseError",
    "DatabaseUnreachableError",
    "Session",
    "application_name",
    "connection",
    "end_sessions",
    "error_words",
    "in_our_turn",
    "in_short_tries",
    "quoted",
    "version_rows",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
_LOCK_NOT_AVAILABLE = "55P03"
_DEADLOCK = "40P01"
_CANCELLED = "57014"
#: "sovereign-deploy" in 63 bits; each database has advisory locks of its own.
_ADVISORY_KEY = int.from_bytes(hashlib.sha256(b"sovereign-deploy").digest()[:8], "big") >> 1
# Waiting for longer than deadlock_timeout is what makes autovacuum give way. It would never do so for tries
# that are shorter; to change it is for those who may.
_SET_LIMITS = """
SELECT set_config('lock_timeout', %(lock_ms)s, %(local)s),
    set_config('statement_timeout', %(statement_ms)s, %(local)s),
    (SELECT set_config('deadlock_timeout', %(deadlock_ms)s, %(local)s)
     WHERE has_parameter_privilege('deadlock_timeout', 'SET'))
"""


class _BlockedError(Exception):
    """A try that got no lock."""

    def __init__(self, blockers: tuple[Blocker, ...]) -> None:
        self.pids = {blocker.pid for blocker in blockers}
        super().__init__(in_words(blockers))


def in_short_tries(
    database: Database,
    work: Callable[[Session], T],
    *,
    deployment: str,
    what: str,
    heed: Callable[[], None] = lambda: None,
    exclusive: bool = True,
    in_transaction: bool = True,
) -> T:
    """Do `work` in tries that wait for locks only briefly; return what it returns.

    Each try is one transaction. One that gets no lock is rolled back, and those who block are logged by
    name; after a pause, in which readers get through, comes the next. In all its statements together a try
    waits no longer than `database.lock` says while readers may queue behind it.

    Args:
        database: which, with how locks are waited for.
        work: what is done; it gets the session, and lets psycopg's own errors through.
        deployment: for whom.
        what: this work in words, for messages.
        heed: called before each try, once its session is there; may raise to give up.
        exclusive: whether it holds the advisory lock of all our changes of this database.
        in_transaction: False: for a single statement that must not run in a transaction.

    Raises:
        StepFailedError: no try got its locks within `database.lock.patience_s`; nothing was changed.
        DatabaseError: the server refused a statement; the try was rolled back.
        DatabaseUnreachableError: see `connection`.
    """

    def attempt(session: Session, observer: Session) -> T:
        limits = _limits(database, next(timeouts_ms), local=in_transaction)
        longest_s = int(limits["lock_ms"]) / 1000
        with lock_watch(observer, session.info.backend_pid, longest_s=longest_s, what=what) as watch:
            return _try_once(session, work, limits, watch)

    timeouts_ms = _lock_timeouts_ms(database.lock)
    return _until_it_works(
        database, attempt, deployment=deployment, what=what, heed=heed, exclusive=exclusive
    )


def in_our_turn(
    database: Database,
    work: Callable[[Session], T],
    *,
    deployment: str,
    what: str,
    heed: Callable[[], None] = lambda: None,
    lock_timeout_s: float = 0.0,
) -> T:
    """Do `work` once, in no transaction and its statements without limits of time, holding our advisory lock.

    For what waits long for its locks and keeps nobody waiting meanwhile, such as CREATE INDEX CONCURRENTLY.
    Whom it waits for longer than ten seconds is logged by name.

    Args:
        database: which.
        work: what is done; see `in_short_tries`.
        deployment: for whom.
        what: this work in words, for messages.
        heed: called before each try to get the advisory lock; may raise to give up.
        lock_timeout_s: for each wait of it; where it ends, half of a statement may be left. 0: no limit.

    Returns:
        What `work` returns.

    Raises:
        StepFailedError: no advisory lock within `database.lock.patience_s`, and nothing was changed; or no
            lock within `lock_timeout_s`, and it says who was in the way.
        DatabaseError: the server refused a statement.
        DatabaseUnreachableError: see `connection`.
    """

    def attempt(session: Session, observer: Session) -> T:
        limit = str(milliseconds(lock_timeout_s))
        session.execute("SELECT set_config('lock_timeout', %s, false)", (limit,))
        with lock_watch(observer, session.info.backend_pid, longest_s=math.inf, what=what) as watch:
            try:
                return work(session)
            except psycopg.errors.LockNotAvailable as error:
                raise StepFailedError(
                    f"{what} got no lock within {lock_timeout_s:g} s. In its way was "
                    f"{in_words(watch.blockers)}. The statement that waited may be half done; it can be "
                    "repeated. Let that session end, or end it with pg_terminate_backend."
                ) from error

    return _until_it_works(database, attempt, deployment=deployment, what=what, heed=heed, exclusive=True)


def quoted(name: QualifiedName) -> sql.Composed:
    """Return a table's or index's name as SQL."""
    return sql.Composed([sql.Identifier(*name.split(".", 1))])


def version_rows(
    database: Database | Session, table: VersionTable, *, deployment: str = ""
) -> tuple[str, ...] | None:
    """Return what a version table holds, sorted; None: there is no such table.

    Args:
        database: which; or a session of it, with its transaction.
        table: where the runner keeps what is applied.
        deployment: for whom, where it has to connect.

    Raises:
        DatabaseError: the table has no such column, or may not be read (psycopg's own error in a session).
        DatabaseUnreachableError: see `connection`.
    """
    if isinstance(database, Database):
        with connection(database, deployment=deployment, autocommit=True, read_only=True) as session:
            return version_rows(session, table)
    found = database.execute("SELECT to_regclass(%s)", (quoted(table.table).as_string(database),)).fetchone()
    if not found or found[0] is None:
        return None
    query = sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(table.column), quoted(table.table))
    return tuple(sorted(row[0] for row in database.execute(query).fetchall()))


def _until_it_works(
    database: Database,
    attempt: Callable[[Session, Session], T],
    *,
    deployment: str,
    what: str,
    heed: Callable[[], None],
    exclusive: bool,
) -> T:
    """Attempt again and again while others are in the way, and say who they are."""
    give_up_at = time.monotonic() + database.lock.patience_s
    told: set[int] | None = None
    with _two_sessions(database, deployment) as (session, observer):
        while True:
            # only now: who recovers ends the sessions that are there, and whoever connects later is told
            heed()
            try:
                with _our_turn(session, observer, exclusive=exclusive):
                    return attempt(session, observer)
            except _BlockedError as blocked:
                if time.monotonic() + database.lock.pause_s > give_up_at:
                    raise StepFailedError(
                        f"{what} got no lock within {database.lock.patience_s:g} s. In its way was "
                        f"{blocked}. Nothing of it was changed. Let that session end, or end it with "
                        "pg_terminate_backend, and deploy again."
                    ) from blocked
                if blocked.pids != told:  # once each, not at every try
                    log.warning("%s waits for %s", what, blocked)
                told = blocked.pids
            time.sleep(database.lock.pause_s)


@contextmanager
def _two_sessions(database: Database, deployment: str) -> Iterator[tuple[Session, Session]]:
    """One that works, and one that sees who blocks it."""
    with (
        connection(database, deployment=deployment, autocommit=True, read_only=True) as observer,
        # the inner one's errors are its own: whether it was lost is seen there
        connection(database, deployment=deployment, autocommit=True) as session,
    ):
        yield session, observer


@contextmanager
def _our_turn(session: Session, observer: Session, *, exclusive: bool) -> Iterator[None]:
    """Hold the advisory lock, if it is free.

    Never waited for in the server: a session that waits there has a snapshot, which CREATE INDEX CONCURRENTLY
    waits for in turn while it holds the lock.
    """
    if not exclusive:
        yield
        return
    row = session.execute("SELECT pg_try_advisory_lock(%s)", (_ADVISORY_KEY,)).fetchone()
    if not (row and row[0]):
        raise _BlockedError(advisory_holders(observer, _ADVISORY_KEY))
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a session that is lost has freed it
            session.execute("SELECT pg_advisory_unlock(%s)", (_ADVISORY_KEY,))


def _try_once(session: Session, work: Callable[[Session], T], limits: dict[str, Any], watch: LockWatch) -> T:
    try:
        if limits["local"]:
            with session.transaction():
                session.execute(_SET_LIMITS, limits)
                return work(session)
        session.execute(_SET_LIMITS, limits)
        try:
            return work(session)
        finally:
            with suppress(psycopg.Error):
                session.execute("RESET ALL")
    except psycopg.Error as error:
        is_ours = watch.has_cancelled and error.sqlstate == _CANCELLED
        if is_ours or error.sqlstate in {_LOCK_NOT_AVAILABLE, _DEADLOCK}:
            raise _BlockedError(watch.blockers) from error
        raise


def _limits(database: Database, lock_timeout_ms: int, *, local: bool) -> dict[str, Any]:
    return {
        "lock_ms": str(lock_timeout_ms),
        "deadlock_ms": str(max(1, lock_timeout_ms // 2)),
        "statement_ms": str(milliseconds(database.statement_timeout_s)),
        "local": local,
    }


def _lock_timeouts_ms(policy: LockPolicy) -> Iterator[int]:
    timeout_ms = float(policy.first_ms)
    while True:
        yield int(timeout_ms)
        timeout_ms = min(policy.longest_ms, timeout_ms * policy.growth)
