"""What the catalog says of vector indexes, and of the tables they are on. Nothing is changed."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from pydantic import TypeAdapter, ValidationError

from rules.change import IndexChange
from rules.database import Database, QualifiedName
from rules.errors import InvalidRequestError
from rules.frozen import Frozen
from rules.index_catalog import FoundIndex, Leaf, TableCatalog
from rules.index_plan import MemoryFacts
from tasks.postgres import Session, connection

_PLAIN_NAME = TypeAdapter(QualifiedName)
_KIB = 1024
#: Told of an index that is whole but hidden: a build that failed leaves one with the very same flags.
BUILT = "sovereign-deploy: built, and hidden until it is swapped in"

# types and operators of pgvector without their schema, in our statements and in definitions alike
_AT_HOME = """
SELECT set_config('search_path', quote_ident(n.nspname), false)
FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
"""
_TABLE = """
SELECT c.oid, c.relkind, quote_ident(n.nspname) || '.' || quote_ident(c.relname), quote_ident(%(column)s),
    (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attname = %(column)s AND NOT a.attisdropped),
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %(table)s AND c.relkind IN ('r', 'p')
"""
_LEAVES = """
SELECT n.nspname || '.' || c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
    c.relkind, part.level, c.reltuples::bigint,
    pg_relation_size(c.oid) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)
FROM (
    SELECT relid, level FROM pg_partition_tree(%(table)s) WHERE isleaf AND relid <> %(table)s
    UNION ALL SELECT %(table)s, 0 WHERE %(kind)s = 'r'
) AS part
JOIN pg_class AS c ON c.oid = part.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 1
"""
_INDEX = """
SELECT inside.nspname || '.' || c.relname, of_table.nspname || '.' || t.relname,
    replace(pg_get_indexdef(i.indexrelid), 'INDEX ' || quote_ident(c.relname) || ' ON ', 'INDEX ON '),
    pg_get_indexdef(i.indexrelid, 1, false) || ' ' || o.opcname
        || coalesce(' WHERE ' || pg_get_expr(i.indpred, i.indrelid), ''),
    i.indisvalid AND i.indisready AND i.indislive,
    i.indisready AND i.indislive AND obj_description(i.indexrelid, 'pg_class') IS NOT DISTINCT FROM %(built)s,
    of_parent.nspname || '.' || p.relname
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS inside ON inside.oid = c.relnamespace
JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_namespace AS of_table ON of_table.oid = t.relnamespace
JOIN pg_am AS m ON m.oid = c.relam JOIN pg_opclass AS o ON o.oid = i.indclass[0]
LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid
LEFT JOIN pg_class AS p ON p.oid = h.inhparent
LEFT JOIN pg_namespace AS of_parent ON of_parent.oid = p.relnamespace
"""
_ON_TABLE = """
WHERE m.amname IN ('hnsw', 'ivfflat')
AND (i.indrelid = %(table)s OR i.indrelid IN (SELECT relid FROM pg_partition_tree(%(table)s)))
ORDER BY 1
"""
_TAKEN = """
SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = ANY (%(schemas)s) AND (c.relname = %(index)s OR c.relname ~ '_(sd|kept)[0-9a-f]{8}$')
ORDER BY 1
"""
_MEMORY = """
SELECT pg_size_bytes(current_setting('maintenance_work_mem')),
    least(current_setting('max_parallel_maintenance_workers')::int,
          current_setting('max_parallel_workers')::int, current_setting('max_worker_processes')::int)
