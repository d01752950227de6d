"""The whole state of a copied database, before a migration and after its way down: schema and all rows."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from psycopg import sql

from rules.database import Database
from tasks.database import checksum, schema_statements
from tasks.postgres import Session, connection

#: A table or sequence by schema and name.
Table = tuple[str, str]

_LINES_TOLD = 4
_LONGEST_LINE = 120
# of foreign servers and subscriptions
_SECRETS = ("password", "CONNECTION '")
_PREPARE = """
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL search_path = pg_catalog;
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
SET LOCAL row_security = off
"""
_SUPERUSER = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1"
_COLUMNS = """
SELECT n.nspname, c.relname, ARRAY(
    SELECT a.attname::text FROM pg_attribute AS a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND n.nspname || '.' || c.relname <> ALL (%s)
"""
_SEQUENCES = "SELECT schemaname, sequencename, last_value FROM pg_sequences"
# a sum does not depend on the order, and counts also rows that are there twice; two of them are 128 bits
_DIGEST = """
SELECT
    count(*), COALESCE(sum(hashtextextended(r, 0)), 0)::text,
    COALESCE(sum(hashtextextended(r, 1)), 0)::text
FROM (SELECT (ROW({columns}))::text AS r FROM ONLY {table}) AS rows_as_text
"""


@dataclass(frozen=True)
class Content:
    """All user tables' rows: how many, and a checksum whatever their order; and where sequences are."""

    columns: dict[Table, tuple[str, ...]]
    digests: dict[Table, tuple[int, str, str] | None]
    sequences: dict[Table, int | None]


@dataclass(frozen=True)
class Schema:
    """The schema, with its lines for people."""

    sha256: str
    lines: tuple[str, ...]


def schema_of(database: Database) -> Schema:
    """Return the schema of a database.

    Raises:
        DeployError: it cannot be read.
    """
    statements = schema_statements(database)
    lines = (line.rstrip() for line in statements.splitlines())
    return Schema(sha256=checksum(statements), lines=tuple(line for line in lines if line))


def content_of(database: Database, *, deployment: str, like: Content | None = None) -> Content:
    """Read all user tables, but the version tables; as a superuser, where there is one that may log in.

    Args:
        database: a copy whose server trusts everybody.
        deployment: for whom.
        like: an earlier state: the tables and columns of then are read.

    Raises:
        DeployError: it cannot be read.
    """
    with connection(database, deployment=deployment, read_only=True) as session:
        superuser = session.execute(_SUPERUSER).fetchone()
    user = superuser[0] if superuser else database.address.user
    address = database.address.model_copy(update={"user": user})
    seeing_all = database.model_copy(update={"address": address})
    with connection(seeing_all, deployment=deployment, read_only=True) as session:
        session.execute(_PREPARE)
        rows = session.execute(_COLUMNS, (list(database.version_tables),)).fetchall()
        there = {(schema, name): tuple(columns) for schema, name, columns in rows}
        columns = like.columns if like else there
        digests = {
            table: _digest(session, table, names) if {*names} <= {*there.get(table, ())} else None
            for table, names in columns.items()
        }
        sequences = {(schema, name): last for schema, name, last in session.execute(_SEQUENCES).fetchall()}
    return Content(columns=columns, digests=digests, sequences=sequences)


def schema_difference(before: Schema, after: Schema) -> str:
    """Say in a few lines of SQL where the schema is not what it was; empty: it is."""
    if before.sha256 == after.sha256:
        return ""
    lines = [
        line
        for line in difflib.unified_diff(before.lines, after.lines, n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    told = [_without_secret(line)[:_LONGEST_LINE] for line in lines[:_LINES_TOLD]]
    more = f" … and {len(lines) - len(told)} lines more" if len(lines) > len(told) else ""
    return f"the schema is another one: {' '.join(told)}{more}" if told else "the schema is in another order"


def content_differences(before: Content, after: Content) -> dict[str, str]:
    """Return what of the rows is not what it was: table or sequence -> in words. `after` is like `before`."""
    words = {}
    for table, want in before.digests.items():
        have = after.digests[table]
        if have is None:
            words[".".join(table)] = "lacks columns or is gone"
        elif want is not None and have[0] != want[0]:
            words[".".join(table)] = f"has {have[0]} rows, not {want[0]}"
        elif have != want:
            words[".".join(table)] = f"has other content in its {have[0]} rows"
    for sequence, last in before.sequences.items():
        now = after.sequences.get(sequence, last)
        if last is not None and (now is None or now < last):
            words[".".join(sequence)] = f"went back from {last} to {'its start' if now is None else now}"
    return words


def _digest(session: Session, table: Table, columns: tuple[str, ...]) -> tuple[int, str, str]:
    names = sql.SQL(", ").join(sql.Identifier(name) for name in columns)
    query = sql.SQL(_DIGEST).format(columns=names, table=sql.Identifier(*table))
    count, first, second = session.execute(query).fetchall()[0]
    return count, first, second


def _without_secret(line: str) -> str:
    return f"{line[0]}(a line with a password)" if any(word in line for word in _SECRETS) else line
