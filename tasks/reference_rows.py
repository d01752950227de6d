"""The rows that refer to content, within a session: found by key, locked in order, written and proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from rules.content_work import some_of
from rules.errors import InvalidRequestError, StepFailedError
from rules.ipfs import ContentReferences
from tasks.postgres import Session, quoted

#: What the rows of each key hold: one value, unless the key is not unique.
Rows = dict[str, list[str | None]]

_TEXT = {"text", "varchar"}
_TABLES = {"r", "p"}  # ordinary and partitioned
# A policy would hide rows from us without a word, and what only they refer to would be let go.
_ALL_ROWS = "SELECT set_config('row_security', 'off', true)"
_COLUMNS = """
SELECT c.relkind::text, a.attname::text, n.nspname::text, t.typname::text
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type AS t ON t.oid = a.atttypid
JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE c.oid = to_regclass(%s)
"""
# The key is compared as its own type, for its index, and as text too: 07 is not the row that 7 names.
_MATCH = "t.{key} = k.key::{key_type} AND t.{key}::text = k.key"
_READ = "SELECT k.key, t.{cid}::text FROM {table} AS t JOIN unnest(%s::text[]) AS k(key) ON {match}"
# NO KEY: what an UPDATE takes too; rows that refer to these by foreign key can still be written
_LOCK = "{read} ORDER BY t.{key} FOR NO KEY UPDATE OF t"
_SET = """
UPDATE {table} AS t SET {cid} = k.cid FROM unnest(%s::text[], %s::text[]) AS k(key, cid)
WHERE {match} RETURNING k.key, t.{cid}::text
"""
# Most rows hold nothing but a CID; the others are cut at what no CID has in it. Both are joined by a hash:
# a search of each row for each CID takes minutes where there are many of both.
_REFERRED = """
SELECT f.cid FROM unnest(%(cids)s::text[]) AS f(cid) JOIN {table} AS t ON t.{cid} = f.cid
UNION
SELECT f.cid FROM {table} AS t
CROSS JOIN LATERAL regexp_split_to_table(t.{cid}, '[^A-Za-z0-9]+') AS p(part)
JOIN unnest(%(cids)s::text[]) AS f(cid) ON f.cid = p.part
WHERE t.{cid} !~ '^[A-Za-z0-9]+$'
"""


@dataclass(frozen=True)
class ReferenceRows:
    """The rows of one table, seen by one transaction."""

    references: ContentReferences
    session: Session
    parts: Mapping[str, sql.Composable]

    def held(self, keys: Sequence[str]) -> Rows:
        """Return what the rows of `keys` refer to; a key without a row is left out.

        Raises:
            InvalidRequestError: the column cannot hold such keys.
        """
        return self._found(sql.SQL(_READ), keys)

    def locked(self, keys: Sequence[str]) -> Rows:
        """Return the same, locked in the order of the keys: two changes never deadlock."""
        read = sql.SQL(_READ).format(**self.parts)
        return self._found(sql.SQL(_LOCK), keys, read=read)

    def write(self, values: Mapping[str, str | None]) -> None:
        """Write `values` by key, and prove that each row took its own.

        Raises:
            StepFailedError: one did not; nothing is changed once this error leaves the transaction.
        """
        statement = sql.SQL(_SET).format(**self.parts)
        written: Rows = {}
        for key, cid in self.session.execute(statement, (list(values), list(values.values()))).fetchall():
            written.setdefault(key, []).append(cid)
        if wrong := sorted(key for key, cid in values.items() if written.get(key) != [cid]):
            raise StepFailedError(
                f"{self.references.table} did not take {self.references.cid} as it was given, in row "
                f"{some_of(wrong)}. No row was changed. Look at its triggers and rules."
            )

    def referred(self, texts: Sequence[str]) -> frozenset[str]:
        """Return which of `texts`, of letters and digits alone, any row contains between other characters."""
        statement = sql.SQL(_REFERRED).format(**self.parts)
        return frozenset(
            text for (text,) in self.session.execute(statement, {"cids": list(texts)}).fetchall()
        )

    def _found(self, query: sql.SQL, keys: Sequence[str], **more: sql.Composable) -> Rows:
        try:
            rows = self.session.execute(query.format(**self.parts, **more), (list(keys),)).fetchall()
        except psycopg.DataError as error:
            raise InvalidRequestError(
                f"Not all of the keys {some_of(keys)} can be one of "
                f"{self.references.table}.{self.references.key}: its type is another. Nothing was changed."
            ) from error
        found: Rows = {}
        for key, cid in rows:
            found.setdefault(key, []).append(cid)
        return found


def reference_rows(session: Session, references: ContentReferences) -> ReferenceRows:
    """Return the rows of the table as it is now, all of them; within the session's transaction.

    Raises:
        InvalidRequestError: there is no such table or column, or it holds no text; nothing was changed.
    """
    session.execute(_ALL_ROWS)
    name = quoted(references.table).as_string(session)
    found: list[tuple[Any, ...]] = session.execute(_COLUMNS, (name,)).fetchall()
    if not found or found[0][0] not in _TABLES:
        raise InvalidRequestError(f"{references.table} is no table of the database. Nothing was changed.")
    types = {column: (schema, kind) for _, column, schema, kind in found}
    if missing := [name for name in (references.key, references.cid) if name not in types]:
        raise InvalidRequestError(
            f"{references.table} has no column {', '.join(missing)}. Nothing was changed."
        )
    schema, kind = types[references.cid]
    if schema != "pg_catalog" or kind not in _TEXT:
        raise InvalidRequestError(
            f"{references.table}.{references.cid} is of type {kind}; it has to be text or varchar. Nothing "
            "was changed."
        )
    parts: dict[str, sql.Composable] = {
        "table": quoted(references.table),
        "key": sql.Identifier(references.key),
        "cid": sql.Identifier(references.cid),
        "key_type": sql.Identifier(*types[references.key]),
    }
    match = sql.SQL(_MATCH).format(**parts)
    return ReferenceRows(references=references, session=session, parts={**parts, "match": match})


def in_words(held: Sequence[str | None]) -> str:
    """Say what the rows of one key hold."""
    if not held:
        return "is gone"
    if len(held) > 1:
        return f"is there {len(held)} times"
    return f"refers to {held[0] or 'NULL'}"
