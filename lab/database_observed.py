"""The whole observable state of a lab's database, read by psycopg and pg_dump alone.

Names of indexes that a deployment gives are left out: they may hold its id, which is another each time.
"""

from __future__ import annotations

import re
import subprocess
import time
from typing import Any

import psycopg
from psycopg import sql

from lab.database import LabDatabase
from lab.processes import LabError

_DUMP_TIMEOUT_S = 60
_SESSIONS_PATIENCE_S = 10.0
_POLL_S = 0.05
#: Where plain SQL's versions are kept: rows count, not whether the empty table was made already.
_BOOKS = "sovereign"
_OTHER = "(other)"

_INDEXES = """
SELECT n.nspname || '.' || i.relname, n.nspname || '.' || t.relname,
    regexp_replace(pg_get_indexdef(x.indexrelid), '^(CREATE (UNIQUE )?INDEX) \\S+', '\\1'),
    x.indisvalid, x.indisready, x.indislive,
    (SELECT n.nspname || '.' || p.relname FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
     WHERE h.inhrelid = x.indexrelid)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = i.relnamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', %(books)s)
"""
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sovereign%%'"
_DATABASES = "SELECT datname FROM pg_database ORDER BY 1"
_ROLES_AND_SLOTS = (
    "SELECT rolname FROM pg_roles UNION ALL SELECT slot_name FROM pg_replication_slots ORDER BY 1"
)


class Observer:
    """Looks at one database again and again, and compares by what was there when it was made.

    Args:
        lab: the database, which runs.
    """

    def __init__(self, lab: LabDatabase) -> None:
        self.lab = lab
        with psycopg.connect(lab.url) as connection:
            self._names = {row[0] for row in connection.execute(_INDEXES, {"books": _BOOKS})}
            self._columns = {
                table.name: [row[0] for row in connection.execute(_columns_of(table.name))]
                for table in lab.content.tables
            }
            self._marks = {
                table.name: _value(connection, _largest(table.name, table.append_only_by))
                for table in lab.content.tables
                if table.append_only_by
            }

    def look(self) -> dict[str, Any]:
        """Return versions, schema, content, indexes, and whatever a deployment could leave behind.

        Raises:
            LabError: pg_dump fails, or a session of a deployment stays.
        """
        with psycopg.connect(self.lab.url, autocommit=True) as connection:
            return {
                "versions": self._versions(connection),
                "schema": self._schema(),
                "content": {table: self._digest(connection, table) for table in self._columns},
                "indexes": self._indexes(connection),
                "databases": [row[0] for row in connection.execute(_DATABASES)],
                "roles_and_slots": [row[0] for row in connection.execute(_ROLES_AND_SLOTS)],
                "datasets": self._datasets(),
                "sessions": _sessions_that_stay(connection),
            }

    def _versions(self, connection: psycopg.Connection) -> dict[str, list[str]]:
        held = {}
        for name in self.lab.database.version_tables:
            is_there = _value(connection, sql.SQL("SELECT to_regclass({})").format(name))
            query = sql.SQL("SELECT v::text FROM {} v ORDER BY 1").format(_quoted(name))
            rows = connection.execute(query).fetchall() if is_there else []
            # when it was applied differs from time to time
            held[name] = [row[0].strip("()").split(",")[0] for row in rows]
        return held

    def _schema(self) -> str:
        """Return what pg_dump says, without indexes, which are told apart, and without its own key."""
        address = self.lab.database.address
        argv = (
            f"{self.lab.database.programs}/pg_dump",
            *(f"--host={address.host}", f"--port={address.port}", f"--username={address.user}"),
            *("--schema-only", "--no-password", f"--exclude-schema={_BOOKS}", address.database),
        )
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=_DUMP_TIMEOUT_S)
        if done.returncode:
            raise LabError(f"pg_dump exited {done.returncode}: {done.stderr.strip()}")
        kept = [
            line
            for line in done.stdout.splitlines()
            if line and not re.match(r"--|\\(un)?restrict |CREATE (UNIQUE )?INDEX |ALTER INDEX ", line)
        ]
        return "\n".join(kept)

    def _digest(self, connection: psycopg.Connection, table: str) -> list[Any]:
        """Return how many of the first look's rows there are, and a checksum of the columns of then."""
        there = [row[0] for row in connection.execute(_columns_of(table))]
        columns = [column for column in self._columns[table] if column in there]
        key, mark = next(t.append_only_by for t in self.lab.content.tables if t.name == table), None
        condition: sql.Composable = sql.SQL("true")
        if key:
            mark = self._marks[table]
            condition = sql.SQL("{} <= {}").format(sql.Identifier(key), mark)
        query = sql.SQL(
            "SELECT count(*), md5(string_agg(md5(ROW({})::text), '' ORDER BY md5(ROW({})::text))) "
            "FROM {} WHERE {}"
        )
        row = sql.SQL(", ").join(map(sql.Identifier, columns))
        found = connection.execute(query.format(row, row, _quoted(table), condition)).fetchone()
        return [*(found or ()), mark, columns]

    def _indexes(self, connection: psycopg.Connection) -> list[list[Any]]:
        rows = connection.execute(_INDEXES, {"books": _BOOKS}).fetchall()
        told = [
            [self._known(name), table, definition, *flags, parent and self._known(parent)]
            for name, table, definition, *flags, parent in rows
        ]
        return sorted(told, key=str)

    def _known(self, name: str) -> str:
        return name if name in self._names else _OTHER

    def _datasets(self) -> list[str]:
        if not self.lab.zfs:
            return []
        names = self.lab.zfs.zfs("list", "-H", "-o", "name", "-t", "filesystem", "-r", self.lab.zfs.pool)
        return sorted(names.split())


def _sessions_that_stay(connection: psycopg.Connection) -> int:
    """Return how many sessions of deployments there are, once those that are about to end have ended."""
    deadline = time.monotonic() + _SESSIONS_PATIENCE_S
    while (count := int(_value(connection, _SESSIONS, {}))) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return count


def _columns_of(table: str) -> sql.Composed:
    return sql.SQL(
        "SELECT attname FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 AND NOT attisdropped "
        "ORDER BY attnum"
    ).format(table)


def _largest(table: str, column: str) -> sql.Composed:
    return sql.SQL("SELECT max({}) FROM {}").format(sql.Identifier(column), _quoted(table))


def _quoted(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split("."))


def _value(connection: psycopg.Connection, query: Any, parameters: Any = None) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
