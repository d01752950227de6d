"""Whether a database is whole and fast enough: proven on a real server, with really corrupted files."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lab.postgres import Postgres, programs
from rules.database import Database, DatabaseAddress, DatabaseState, DeclaredQuery, DeclaredTable
from rules.errors import DeployError, StepFailedError
from tasks import database_checks
from tasks.database import observe_database
from tasks.database_checks import QueryFailedError, corruption, measured_queries, verify_database
from tasks.postgres import DatabaseError

SCHEMA = """
CREATE EXTENSION amcheck;
CREATE TABLE notes (id bigint PRIMARY KEY, kind text NOT NULL);
INSERT INTO notes SELECT n, md5(n::text) FROM generate_series(1, 20000) n;
CREATE INDEX notes_kind ON notes (kind);
CREATE TABLE fixed (key text PRIMARY KEY);
INSERT INTO fixed VALUES ('a'), ('b');
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('a1');
VACUUM ANALYZE;
"""
FAST = DeclaredQuery(name="by-kind", sql="SELECT id FROM notes WHERE kind = md5('7')", grace_s=0.0)
COUNT = DeclaredQuery(name="count", sql="SELECT count(*) FROM notes WHERE kind LIKE '%a%' AND 1 % 2 = 1")
PAGE_BYTES = 8192
NAMES = (f"case_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("server")) as running:
        running.create_database("filled")
        execute(running.url("filled"), SCHEMA)
        yield running


@pytest.fixture
def database(server: Postgres) -> Database:
    name = next(NAMES)
    server.create_database(name, template="filled")
    return described(server, name)


def described(server: Postgres, name: str) -> Database:
    return Database(
        name="main",
        address=DatabaseAddress(host="127.0.0.1", port=server.port, database=name),
        programs=str(programs()),
        tables=(DeclaredTable(name="public.notes", append_only_by="id"), DeclaredTable(name="public.fixed")),
        queries=(FAST, COUNT),
    )


def execute(where: Database | str, script: str) -> list[tuple]:
    place = where
    if isinstance(where, Database):
        address = where.address
        place = f"postgresql://postgres@{address.host}:{address.port}/{address.database}"
    rows = []
    with psycopg.connect(place, autocommit=True) as connection:
        for statement in filter(str.strip, script.split(";\n")):
            answer = connection.execute(statement)
            rows = answer.fetchall() if answer.description else []
    return rows


# --- corruption ------------------------------------------------------------------------------------


def test_nothing_is_found_in_a_whole_database(database, caplog):
    caplog.set_level(logging.INFO)
    assert corruption(database) == ()
    assert "not checked" not in caplog.text


@pytest.fixture
def broken(tmp_path) -> Iterator[tuple[Postgres, Database]]:
    """A server of its own that is stopped, to have its files changed."""
    with Postgres(tmp_path / "server") as server:
        server.create_database("broken")
        execute(server.url("broken"), SCHEMA)
        yield server, described(server, "broken")


def damage(server: Postgres, database: Database, relation: str, *, offset: int, size: int = 8) -> None:
    """Flip bytes in the fourth page of a relation's file, while the server is stopped."""
    ((path,),) = execute(database, f"CHECKPOINT;\nSELECT pg_relation_filepath('{relation}')")
    server.stop()
    file = Path(server.cluster) / path
    with file.open("r+b") as pages:
        pages.seek(3 * PAGE_BYTES + offset)
        good = pages.read(size)
        pages.seek(3 * PAGE_BYTES + offset)
        pages.write(bytes(byte ^ 0xFF for byte in good))
    server.start()


def test_flipped_bytes_in_a_table_are_found(broken):
    server, database = broken
    damage(server, database, "notes", offset=4000)
    (words,) = corruption(database)
    assert words.startswith('heap table "broken.public.notes": ERROR:  invalid page in block 3')
    # nor is it read as if nothing were
    with pytest.raises(DatabaseError, match="invalid page"):
        observe_database(database, deployment="d1")


def test_flipped_bytes_are_found_without_checksums_of_pages_too(broken):
    server, database = broken
    server.stop()
    disable = (*server.run_as, str(programs() / "pg_checksums"), "--disable", f"--pgdata={server.cluster}")
    database_checks.run(database_checks._HERE, disable)
    server.start()
    damage(server, database, "notes", offset=24, size=40)  # line pointers
    damage(server, database, "notes_kind", offset=4000, size=400)
    heap, index = corruption(database)
    assert heap.startswith('heap table "broken.public.notes", block 3, offset 1: line pointer redirection')
    assert heap.endswith(" (and 9 more there)")
    assert index.startswith('btree index "broken.public.notes_kind": ERROR:')


