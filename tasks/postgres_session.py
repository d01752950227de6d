"""Sessions of PostgreSQL that end with the process that opened them, and errors of it in our words."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from rules.continued import continued
from rules.database import Database, DatabaseAddress
from rules.errors import DeployError

log = logging.getLogger(__name__)

#: A session of a database.
Session = psycopg.Connection[tuple[Any, ...]]

_CONNECT_TIMEOUT_S = 10
_LONGEST_NAME_BYTES = 63
# keepalives are not sent while data waits to be acknowledged: a dead network would then hang for minutes
_TCP_USER_TIMEOUT_MS = 25_000
_DATA_EXCEPTION = "22"
_END_TIMEOUT_S = 15.0
_END_OTHERS = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = ANY(%s) AND pid <> pg_backend_pid()
"""
# Given when connecting, so that a role's own settings do not count: a lock_timeout of its own would leave
# each index half built, and a session that its client has left must end by itself.
_SESSION = {
    "client_connection_check_interval": "1000",
    "idle_in_transaction_session_timeout": "60s",
    "lock_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class DatabaseError(DeployError):
    """PostgreSQL refused a statement: carries its `sqlstate`, None where there is none."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(message)


class DatabaseUnreachableError(DatabaseError):
    """PostgreSQL cannot be reached, or was lost."""


def application_name(deployment: str) -> str:
    """Return how sessions of a deployment are told from all others: at most 63 bytes, and its own."""
    name = f"sovereign-{deployment}"
    if len(name.encode()) <= _LONGEST_NAME_BYTES and name.isascii() and name.isprintable():
        return name
    digest = hashlib.sha256(deployment.encode()).hexdigest()[:32]
    return f"sovereign-{digest}"


@contextmanager
def connection(
    database: Database,
    *,
    deployment: str,
    autocommit: bool = False,
    read_only: bool = False,
    statement_timeout_s: float | None = None,
) -> Iterator[Session]:
    """Connect; at the end commit, or roll back after an exception, and disconnect.

    The server's notices are logged. The session ends about a second after its process was killed, also in
    the middle of a statement, and after a minute of idling in a transaction.

    Args:
        database: which.
        deployment: for whom; see `end_sessions`.
        autocommit: whether each statement is a transaction.
        read_only: whether the server refuses to change anything.
        statement_timeout_s: of each statement; None: none.

    Raises:
        DatabaseUnreachableError: it cannot be reached, or was lost: whether the last statement took effect
            is then not known.
        DatabaseError: the server refused a statement and the caller let it through.
    """
    opened = _connect(
        database.address, _options(read_only=read_only, statement_timeout_s=statement_timeout_s), deployment
    )
    opened.autocommit = autocommit
    opened.prepare_threshold = None  # a plan that was made under other settings must not survive them
    opened.add_notice_handler(_log_notice)
    try:
        with opened:
            yield opened
    except psycopg.Error as error:
        raise _as_ours(error, database.address, lost=opened.broken or _ends_session(error)) from error


def end_sessions(database: Database, *, deployment: str) -> int:
    """End all other sessions of `deployment`, on any database of the server; return how many there were.

    They are what a killed process left. What they had open is rolled back, and an index that was being
    built concurrently is left invalid. Sessions of this process are ended too, and those of the failed
    deployments that this one continues.

    Raises:
        DatabaseError: they were told to end but did not in time, or belong to another role.
        DatabaseUnreachableError: the server cannot be reached.
    """
    ended: set[int] = set()
    names = [application_name(name) for name in continued(deployment)]
    deadline = time.monotonic() + _END_TIMEOUT_S
    with connection(database, deployment=deployment, autocommit=True) as session:
        while rows := session.execute(_END_OTHERS, (names,)).fetchall():
            ended |= {pid for pid, _ in rows}
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"sessions {sorted(pid for pid, _ in rows)} of {deployment} were told to end and still "
                    f"run after {_END_TIMEOUT_S:g} s: what they do may take effect. Look at pg_stat_activity."
                )
            time.sleep(0.02)
    if ended:
        log.info("ended sessions that %s had left: %s", deployment, sorted(ended))
    return len(ended)


def error_words(error: psycopg.Error) -> str:
    """Return what the server said, with its sqlstate; without what quotes users' rows."""
    if not error.sqlstate:
        return " ".join(str(error).split()).rstrip(".")
    hint = f" (hint: {error.diag.message_hint})" if error.diag.message_hint else ""
    said = error.diag.message_primary or ""
    if error.sqlstate.startswith(_DATA_EXCEPTION):  # such as: invalid input syntax for type integer: "…"
        said = re.sub(r'".*"', '"…"', said, flags=re.DOTALL)
    return f"{said}{hint}, sqlstate {error.sqlstate}"


def _connect(address: DatabaseAddress, options: str, deployment: str) -> Session:
    if address.passfile:
        _refuse_open_passfile(address.passfile)
    try:
        return psycopg.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            dbname=address.database,
            passfile=address.passfile,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name=application_name(deployment),
            client_encoding="UTF8",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=_TCP_USER_TIMEOUT_MS,
            options=options,
        )
    except psycopg.Error as error:
        raise DatabaseUnreachableError(
            f"{_place(address)} cannot be reached: {error_words(error)}. Nothing was changed.",
            sqlstate=error.sqlstate,
        ) from error


def _options(*, read_only: bool, statement_timeout_s: float | None) -> str:
    settings = {
        **_SESSION,
        "default_transaction_read_only": "on" if read_only else "off",
        "statement_timeout": str(milliseconds(statement_timeout_s or 0)),
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _refuse_open_passfile(path: str) -> None:
    """Refuse a file that libpq would pass over without a word."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DatabaseUnreachableError(
            f"the passfile {path} cannot be read: {error.strerror}. Nothing was changed."
        ) from error
    mode = stat.S_IMODE(found.st_mode)
    wrong = []
    if not stat.S_ISREG(found.st_mode):
        wrong.append("is no file")
    if found.st_uid != os.geteuid():
        wrong.append(f"belongs to user {found.st_uid}, not to {os.geteuid()}")
    if mode not in {0o600, 0o400}:
        wrong.append(f"has mode {mode:04o}, not 0600 or 0400")
    if wrong:
        raise DatabaseUnreachableError(
            f"the passfile {path} {' and '.join(wrong)}: its password is not used. Nothing was changed. "
            "Make it readable by its owner alone."
        )


def _place(address: DatabaseAddress) -> str:
    return f"PostgreSQL on {address.host}:{address.port}, database {address.database}"


def _log_notice(notice: psycopg.errors.Diagnostic) -> None:
    log.info("PostgreSQL says: %s: %s", notice.severity, notice.message_primary)


def _ends_session(error: psycopg.Error) -> bool:
    """Return whether the server, stopping or told to, is about to end the session."""
    return (error.sqlstate or "").startswith(("08", "57P"))


def _as_ours(error: psycopg.Error, address: DatabaseAddress, *, lost: bool) -> DatabaseError:
    if lost:
        return DatabaseUnreachableError(
            f"{_place(address)} was lost: {error_words(error)}. What was not committed is rolled back; "
            "whether the last statement took effect is not known.",
            sqlstate=error.sqlstate,
        )
    return DatabaseError(
        f"{_place(address)}: {error_words(error)}. What was not committed is rolled back.",
        sqlstate=error.sqlstate,
    )


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds; 0, which means no limit, only for 0."""
    return max(1, round(seconds * 1000)) if seconds else 0
