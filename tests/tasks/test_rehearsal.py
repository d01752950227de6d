"""Migrations rehearsed on base backups and schema copies of a real PostgreSQL with pgvector."""

from __future__ import annotations

import logging
import shutil

import pytest

from lab.database import LabDatabase
from lab.postgres import programs
from rules.errors import InvalidRequestError, LockHeldError
from tasks import rehearsal_copy
from tasks.database import schema_sha256
from tasks.rehearsal import remove_rehearsals
from tasks.rehearsal_copy import copy_of
from tasks.rehearsal_remains import turn
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

ADD_COLUMN = ("ALTER TABLE users ADD COLUMN nick text", "ALTER TABLE users DROP COLUMN nick")
DROP_AGE = ("ALTER TABLE users DROP COLUMN age", "ALTER TABLE users ADD COLUMN age int")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with LabDatabase(
        tmp_path_factory.mktemp("lab"), rows=300, vectors=200, dimensions=8, months=2
    ) as running:
        running.query(TABLES)
        yield running


@pytest.fixture(params=["base_backup", "schema_copy"])
def anywhere(lab, request):
    return lab.database.model_copy(update={"rehearsal": request.param})


@pytest.fixture
def on_backup(lab):
    return lab.database.model_copy(update={"rehearsal": "base_backup"})


@pytest.fixture(autouse=True)
def _proof(lab, settings):
    with only_read(lab, settings):
        yield


def test_locks_and_rewrites_are_exact(anywhere, settings):
    result = rehearsed(
        anywhere,
        migrations(
            ADD_COLUMN,
            ("ALTER TABLE users ALTER age TYPE bigint", "ALTER TABLE users ALTER age TYPE int"),
            ("CREATE INDEX users_age ON users (age)", "DROP INDEX users_age"),
            ("CREATE INDEX CONCURRENTLY users_email ON users (email)", "DROP INDEX users_email", False),
            (
                "ALTER TABLE orders ADD CONSTRAINT of_user FOREIGN KEY (user_id) REFERENCES users NOT VALID",
                "ALTER TABLE orders DROP CONSTRAINT of_user",
            ),
            ("ALTER TABLE orders VALIDATE CONSTRAINT of_user", ()),
            ("UPDATE users SET nick = email", ()),
            ("REINDEX TABLE CONCURRENTLY orders", (), False),
            ("CREATE VIEW adults AS SELECT * FROM users WHERE age > 17", "DROP VIEW adults"),
        ),
        settings,
    )
    assert result.where == anywhere.rehearsal
    assert locks(result) == [
        {"AccessExclusive public.users"},
        {
            "AccessExclusive public.users",
            "Share public.users",
            "AccessExclusive public.users_pkey",
            "anew public.users",
            "anew public.users_pkey",
        },
        {"Share public.users"},
        {"ShareUpdateExclusive public.users"},
        {"ShareRowExclusive public.orders", "ShareRowExclusive public.users"},
        {"ShareUpdateExclusive public.orders"},
        # what VALIDATE and SELECT take beside it, nobody waits for
        {
            "RowExclusive public.users",
            "RowExclusive public.users_pkey",
            "RowExclusive public.users_age",
            "RowExclusive public.users_email",
        },
        {"ShareUpdateExclusive public.orders", "ShareUpdateExclusive public.orders_pkey"},
        set(),
    ]


def test_of_a_transaction_each_statement_tells_what_it_takes_beside_the_ones_before(on_backup, settings):
    ups = ("CREATE TABLE mine (id int)", "CREATE INDEX ON mine (id)", *ADD_COLUMN, "TRUNCATE orders")
    assert locks(rehearsed(on_backup, migrations((ups, None)), settings)) == [
        set(),
        set(),  # nobody else sees it yet
        {"AccessExclusive public.users"},
        set(),  # held already
        {
            "AccessExclusive public.orders",
            "Share public.orders",
            "AccessExclusive public.orders_pkey",
            "anew public.orders",
            "anew public.orders_pkey",
        },
    ]


def test_ways_down_that_lead_back_are_proven_on_vectors_and_partitions_too(anywhere, settings):
    index = "CREATE INDEX again ON {} USING hnsw (embedding vector_l2_ops)"
    result = rehearsed(
        anywhere,
        migrations(
            (index.format("episodic_memories"), "DROP INDEX again"),
            (
                "ALTER TABLE episodic_memories ADD COLUMN importance real",
                "ALTER TABLE episodic_memories DROP COLUMN importance",
            ),
            ("CREATE INDEX CONCURRENTLY many ON users (age)", "DROP INDEX CONCURRENTLY many", False),
        ),
        settings,
    )
    has_data = True if result.where == "base_backup" else None
    assert [m.restores_schema for m in result.migrations] == [True, True, True]
    assert [m.restores_data for m in result.migrations] == [has_data] * 3
    assert [m.words for m in result.migrations] == ["", "", ""]
    assert len({result.schema_sha256, *(m.schema_sha256 for m in result.migrations)}) == 4


