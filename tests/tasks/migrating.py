"""A table that is migrated from a to b in tests, and what it is like before and after."""

from __future__ import annotations

import pytest

from rules.database_plan import ApplyMigration
from rules.database_undo import RevertMigration
from rules.migration import Migration, VersionTable
from tasks.migrate import apply_migration, revert_migration, version_rows
from tests.tasks.databases import columns, execute, pids_of, session, wait_until

NAME = "schema-2026-11-25"
ALEMBIC = VersionTable(table="public.alembic_version", column="version_num")
INVALID = (
    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)"
)
BEFORE = (["i", "k"], [], [], ("a",))
AFTER = (["i", "k", "one", "two"], [], [], ("b",))
INDEXED = (["i", "k"], ["t_i"], [], ("b",))


def fill(database):
    """Make the table and where alembic keeps its revision."""
    execute(database, "CREATE TABLE t AS SELECT g AS i, g % 5 AS k FROM generate_series(1, 1000) g")
    execute(database, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    execute(database, "INSERT INTO alembic_version VALUES ('a')")


def migration(**changes):
    """Revision b after a, as alembic has it."""
    fields = {
        "revision": "b",
        "title": "one column more",
        "up": ("ALTER TABLE t ADD COLUMN one int", "ALTER TABLE t ADD COLUMN two text DEFAULT '100 %'"),
        "down": ("ALTER TABLE t DROP COLUMN two", "ALTER TABLE t DROP COLUMN one"),
        "record": ("UPDATE alembic_version SET version_num='b' WHERE alembic_version.version_num = 'a'",),
        "unrecord": ("UPDATE alembic_version SET version_num='a' WHERE alembic_version.version_num = 'b'",),
        **changes,
    }
    return Migration(**fields)


def concurrent(**changes):
    """The same, with an index that is built concurrently."""
    fields = {
        "is_transactional": False,
        "up": ("CREATE INDEX CONCURRENTLY IF NOT EXISTS t_i ON t (i)", "ANALYZE t"),
        "down": ("DROP INDEX CONCURRENTLY IF EXISTS t_i",),
        **changes,
    }
    return migration(**fields)


def apply(database, what, **keywords):
    action = ApplyMigration(migration=what, version_table=ALEMBIC, revisions=("b",), schema_sha256=None)
    apply_migration(database, action, deployment=NAME, **keywords)


def revert(database, what, revisions=("a",)):
    step = RevertMigration(migration=what, version_table=ALEMBIC, revisions=revisions, schema_sha256=None)
    revert_migration(database, step, deployment=NAME)


def state(database):
    """Return columns and valid indexes of t, invalid indexes, and what the version table holds."""
    valid = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 't'::regclass AND indisvalid"
    return (
        columns(database),
        sorted(name for (name,) in execute(database, valid)),
        sorted(name for (name,) in execute(database, INVALID)),
        version_rows(database, ALEMBIC, deployment="the-test"),
    )


def leave_invalid_index(database, name="t_i", column="k"):
    """Leave what a failed build leaves: `k` is not unique."""
    with session(database) as other, pytest.raises(Exception, match="could not create unique index"):
        other.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON t ({column})")
    assert (name,) in execute(database, INVALID)


def wait_until_it_runs(database, words):
    """Wait until a session of the deployment is in a statement that contains `words`."""
    query = "SELECT pid, query FROM pg_stat_activity WHERE state = 'active'"

    def runs():
        ours = pids_of(database, NAME)
        return any(pid in ours and words in query for pid, query in execute(database, query))

    wait_until(runs)