def test_many_faults_are_cut(broken, monkeypatch):
    server, database = broken
    monkeypatch.setattr(database_checks, "_MAX_FAULTS", 1)
    damage(server, database, "notes", offset=4000)
    damage(server, database, "notes_kind", offset=4000)
    first, rest = corruption(database)
    assert first.startswith("heap table")
    assert rest == "and 1 more tables and indexes"


def wrapped(directory: Path, script: str) -> str:
    """Return a directory of programs in which pg_amcheck is a script; $REAL is the program."""
    directory.mkdir()
    program = directory / "pg_amcheck"
    program.write_text(f"#!/bin/sh\nREAL={programs()}\n{script}\n")
    program.chmod(0o755)
    return str(directory)


def test_a_fault_that_is_gone_when_looked_at_again_is_none(broken, tmp_path):
    server, database = broken
    damage(server, database, "notes_kind", offset=4000)
    repair = '"$REAL/pg_amcheck" "$@"; found=$?; "$REAL/reindexdb" --index=notes_kind; exit $found'
    repaired = database.model_copy(update={"programs": wrapped(tmp_path / "programs", repair)})
    assert corruption(repaired) == ()


def test_what_cannot_be_checked_is_no_fault_and_the_log_says_so(database, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    role = f"reader_{database.address.database}"
    execute(database, f"CREATE ROLE {role} LOGIN")
    reader = database.model_copy(update={"address": database.address.model_copy(update={"user": role})})
    assert corruption(reader) == ()
    assert f"its functions are not open to {role}" in caplog.text
    assert corruption(database.model_copy(update={"programs": str(tmp_path)})) == ()
    assert f"no pg_amcheck in {tmp_path}" in caplog.text
    caplog.clear()
    execute(database, "DROP EXTENSION amcheck")
    assert corruption(database) == ()
    assert "main was not checked for corruption: the extension amcheck is not installed" in caplog.text


def test_a_check_that_nobody_wants_is_not_made(database, caplog):
    caplog.set_level(logging.INFO)
    assert corruption(database.model_copy(update={"check_corruption": False, "programs": "/nowhere"})) == ()
    assert caplog.text == ""


def test_a_check_that_takes_too_long_is_given_up_and_the_log_says_so(database, caplog, monkeypatch):
    monkeypatch.setattr(database_checks, "_AMCHECK_TIMEOUT_S", 0.01)
    assert corruption(database) == ()
    assert "main was not checked to its end" in caplog.text


def test_a_check_that_fails_is_not_taken_for_a_clean_one(database, tmp_path):
    elsewhere = wrapped(tmp_path / "programs", 'PGPORT=1 exec "$REAL/pg_amcheck" "$@"')
    with pytest.raises(DatabaseError, match=r"pg_amcheck could not look[^$]*Connection refused"):
        corruption(database.model_copy(update={"programs": elsewhere}))


# --- queries ---------------------------------------------------------------------------------------


def test_each_declared_query_is_measured(database):
    measured = measured_queries(database, deployment="d1")
    assert set(measured) == {"by-kind", "count"}
    assert 0 < measured["by-kind"] < measured["count"] < 1
    assert measured_queries(database.model_copy(update={"queries": ()}), deployment="d1") == {}


def asking(database: Database, sql: str) -> Database:
    return database.model_copy(update={"queries": (DeclaredQuery(name="asked", sql=sql),)})


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT nothing FROM notes", 'column "nothing" does not exist'),
        ("DELETE FROM notes", "read-only transaction"),
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("COMMIT; DELETE FROM notes", "multiple commands"),
        ("SELECT pg_sleep(60)", "statement timeout"),
    ],
)
def test_a_query_that_does_not_work_is_named_and_changes_nothing(database, sql, words):
    quick = asking(database, sql).model_copy(update={"statement_timeout_s": 0.5})
    with pytest.raises(QueryFailedError, match=rf"query asked does not work: .*{words}"):
        measured_queries(quick, deployment="d1")
    assert execute(database, "SELECT count(*) FROM notes") == [(20000,)]


def test_a_slow_query_is_not_run_as_often(database, monkeypatch):
    monkeypatch.setattr(database_checks, "_MEASURE_S", 0.1)
    began = time.monotonic()
    measured = measured_queries(asking(database, "SELECT pg_sleep(0.5)"), deployment="d1")
    assert measured["asked"] >= 0.5
    assert time.monotonic() - began < 1.0