"""
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


class IndexState(Frozen):
    """One index as the catalog has it now."""

    found: FoundIndex
    is_built: bool
    """It bears the mark of one that is whole but hidden."""

    @property
    def is_whole(self) -> bool:
        """Whether it has all rows, shown to the planner or not."""
        return self.found.is_valid or self.is_built


def read_catalog(database: Database, change: IndexChange, *, deployment: str) -> TableCatalog:
    """Return what the catalog says of the table whose index is changed.

    Raises:
        InvalidRequestError: there is no such table, no pgvector, or a name needs quotes.
        DatabaseUnreachableError: it cannot be reached.
    """
    with connection(database, deployment=deployment, read_only=True) as session:
        at_home(session)
        row = session.execute(_TABLE, {"table": change.table, "column": change.column}).fetchone()
        if row is None:
            raise InvalidRequestError(f"there is no table {change.table}. Nothing was touched.")
        oid, kind, written, column_written, column_type, is_superuser = row
        try:
            leaves, levels, foreign = _leaves(session, oid, kind)
            indexes = tuple(state.found for state in _states(session, _ON_TABLE, {"table": oid}))
        except ValidationError as error:
            raise InvalidRequestError(
                f"a partition or an index of {change.table} has a name that needs quotes, which is not "
                "supported: rename it to lower-case letters, digits and underscores. Nothing was touched."
            ) from error
        return TableCatalog(
            table=change.table,
            written=written,
            is_partitioned=kind == "p",
            leaves=leaves,
            is_nested=max(levels, default=0) > 1,
            foreign=foreign,
            column_type=column_type,
            column_written=column_written,
            indexes=indexes,
            taken=_taken(session, change, leaves),
            is_superuser=is_superuser,
            memory=memory_facts(session),
        )


def at_home(session: Session) -> None:
    """Let the session name pgvector's types and operators without a schema; all else needs one from here on.

    Raises:
        InvalidRequestError: the database has no pgvector.
    """
    if session.execute(_AT_HOME).fetchone() is None:
        raise InvalidRequestError("the database has no extension vector. Nothing was touched.")


def index_state(session: Session, index: QualifiedName) -> IndexState | None:
    """Return one index as it is now; None: there is none of that name. See `at_home` for its definition."""
    where = "WHERE inside.nspname || '.' || c.relname = %(index)s"
    states = _states(session, where, {"index": index})
    return states[0] if states else None


def attached(session: Session, index: QualifiedName) -> tuple[IndexState, ...]:
    """Return the parts of a partitioned index as they are now, by name."""
    where = "WHERE of_parent.nspname || '.' || p.relname = %(index)s ORDER BY 1"
    return _states(session, where, {"index": index})


def leaf_tables(session: Session, table: QualifiedName) -> tuple[QualifiedName, ...]:
    """Return the partitions that hold a table's rows now; without partitions itself. Empty: it is gone."""
    row = session.execute(_TABLE, {"table": table, "column": ""}).fetchone()
    if row is None:
        return ()
    leaves, _, _ = _leaves(session, row[0], row[1])
    return tuple(leaf.table for leaf in leaves)


def memory_facts(session: Session) -> MemoryFacts:
    """Return what the server has for building an index; its host's memory where it may be read."""
    row = session.execute(_MEMORY).fetchone()
    assert row  # noqa: S101 - a SELECT without FROM has one row
    return MemoryFacts(
        maintenance_work_mem_bytes=row[0], max_workers=row[1], available_bytes=_available_bytes(session)
    )


def _available_bytes(session: Session) -> int | None:
    """Return what the server's host has available; a limit of its control group counts too."""
    text = _host_file(session, "/proc/meminfo")
    if not (text and (matched := _AVAILABLE.search(text))):
        return None
    available = int(matched[1]) * _KIB
    limit = (_host_file(session, "/sys/fs/cgroup/memory.max") or "max").strip()
    return min(available, int(limit)) if limit.isdecimal() else available


def _host_file(session: Session, path: str) -> str | None:
    try:
        with session.transaction():
            row = session.execute("SELECT pg_read_file(%s, true)", (path,)).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return str(row[0]) if row and row[0] else None


def _leaves(session: Session, oid: int, kind: str) -> tuple[tuple[Leaf, ...], list[int], tuple[str, ...]]:
    leaves, levels, foreign = [], [], []
    for name, written, leaf_kind, level, rows, size in session.execute(
        _LEAVES, {"table": oid, "kind": kind}
    ).fetchall():
        leaves.append(Leaf(table=name, written=written, rows=max(rows, 0), size_bytes=size))
        levels.append(level)
        if leaf_kind == "f":
            foreign.append(name)
    return tuple(leaves), levels, tuple(foreign)


def _states(session: Session, where: str, values: dict[str, Any]) -> tuple[IndexState, ...]:
    states = []
    for row in session.execute((_INDEX + where).encode(), {**values, "built": BUILT}).fetchall():
        name, table, definition, serves, is_valid, is_built, parent = row
        found = FoundIndex(
            index=name, table=table, definition=definition, serves=serves, is_valid=is_valid, parent=parent
        )
        states.append(IndexState(found=found, is_built=is_built))
    return tuple(states)


def _taken(session: Session, change: IndexChange, leaves: tuple[Leaf, ...]) -> tuple[str, ...]:
    schemas = sorted({name.split(".")[0] for name in (change.table, *(leaf.table for leaf in leaves))})
    rows = session.execute(_TAKEN, {"schemas": schemas, "index": change.index}).fetchall()
    return tuple(row[0] for row in rows)
