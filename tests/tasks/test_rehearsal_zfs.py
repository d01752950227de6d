"""Migrations rehearsed on a clone of a real ZFS dataset, under a PostgreSQL that goes on."""

from __future__ import annotations

import pytest

from lab.database import LabDatabase
from rules.errors import InvalidRequestError
from tasks.database import schema_sha256
from tasks.rehearsal import remove_rehearsals
from tests.tasks.backing_up import one_at_a_time, pool
from tests.tasks.rehearsing import (
    ENDLESS,
    TABLES,
    left_of_copies,
    locks,
    migrations,
    only_read,
    rehearsed,
    rehearsing,
    wait_for_endless,
)

__all__ = ["pool"]
pytestmark = one_at_a_time

ADD_COLUMN = ("ALTER TABLE users ADD COLUMN nick text", "ALTER TABLE users DROP COLUMN nick")


@pytest.fixture(scope="module")
def lab(pool, tmp_path_factory):
    with LabDatabase(
        tmp_path_factory.mktemp("lab"), zfs=pool, rows=300, vectors=200, dimensions=8, months=2
    ) as running:
        running.query(TABLES)
        yield running


def of_rehearsals(pool):
    """Return the clones and snapshots that are there for rehearsals."""
    names = pool.zfs("list", "-H", "-r", "-t", "filesystem,snapshot", "-o", "name", pool.pool).split()
    return [name for name in names if "sovereign_rehearsal" in name]


@pytest.fixture(autouse=True)
def _proof(lab, settings, pool):
    with only_read(lab, settings):
        yield
    assert of_rehearsals(pool) == []


def test_the_clone_is_the_best_copy_and_shows_locks_rewrites_and_ways_back(lab, settings):
    result = rehearsed(
        lab.database,
        migrations(
            ("ALTER TABLE users ALTER age TYPE bigint", "ALTER TABLE users ALTER age TYPE int"),
            ("CREATE INDEX CONCURRENTLY users_email ON users (email)", "DROP INDEX users_email", False),
            (
                "CREATE INDEX again ON episodic_memories USING hnsw (embedding vector_l2_ops)",
                "DROP INDEX again",
            ),
            ("DELETE FROM users WHERE id = 7", ()),
        ),
        settings,
    )
    assert (result.where, result.schema_sha256) == ("zfs_clone", schema_sha256(lab.database))
    first, second, third, fourth = locks(result)
    assert first == {
        "AccessExclusive public.users",
        "Share public.users",
        "AccessExclusive public.users_pkey",
        "anew public.users",
        "anew public.users_pkey",
    }
    assert second == {"ShareUpdateExclusive public.users"}
    assert "Share public.episodic_memories" in third
    assert "RowExclusive public.users" in fourth
    assert [m.restores_schema for m in result.migrations] == [True] * 4
    assert result.migrations[3].restores_data is False
    assert result.migrations[3].words == "public.users has 499 rows, not 500"


def test_a_statement_that_fails_leaves_no_clone(lab, settings):
    with pytest.raises(InvalidRequestError, match="never_there"):
        rehearsed(lab.database, migrations(ADD_COLUMN, ("DROP TABLE never_there", None)), settings)


def test_a_snapshot_of_the_users_own_stays(lab, settings, pool):
    pool.zfs("snapshot", f"{lab.dataset.dataset}@hourly")
    rehearsed(lab.database, migrations(ADD_COLUMN), settings)
    assert f"{lab.dataset.dataset}@hourly" in pool.zfs("list", "-H", "-t", "snapshot", "-o", "name")


def test_a_killed_one_leaves_nothing_that_is_not_removed(lab, settings, pool):
    with rehearsing(lab.database, migrations(ENDLESS), settings) as process:
        wait_for_endless(settings)
        process.kill()
    assert len(of_rehearsals(pool)) == 2
    assert left_of_copies(settings)
    remove_rehearsals(lab.database, settings=settings)
    assert of_rehearsals(pool) == []
    assert left_of_copies(settings) == []


def test_the_next_rehearsal_removes_what_a_killed_one_left(lab, settings, pool):
    with rehearsing(lab.database, migrations(ENDLESS), settings) as process:
        wait_for_endless(settings)
        process.kill()
    assert rehearsed(lab.database, migrations(ADD_COLUMN), settings).where == "zfs_clone"


def test_rehearsals_of_another_database_on_the_same_dataset_stay(lab, settings, pool):
    other = f"{lab.dataset.dataset}@sovereign_rehearsal_{lab.name}-2_01234567"
    pool.zfs("snapshot", other)
    remove_rehearsals(lab.database, settings=settings)
    assert of_rehearsals(pool) == [other]
    pool.zfs("destroy", other)