def test_a_copy_has_the_schema_of_the_original(anywhere, lab, settings):
    with copy_of(anywhere, deployment="d1", settings=settings) as copy:
        assert schema_sha256(copy.database) == schema_sha256(lab.database)
    assert rehearsed(anywhere, migrations(ADD_COLUMN), settings).schema_sha256 == schema_sha256(lab.database)


def test_a_schema_copy_knows_what_is_applied(lab, settings):
    database = lab.database.model_copy(update={"rehearsal": "schema_copy"})
    only_from_0000 = "DO $$ BEGIN ASSERT (SELECT version_num FROM alembic_version) = '0000'; END $$"
    rehearsed(database, migrations((only_from_0000, ())), settings)


def test_a_way_down_that_loses_rows_is_found_out(on_backup, settings):
    (result,) = rehearsed(on_backup, migrations(DROP_AGE), settings).migrations
    # the column is back, but at the end and empty
    assert result.restores_data is False
    assert "public.users has other content in its 500 rows" in result.words


def test_a_way_down_that_brings_back_the_schema_and_not_the_rows_is_found_out(on_backup, settings):
    deleting = ("DELETE FROM orders WHERE id <= 10", ())
    changing = ("UPDATE users SET email = lower(email) || '!'", "UPDATE users SET email = rtrim(email, '!')")
    sequence = ("ALTER SEQUENCE users_id_seq RESTART", ())
    result = rehearsed(on_backup, migrations(deleting, changing, sequence), settings).migrations
    assert [m.restores_schema for m in result] == [True, True, True]
    assert [m.restores_data for m in result] == [False, None, False]
    assert result[0].words.startswith("public.orders has 990 rows, not 1000")
    assert result[1].words.endswith("lost by a later way down already")
    assert result[2].words == "public.users_id_seq went back from 500 to its start"


def test_rows_that_a_later_way_down_lost_are_not_blamed_on_an_earlier_one(on_backup, settings):
    pending = migrations(ADD_COLUMN, ("UPDATE users SET age = 0", ()), ("DELETE FROM orders", ()))
    result = rehearsed(on_backup, pending, settings).migrations
    assert [m.restores_data for m in result] == [None, False, False]
    assert "public.orders has 0 rows, not 1000: lost by a later way down already" in result[1].words


def test_a_way_down_that_leaves_an_index_is_found_out_and_ends_the_tries(anywhere, settings):
    leaving = ("CREATE INDEX left_behind ON users (age)", "SELECT 1")
    before, bad, after = rehearsed(
        anywhere, migrations(ADD_COLUMN, leaving, ("CREATE TABLE new ()", "DROP TABLE new")), settings
    ).migrations
    assert after.restores_schema is True
    assert bad.restores_schema is False
    assert "+CREATE INDEX left_behind ON public.users USING btree (age);" in bad.words
    assert (before.restores_schema, before.restores_data) == (None, None)
    assert before.words == (
        "its way down could not be tried: that of 0002, which comes after it, does not lead back"
    )


def test_a_way_down_that_fails_is_found_out(anywhere, settings):
    bad = ("CREATE TABLE new ()", ("DROP TABLE new", "DROP TABLE never_there"))
    before, result = rehearsed(anywhere, migrations(ADD_COLUMN, bad), settings).migrations
    assert result.restores_schema is False
    assert not result.restores_data
    assert 'its way down fails: table "never_there" does not exist' in result.words
    assert before.restores_schema is None


def test_beyond_a_migration_without_a_way_down_none_can_be_told(on_backup, settings):
    first, second, third = rehearsed(
        on_backup,
        migrations(ADD_COLUMN, ("CREATE TABLE a ()", None), ("CREATE TABLE b ()", "DROP TABLE b")),
        settings,
    ).migrations
    assert (third.restores_schema, third.restores_data) == (True, True)
    assert (second.restores_schema, second.restores_data, second.words) == (None, None, "it has no way down")
    assert first.restores_schema is None
    assert "0002, which comes after it, has none" in first.words