def test_a_query_is_planned_anew_each_time(database, monkeypatch):
    monkeypatch.setattr(database_checks, "_RUNS", 20)
    fails_once_prepared = asking(database, "SELECT 1 / (count(*) = 0)::int FROM pg_prepared_statements")
    assert set(measured_queries(fails_once_prepared, deployment="d1")) == {"asked"}


# --- the whole verdict -----------------------------------------------------------------------------


@pytest.fixture
def before(database) -> DatabaseState:
    state = observe_database(database, deployment="d1")
    return state.model_copy(update={"queries": measured_queries(database, deployment="d1")})


def verify(
    database: Database, before: DatabaseState, expected: DatabaseState | None = None, **queries
) -> None:
    verify_database(
        database,
        expected=expected or before,
        before=before,
        queries_before={**before.queries, **queries},
        deployment="d1",
    )


def test_a_good_migration_passes(database, before):
    execute(
        database,
        "ALTER TABLE notes ADD COLUMN more int DEFAULT 1;\nUPDATE fixed SET key = 'z' WHERE key = 'a'",
    )
    execute(database, "UPDATE alembic_version SET version_num = 'b2'")
    execute(database, "INSERT INTO notes VALUES (20001, 'new')")
    expected = before.model_copy(
        update={"revisions": {"public.alembic_version": ("b2",)}, "schema_sha256": None, "indexes": {}}
    )
    verify(database, before, expected)


def test_all_that_is_wrong_is_said_at_once(database, before):
    execute(database, "DROP INDEX notes_kind;\nDROP TABLE fixed;\nDELETE FROM notes WHERE id < 4")
    execute(database, "INSERT INTO notes SELECT n, '' FROM generate_series(20001, 20100) n")
    execute(database, "UPDATE alembic_version SET version_num = 'b2'")
    broken = database.model_copy(
        update={"queries": (FAST, DeclaredQuery(name="gone", sql="SELECT key FROM fixed"))}
    )
    with pytest.raises(StepFailedError) as caught:
        verify(broken, before, **{"by-kind": 1e-5})
    words = str(caught.value)
    for part in (
        "public.alembic_version holds b2, not a1",
        "the schema is not the expected one",
        "public.fixed is gone",
        "public.notes has lost 3 of its 20000 rows",
        "query by-kind takes",
        'query gone does not work: relation "fixed" does not exist, sqlstate 42P01. What was',
        "What was done is taken back",
    ):
        assert part in words
    assert isinstance(caught.value, DeployError)


def test_corruption_fails_it(broken):
    server, database = broken
    before = observe_database(database, deployment="d1")
    damage(server, database, "notes_kind", offset=4000)
    with pytest.raises(StepFailedError, match=r'btree index "broken\.public\.notes_kind"'):
        verify(database, before)


def test_a_query_that_was_not_measured_before_needs_only_work(database, before):
    verify(database, before.model_copy(update={"queries": {}}))


def test_grace_forgives_a_slower_query(database, before):
    execute(database, "DROP INDEX notes_kind")
    expected = before.model_copy(update={"schema_sha256": None})
    gracious = database.model_copy(update={"queries": (FAST.model_copy(update={"grace_s": 5.0}),)})
    verify(gracious, before, expected)
    strict = database.model_copy(update={"queries": (FAST,)})
    with pytest.raises(StepFailedError, match=r"query by-kind takes [\d.]+ ms at best, more than [\d.]+ ms"):
        verify(strict, before, expected, **{"by-kind": 1e-5})


def test_a_query_that_is_slow_once_is_measured_again(database, before, monkeypatch):
    monkeypatch.setattr(database_checks, "_RUNS", 1)
    monkeypatch.setattr(database_checks, "_LOOKS", 3)
    address = database.address
    url = f"postgresql://postgres@{address.host}:{address.port}/{address.database}"
    quick = asking(database, "SELECT key FROM fixed")
    with psycopg.connect(url) as owner:
        timer = threading.Timer(1.5, owner.rollback)
        owner.execute("LOCK TABLE fixed IN ACCESS EXCLUSIVE MODE")
        timer.start()
        assert list(database_checks._slow(quick, quick.queries[0], 0.01, deployment="d1")) == []
        timer.join()
    monkeypatch.setattr(database_checks, "_LOOKS", 1)
    with psycopg.connect(url) as owner:
        timer = threading.Timer(1.5, owner.rollback)
        owner.execute("LOCK TABLE fixed IN ACCESS EXCLUSIVE MODE")
        timer.start()
        (words,) = database_checks._slow(quick, quick.queries[0], 0.01, deployment="d1")
        timer.join()
    assert "query asked takes" in words
