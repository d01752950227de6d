"""What a table holds, as two numbers: how many rows, and a checksum of them whatever their order."""

from __future__ import annotations

import logging
import time

from psycopg import sql

from rules.database import DeclaredTable, TableDigest
from rules.errors import InvalidRequestError
from rules.frozen import Frozen
from tasks.postgres import Session, quoted

log = logging.getLogger(__name__)

_SETTLE_S = 5.0
_SETTLE_POLL_S = 0.02
_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_IS_TABLE = "SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(%s)"
_OTHERS_TRANSACTIONS = """
SELECT l.virtualtransaction, l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.granted AND l.pid <> pg_backend_pid()
AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
"""


class Counted(Frozen):
    """Which of a table's columns and rows are summed up."""

    name: str
    columns: tuple[str, ...]
    append_only_by: str | None
    type_name: str = ""  # of `append_only_by`
    watermark: str | None = None  # None in an append-only table: it was empty, and all its rows are new
    gone: tuple[str, ...] = ()  # columns that an earlier reading had


def table_now(session: Session, table: DeclaredTable) -> Counted:
    """Return all columns of a table, and the largest value that now stands in the one it grows by.

    Raises:
        InvalidRequestError: there is no such table, or it does not grow by that column.
    """
    types = _columns(session, table.name)
    if session.execute(_IS_TABLE, (table.name,)).fetchone() != (True,):
        raise InvalidRequestError(
            f"There is no table {table.name}, which is declared to be kept. Nothing was touched. Correct the "
            "block's `tables`."
        )
    by = table.append_only_by
    if by is None:
        return Counted(name=table.name, columns=tuple(types), append_only_by=None)
    _refuse_wrong_order(session, table.name, by, types)
    # by the column itself, not by its text, which has the same name
    query = sql.SQL("SELECT {by}::text FROM {table} AS t WHERE {by} IS NOT NULL ORDER BY {by} DESC LIMIT 1")
    row = session.execute(query.format(by=sql.Identifier("t", by), table=quoted(table.name))).fetchone()
    return Counted(
        name=table.name,
        columns=tuple(types),
        append_only_by=by,
        type_name=types[by][0],
        watermark=row[0] if row else None,
    )


def table_as_before(session: Session, table: DeclaredTable, before: TableDigest) -> Counted | None:
    """Return the columns and the watermark that an earlier reading had; None: there is no such table."""
    types = _columns(session, table.name)
    if session.execute(_IS_TABLE, (table.name,)).fetchone() != (True,):
        return None
    by = table.append_only_by
    wanted = (*before.columns, by) if by else before.columns
    return Counted(
        name=table.name,
        columns=before.columns,
        append_only_by=by if by in types else None,
        type_name=types[by][0] if by and by in types else "",
        watermark=before.watermark,
        gone=tuple(dict.fromkeys(column for column in wanted if column not in types)),
    )


def digest(session: Session, table: Counted) -> TableDigest:
    """Count and sum up the rows of a table; its name is the checksum of one that has lost a column."""
    summed = sql.SQL("coalesce(sum(hashtextextended(ROW({})::text, 0)), 0)::text").format(
        sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    if table.gone:
        words = f"column {', '.join(table.gone)} is gone"
        summed = sql.SQL("{}::text").format(sql.Literal(words))
    query = sql.SQL("SELECT count(*), {} FROM {} WHERE {}").format(summed, quoted(table.name), _rows(table))
    rows, checksum = session.execute(query).fetchone() or (0, "")
    return TableDigest(rows=rows, checksum=checksum, columns=table.columns, watermark=table.watermark)


def let_writers_finish(session: Session) -> None:
    """Wait until all transactions that were open at the call have ended, five seconds at most.

    A transaction that drew its number or its time earlier than the newest row, and commits later, adds a
    row below the watermark.
    """
    waited_for = _others_transactions(session)
    deadline = time.monotonic() + _SETTLE_S
    while waited_for and time.monotonic() < deadline:
        time.sleep(_SETTLE_POLL_S)
        still = _others_transactions(session)
        waited_for = {name: pid for name, pid in still.items() if name in waited_for}
    if waited_for:
        log.warning(
            "sessions %s have been in a transaction for %g s: rows they add to declared tables may count as "
            "older ones",
            sorted(waited_for.values()),
            _SETTLE_S,
        )


def _others_transactions(session: Session) -> dict[str, int]:
    rows: list[tuple[str, int]] = session.execute(_OTHERS_TRANSACTIONS).fetchall()
    return dict(rows)


def _columns(session: Session, table: str) -> dict[str, tuple[str, bool]]:
    """Return the columns in their order, each with its type and whether it is never NULL."""
    return {name: (kind, never_null) for name, kind, never_null in session.execute(_COLUMNS, (table,))}


def _refuse_wrong_order(
    session: Session, table: str, column: str, types: dict[str, tuple[str, bool]]
) -> None:
    """Refuse a column that a table cannot grow by.

    Raises:
        InvalidRequestError: it does not exist, or is NULL in some rows: how old they are cannot be told.
    """
    if column not in types:
        raise InvalidRequestError(
            f"{table} has no column {column}, by which it is declared to grow; it has {', '.join(types)}. "
            "Nothing was touched. Correct `append_only_by`."
        )
    if types[column][1]:
        return
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {} IS NULL)")
    if session.execute(query.format(quoted(table), sql.Identifier(column))).fetchone() == (True,):
        raise InvalidRequestError(
            f"{table} is declared to grow by {column}, which is NULL in some rows: whether they are new "
            "cannot be told. Nothing was touched. Declare a column that always has a value, or none."
        )


def _rows(table: Counted) -> sql.Composable:
    if table.append_only_by is None:
        return sql.SQL("TRUE")
    if table.watermark is None:
        return sql.SQL("FALSE")
    # literals, because a parameter's placeholder would make each % in a name one
    return sql.SQL("{} <= {}::{}").format(
        sql.Identifier(table.append_only_by), sql.Literal(table.watermark), sql.SQL(table.type_name)
    )