@pytest.mark.parametrize("without_transaction", [(), (False,)])
def test_a_statement_that_fails_is_named_and_nothing_was_touched(anywhere, settings, without_transaction):
    bad = (("CREATE TABLE new ()", "ALTER TABLE never_there ADD c int"), None, *without_transaction)
    with pytest.raises(InvalidRequestError) as failed:
        rehearsed(anywhere, migrations(ADD_COLUMN, bad), settings)
    words = str(failed.value)
    assert "Migration 0002 fails on a copy of the database, at statement 2" in words
    assert "`ALTER TABLE never_there ADD c int`" in words
    assert 'relation "never_there" does not exist' in words


def test_one_that_fails_at_its_commit_is_named_too(on_backup, settings):
    deferred = (
        "ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED",
        "INSERT INTO orders VALUES (-1, -1)",
    )
    with pytest.raises(InvalidRequestError, match=r"at statement 3, .*violates foreign key") as failed:
        rehearsed(on_backup, migrations((deferred, None)), settings)
    assert "(-1)" not in str(failed.value)  # users' rows are told to nobody


def test_a_concurrent_build_that_cannot_be_unique_fails(on_backup, settings):
    unique = "CREATE UNIQUE INDEX CONCURRENTLY u ON orders (user_id)"
    with pytest.raises(InvalidRequestError, match="could not create unique index"):
        rehearsed(on_backup, migrations((unique, None, False)), settings)


# --- which copy ------------------------------------------------------------------------------------


def test_the_best_that_can_be_had_is_taken_and_why_not_a_better_one_is_logged(lab, settings, caplog):
    with caplog.at_level(logging.INFO):
        assert rehearsed(lab.database, migrations(ADD_COLUMN), settings).where == "base_backup"
    assert "rehearsing on a base_backup; not on a zfs_clone: its cluster is on no ZFS dataset" in caplog.text


def test_a_copy_that_is_asked_for_and_cannot_be_had_is_refused(lab, settings):
    database = lab.database.model_copy(update={"rehearsal": "zfs_clone"})
    with pytest.raises(InvalidRequestError, match="zfs_clone: its cluster is on no ZFS dataset of this host"):
        rehearsed(database, migrations(ADD_COLUMN), settings)


def test_without_room_for_a_base_backup_the_schema_alone_is_copied(lab, settings, monkeypatch, caplog):
    monkeypatch.setattr(rehearsal_copy, "_ROOM", 1e9)
    with caplog.at_level(logging.INFO):
        assert rehearsed(lab.database, migrations(ADD_COLUMN), settings).where == "schema_copy"
    assert "times as many are needed" in caplog.text


def test_without_the_programs_for_it_every_reason_is_told(lab, settings, tmp_path):
    few = tmp_path / "programs"
    few.mkdir()
    for name in ("postgres", "pg_dump"):
        (few / name).symlink_to(programs() / name)
    database = lab.database.model_copy(update={"programs": str(few)})
    with pytest.raises(InvalidRequestError) as refused:
        rehearsed(database, migrations(ADD_COLUMN), settings)
    words = str(refused.value)
    assert "zfs_clone: " in words
    assert "base_backup: " in words
    assert "pg_basebackup" in words
    assert f"schema_copy: {few} has no initdb" in words
    assert "Nothing was touched" in words


# --- killed, and two at a time ---------------------------------------------------------------------


def test_a_killed_one_leaves_nothing_that_the_next_does_not_remove(lab, settings, on_backup):
    with rehearsing(on_backup, migrations(ENDLESS), settings) as process:
        wait_for_endless(settings)
        process.kill()
    assert left_of_copies(settings)
    remove_rehearsals(on_backup, settings=settings)
    assert left_of_copies(settings) == []


def test_one_that_goes_on_is_left_alone_and_another_has_to_wait(lab, settings, on_backup):
    hasty = settings.model_copy(update={"command_timeout_s": 0.5})
    with rehearsing(on_backup, migrations(ENDLESS), settings) as process:
        try:
            wait_for_endless(settings)
            before = left_of_copies(settings)
            remove_rehearsals(on_backup, settings=settings)
            assert left_of_copies(settings) == before
            with pytest.raises(LockHeldError, match="being rehearsed by another process"):
                rehearsed(on_backup, migrations(ADD_COLUMN), hasty)
            other = on_backup.model_copy(update={"name": "other"})
            assert rehearsed(other, migrations(ADD_COLUMN), settings).where == "base_backup"
        finally:
            process.kill()
    rehearsed(on_backup, migrations(ADD_COLUMN), settings)  # removes what is left


def test_what_is_not_of_this_database_stays(lab, settings, tmp_path):
    with turn(lab.database, settings, patience_s=0) as is_ours:
        assert is_ours
    other = settings.journal_dir.parent / "rehearsals" / f"{lab.database.name}-2_0123abcd"
    other.mkdir()
    remove_rehearsals(lab.database, settings=settings)
    assert other.exists()
    shutil.rmtree(other)
