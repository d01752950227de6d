"""Statements that PostgreSQL runs in transactions of its own, and the invalid indexes that they leave."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from rules.errors import StepFailedError
from tasks.postgres_session import Session
from tasks.sql_lexer import Token, tokens
from tasks.sql_statements import shape

log = logging.getLogger(__name__)

_CLEAN_UP_TIMEOUT = "15s"
_HEED_EVERY_S = 1.0
_CANCEL_TIMEOUT_S = 10.0
_PATIENT = re.compile(
    r"(?:CREATE (?:UNIQUE )?|DROP )INDEX CONCURRENTLY\b|REINDEX (?:[^']* )?CONCURRENTLY\b"
    r"|VACUUM\b(?!.*\bFULL\b)|ANALYZE\b"
)
# One that is being built is not valid either, but nobody's leftover.
_INVALID = """
SELECT namespace.nspname, class.relname
FROM pg_index AS index
JOIN pg_class AS class ON class.oid = index.indexrelid
JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
WHERE index.indrelid = to_regclass(%s)
AND NOT (index.indisvalid AND index.indisready AND index.indislive)
AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS progress WHERE progress.index_relid = class.oid)
"""
_IS_VALID = """
SELECT index.indisvalid AND index.indisready AND index.indislive
FROM pg_index AS index JOIN pg_class AS class ON class.oid = index.indexrelid
WHERE index.indrelid = to_regclass(%s) AND class.relname = %s
"""


class BuiltIndex(NamedTuple):
    """What a CREATE INDEX CONCURRENTLY builds.

    Attributes:
        name: of the index, in its table's schema; None: the server chooses one.
        table: its name as SQL.
    """

    name: str | None
    table: str


def keeps_nobody_waiting(statement: str) -> bool:
    """Return whether a statement may take as long as it likes, its waits too: readers and writers go on.

    A limit of time would leave half of what it does.
    """
    return bool(_PATIENT.match(shape(statement)))


def run_patiently(session: Session, statement: str, *, heed: Callable[[], None] = lambda: None) -> None:
    """Run one such statement in autocommit; if it builds an index, that is valid afterwards.

    An invalid index of that name, as a killed build leaves it, is dropped first: IF NOT EXISTS would take it
    for one that works. One that this build leaves when it fails is dropped too, because a unique one would
    refuse users' rows. What `heed` stops is left as it is then: the way back comes at once.

    Args:
        session: in autocommit, and nobody else's meanwhile.
        statement: see `keeps_nobody_waiting`.
        heed: called about once a second while it runs; when it raises, the statement is cancelled.

    Raises:
        StepFailedError: the index is there but not valid: somebody else builds it, or it is another table's.
        psycopg.Error: the server refused it.
    """
    index = index_built_by(statement)
    if index is None:
        _execute(session, statement, heed)
        return
    leftovers = _invalid(session, index)
    for schema, name in leftovers:
        if name == index.name:
            log.warning(
                "%s.%s is the invalid rest of a build that died: dropped and built anew", schema, name
            )
            _execute(session, _drop(schema, name), heed)
    try:
        _execute(session, statement, heed)
    except psycopg.Error:
        _clean_up(session, index, before=leftovers)
        raise
    if index.name is not None and session.execute(_IS_VALID, (index.table, index.name)).fetchone() != (True,):
        raise StepFailedError(
            f"there is an index {index.name}, but not a valid one on {index.table}: somebody else builds it, "
            "or it belongs to another table. It was left as it is. Rename it, or wait, and deploy again."
        )


def _execute(session: Session, statement: str | sql.Composed, heed: Callable[[], None]) -> None:
    """Execute it in a thread, while this one heeds what comes; the session is free afterwards."""
    with ThreadPoolExecutor(1, "patient-statement") as pool:
        running = pool.submit(session.execute, statement)
        try:
            while not wait([running], timeout=_HEED_EVERY_S).done:
                heed()
        finally:
            _cancel(session, running)
    running.result()


def _cancel(session: Session, running: Future[psycopg.Cursor[tuple[Any, ...]]]) -> None:
    """End a statement that goes on; the session is free afterwards."""
    # again and again: the statement may not have begun when it is first cancelled
    while not running.done():
        with suppress(psycopg.Error):  # a server that is out of reach loses the session, a little later
            session.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
        wait([running], timeout=_HEED_EVERY_S)


def index_built_by(statement: str) -> BuiltIndex | None:
    """Return what a CREATE INDEX CONCURRENTLY builds; None: the statement is another one."""
    if not re.match(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY\b", shape(statement)):
        return None
    words = [token for token in tokens(statement) if token.kind not in {"space", "comment"}]
    keywords = [token.text.upper() if token.kind == "word" else "" for token in words]
    after = keywords.index("CONCURRENTLY") + 1
    if keywords[after : after + 3] == ["IF", "NOT", "EXISTS"]:
        after += 3
    on = keywords.index("ON", after)
    start = on + 1 + (keywords[on + 1] == "ONLY")
    end = start + 1
    while end < len(words) and words[end].text == ".":
        end += 2
    return BuiltIndex(
        name=_folded(words[after]) if on > after else None,
        table="".join(token.text for token in words[start:end]),
    )


def _folded(token: Token) -> str:
    """Return a name as the catalog has it."""
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower()


def _invalid(session: Session, index: BuiltIndex) -> set[tuple[str, str]]:
    return {(schema, name) for schema, name in session.execute(_INVALID, (index.table,)).fetchall()}


def _drop(schema: str, name: str) -> sql.Composed:
    return sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name))


def _clean_up(session: Session, index: BuiltIndex, *, before: set[tuple[str, str]]) -> None:
    """Drop what a failed build has left; what cannot be dropped soon is left to the way back."""
    with suppress(psycopg.Error):
        session.execute("SELECT set_config('statement_timeout', %s, false)", (_CLEAN_UP_TIMEOUT,))
        for schema, name in _invalid(session, index):
            # an index that was hidden from the planner on purpose is not valid either
            if (schema, name) not in before or name == index.name:
                session.execute(_drop(schema, name))
                log.info("the failed build's invalid index %s.%s was dropped", schema, name)
