"""Migrations outside a transaction, and killed ones, on a real PostgreSQL: what is left is taken back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tasks
from rules.database_plan import ApplyMigration
from rules.errors import StepFailedError
from tasks.concurrent_index import BuiltIndex, index_built_by, keeps_nobody_waiting
from tasks.migrate import apply_migration
from tests.tasks.databases import (
    execute,
    fresh_database,
    pids_of,
    reader,
    session,
)
from tests.tasks.migrating import (
    ALEMBIC,
    BEFORE,
    INDEXED,
    NAME,
    apply,
    concurrent,
    fill,
    leave_invalid_index,
    migration,
    revert,
    state,
    wait_until_it_runs,
)

APPLY = """
import sys
from rules.database import Database
from rules.database_plan import ApplyMigration
from tasks.migrate import apply_migration
database, action = Database.model_validate_json(sys.argv[1]), ApplyMigration.model_validate_json(sys.argv[2])
apply_migration(database, action, deployment=sys.argv[3])
"""


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        fill(made)
        yield made


@pytest.mark.parametrize(
    ("statement", "built"),
    [
        (
            "create index concurrently if not exists T_I on only public . t using hnsw (e)",
            ("t_i", "public.t"),
        ),
        ('CREATE /* ON x */ UNIQUE INDEX CONCURRENTLY "T ""I" ON "my.S"."T" (i)', ('T "I', '"my.S"."T"')),
        ("CREATE INDEX CONCURRENTLY ON t (i)", (None, "t")),
        ("CREATE INDEX t_i ON t (i)", None),
        ("DROP INDEX CONCURRENTLY t_i", None),
    ],
)
def test_what_an_index_is_called_is_read_from_its_statement(statement, built):
    assert index_built_by(statement) == (BuiltIndex(*built) if built else None)


def test_what_may_take_its_time_is_told_from_what_stops_readers():
    patient = [
        "VACUUM t",
        "analyze t",
        "REINDEX TABLE CONCURRENTLY t",
        "REINDEX (CONCURRENTLY) INDEX t_i",
        "DROP INDEX CONCURRENTLY IF EXISTS x",
        "CREATE UNIQUE INDEX CONCURRENTLY x ON t (i)",
    ]
    short = [
        "VACUUM FULL t",
        "VACUUM (FULL, ANALYZE) t",
        "REINDEX TABLE t",
        "ALTER TYPE e ADD VALUE IF NOT EXISTS 'x'",
        "ALTER TABLE t ADD c text DEFAULT 'INDEX CONCURRENTLY'",
        "REINDEX TABLE t -- CONCURRENTLY",
    ]
    assert all(keeps_nobody_waiting(statement) for statement in patient)
    assert not any(keeps_nobody_waiting(statement) for statement in short)


def test_an_invalid_index_of_that_name_is_dropped_and_built_anew(database, caplog):
    leave_invalid_index(database)
    apply(database, concurrent())
    assert state(database) == INDEXED
    definition = execute(database, "SELECT pg_get_indexdef('t_i'::regclass)")[0][0]
    assert definition == "CREATE INDEX t_i ON public.t USING btree (i)"
    assert "t_i is the invalid rest of a build that died" in caplog.text


def test_other_invalid_indexes_are_left_alone(database):
    leave_invalid_index(database, name="kept_aside")
    apply(database, concurrent())
    assert state(database) == (["i", "k"], ["t_i"], ["kept_aside"], ("b",))
    bad = concurrent(
        revision="c",
        up=("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS t_k ON t (k)",),
        record=("UPDATE alembic_version SET version_num='c'",),
    )
    action = ApplyMigration(migration=bad, version_table=ALEMBIC, revisions=("c",), schema_sha256=None)
    with pytest.raises(StepFailedError, match="sqlstate 23505"):
        apply_migration(database, action, deployment=NAME)
    assert state(database) == (["i", "k"], ["t_i"], ["kept_aside"], ("b",))


@pytest.mark.parametrize("name", ["t_k", ""])
def test_a_build_that_fails_leaves_no_index_that_would_refuse_users_rows(database, name):
    bad = concurrent(up=(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON t (k)",))
    with pytest.raises(StepFailedError, match=r"could not create unique index.*0 of its statements are done"):
        apply(database, bad)
    assert state(database) == BEFORE
    execute(database, "INSERT INTO t VALUES (1, 1)")


def test_half_of_it_is_taken_back(database):
    bad = concurrent(up=("CREATE INDEX CONCURRENTLY IF NOT EXISTS t_i ON t (i)", "VACUUM gone"))
    with pytest.raises(StepFailedError, match=r"`VACUUM gone`.*1 of its statements are done and stay"):
        apply(database, bad)
    assert state(database) == (["i", "k"], ["t_i"], [], ("a",))
    revert(database, bad)
    assert state(database) == BEFORE


def test_a_cancelled_build_is_cleaned_up(database):
    def cancel():
        query = (
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' "
            "AND pid <> pg_backend_pid()"
        )
        while not over.wait(0.05) and not execute(database, query):
            pass
        other.rollback()

    over = threading.Event()
    with session(database, autocommit=False) as other, ThreadPoolExecutor(1) as pool:
        other.execute("INSERT INTO t VALUES (0, 0)")
        cancelling = pool.submit(cancel)
        with pytest.raises(StepFailedError, match="canceling statement due to user request"):
            apply(database, concurrent())
        over.set()
        cancelling.result()
    assert state(database) == BEFORE


def test_an_index_waits_as_long_as_it_must_and_users_do_not_notice(database):
    """Longer than any lock_timeout of ours, which would leave it invalid."""
    with (
        session(database, autocommit=False) as writer,
        reader(database, "SELECT count(i) FROM t") as reads,
        ThreadPoolExecutor(1) as pool,
    ):
        writer.execute("INSERT INTO t VALUES (0, 0)")
        going = pool.submit(apply, database, concurrent())
        time.sleep(2)
        assert not going.done()
        writer.commit()
        going.result(timeout=20)
    assert state(database) == INDEXED
    assert not reads.errors
    assert reads.longest_s < 0.5


def test_an_index_of_another_table_is_not_taken_for_ours(database):
    execute(database, "CREATE TABLE u (i int); CREATE INDEX t_i ON u (i)")
    with pytest.raises(StepFailedError, match="belongs to another table"):
        apply(database, concurrent())
    assert execute(database, "SELECT 't_i'::regclass IS NOT NULL") == [(True,)]
    assert state(database) == BEFORE


def test_a_value_of_a_type_is_added_outside_a_transaction(database):
    execute(database, "CREATE TYPE mood AS ENUM ('good')")
    apply(database, concurrent(up=("ALTER TYPE mood ADD VALUE IF NOT EXISTS 'bad'",), down=()))
    assert execute(database, "SELECT enum_range(NULL::mood)::text") == [("{good,bad}",)]


def start(database, what):
    action = ApplyMigration(migration=what, version_table=ALEMBIC, revisions=("b",), schema_sha256=None)
    argv = [sys.executable, "-c", APPLY, database.model_dump_json(), action.model_dump_json(), NAME]
    return subprocess.Popen(argv, cwd=Path(tasks.__path__[0]).parent)


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_in_a_migration_is_taken_back_at_once(database, signalled):
    slow = migration(up=(*migration().up, "SELECT pg_sleep(60)"))
    with start(database, slow) as process:
        try:
            wait_until_it_runs(database, "pg_sleep")
            process.send_signal(signalled)
            began = time.monotonic()
            revert(database, slow)
            assert time.monotonic() - began < 2
            assert state(database) == BEFORE
            assert not pids_of(database, NAME)
        finally:
            process.kill()
    time.sleep(0.2)
    assert state(database) == BEFORE


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_while_an_index_is_built_is_taken_back(database, signalled):
    with session(database, autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (0, 0)")
        with start(database, concurrent()) as process:
            try:
                wait_until_it_runs(database, "CREATE INDEX CONC")
                process.send_signal(signalled)
                with ThreadPoolExecutor(1) as pool:
                    going = pool.submit(revert, database, concurrent())
                    time.sleep(0.5)
                    writer.rollback()  # the drop waits for it too
                    going.result(timeout=10)
                assert not pids_of(database, NAME)
            finally:
                process.kill()
    assert state(database) == BEFORE


def test_a_process_that_dies_while_an_index_is_built_leaves_a_rest_that_is_built_over(database):
    with session(database, autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (0, 0)")
        with start(database, concurrent()) as process:
            wait_until_it_runs(database, "CREATE INDEX CONC")
            time.sleep(0.3)
            process.kill()
        deadline = time.monotonic() + 5
        while execute(database, "SELECT 1 FROM pg_stat_progress_create_index"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert state(database) == (["i", "k"], [], ["t_i"], ("a",))
    apply(database, concurrent())
    assert state(database) == INDEXED


def test_a_process_that_dies_between_the_index_and_its_record_is_taken_back(database):
    waiting = concurrent(
        record=(
            *concurrent().record,
            "SELECT pg_sleep(case when to_regclass('t_i') is null then 0 else 60 end)",
        )
    )
    with start(database, waiting) as process:
        wait_until_it_runs(database, "pg_sleep")
        process.kill()
    assert state(database) == (["i", "k"], ["t_i"], [], ("a",))
    revert(database, waiting)
    assert state(database) == BEFORE
