"""Changes of a real PostgreSQL in short tries: nobody queues for long behind a lock we wait for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import lab.postgres
import tasks.blockers
from lab.postgres import Postgres
from rules.database import LockPolicy
from rules.errors import AbortedError, FencedError, StepFailedError
from tasks.postgres import DatabaseError, end_sessions, in_our_turn, in_short_tries
from tests.tasks.databases import (
    columns,
    execute,
    fresh_database,
    idle_in_transaction,
    impatient,
    pids_of,
    reader,
    session,
    wait_until,
)

NAME = "web-2026-11-25"
ADD = "ALTER TABLE t ADD COLUMN added int"


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        execute(made, "CREATE TABLE t AS SELECT g AS i FROM generate_series(1, 100) g")
        yield made


def add_column(session):
    session.execute(ADD)


def test_a_change_nobody_minds_is_done_in_the_first_try_and_returns(database):
    def work(ours):
        ours.execute(ADD)
        return ours.execute(
            "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
        ).fetchone()

    assert in_short_tries(database, work, deployment=NAME, what="w") == ("20ms", "1min")
    assert columns(database) == ["i", "added"]
    assert len(pids_of(database, NAME)) == 0


def test_readers_hardly_wait_while_a_change_waits_for_an_idle_transaction(database, caplog):
    database = database.model_copy(update={"lock": LockPolicy(pause_s=0.3, patience_s=30)})
    with (
        idle_in_transaction(database, "SELECT 'pass' || 'word' FROM t") as blocker,
        reader(database, "SELECT count(*) FROM t") as reads,
        ThreadPoolExecutor(1) as pool,
    ):
        changing = pool.submit(in_short_tries, database, add_column, deployment=NAME, what="migration 7")
        time.sleep(6)
        assert not changing.done()
        blocked = list(reads.took_s)
        blocker.rollback()
        changing.result(timeout=10)
    assert columns(database) == ["i", "added"]
    assert not reads.errors
    assert max(blocked) > 0.3  # the longest tries were reached
    assert reads.longest_s < 0.5, f"a reader waited {reads.longest_s:.3f} s"
    assert "migration 7 waits for pid" in caplog.text
    assert "forgotten-psql of postgres, idle in transaction, in a transaction that is" in caplog.text
    assert "SELECT…" in caplog.text
    assert "pass" not in caplog.text


def test_a_try_waits_no_longer_for_many_locks_than_for_one(database):
    """lock_timeout counts each wait anew, and readers of the first table would wait for all of them."""
    for number in range(6):
        execute(database, f"CREATE TABLE t{number} ()")
    lock = LockPolicy(first_ms=300, longest_ms=300, pause_s=0.2, patience_s=30)
    database = database.model_copy(update={"lock": lock})
    over = threading.Event()

    def hold(number):
        # each lets go before lock_timeout would end the wait
        with session(database) as other:
            while not over.is_set():
                with other.transaction():
                    other.execute(f"SELECT FROM t{number}")
                    time.sleep(0.22)

    def work(ours):
        ours.execute(ADD)
        for number in range(6):
            ours.execute(f"ALTER TABLE t{number} ADD COLUMN added int")

    with ThreadPoolExecutor(7) as pool, reader(database, "SELECT count(*) FROM t") as reads:
        holding = [pool.submit(hold, number) for number in range(6)]
        time.sleep(0.3)
        changing = pool.submit(in_short_tries, database, work, deployment=NAME, what="w")
        time.sleep(4)
        over.set()
        changing.result(timeout=20)
        for future in holding:
            future.result()
    assert columns(database) == ["i", "added"]
    assert not reads.errors
    assert reads.longest_s < 0.5, f"a reader waited {reads.longest_s:.3f} s"


def test_a_role_without_privileges_waits_as_well_and_names_whom_it_can_see(database):
    """It may not change deadlock_timeout, nor see what others do."""
    execute(database, "CREATE ROLE owner_of_t LOGIN")
    execute(database, "ALTER TABLE t OWNER TO owner_of_t")
    address = database.address.model_copy(update={"user": "owner_of_t"})
    ours = database.model_copy(update={"address": address})
    try:
        with idle_in_transaction(database, "SELECT FROM t") as blocker:
            with pytest.raises(StepFailedError) as caught:
                in_short_tries(impatient(ours), add_column, deployment=NAME, what="w")
            assert f"pid {blocker.info.backend_pid} (forgotten-psql of postgres" in str(caught.value)
        in_short_tries(ours, add_column, deployment=NAME, what="w")
        assert columns(database) == ["i", "added"]
        assert end_sessions(ours, deployment=NAME) == 0
    finally:
        execute(database, "REASSIGN OWNED BY owner_of_t TO postgres")
        execute(database, "DROP ROLE owner_of_t")


def test_who_keeps_a_patient_change_waiting_for_long_is_told_once(database, caplog, monkeypatch):
    monkeypatch.setattr(tasks.blockers, "_TELL_AFTER_S", 0.4)
    with session(database, autocommit=False, name="forgotten-psql") as writer, ThreadPoolExecutor(1) as pool:
        writer.execute("INSERT INTO t VALUES (0)")
        index = "CREATE INDEX CONCURRENTLY t_i ON t (i)"
        building = pool.submit(
            in_our_turn, database, lambda ours: ours.execute(index), deployment=NAME, what="index t_i"
        )
        time.sleep(1.5)
        writer.rollback()
        building.result(timeout=10)
    told = [record.getMessage() for record in caplog.records if record.name == "tasks.blockers"]
    assert len(told) == 1
    assert "index t_i has waited 0.4 s for pid" in told[0]
    assert "forgotten-psql of postgres, idle in transaction" in told[0]


def test_when_patience_ends_nothing_is_changed_and_the_blocker_is_named(database):
    with idle_in_transaction(database, "SELECT FROM t") as blocker:
        with pytest.raises(StepFailedError, match="Nothing of it was changed") as caught:
            in_short_tries(impatient(database), add_column, deployment=NAME, what="migration 7")
        assert f"pid {blocker.info.backend_pid} (forgotten-psql of postgres" in str(caught.value)
        assert "migration 7 got no lock within 0.5 s" in str(caught.value)
    assert columns(database) == ["i"]
    assert len(pids_of(database, NAME)) == 0


def test_a_prepared_transaction_in_the_way_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setitem(lab.postgres._SETTINGS, "max_prepared_transactions", "2")
    with Postgres(tmp_path / "server") as server, fresh_database(server) as database:
        execute(database, "CREATE TABLE t (i int)")
        with session(database, autocommit=False) as other:
            other.execute("INSERT INTO t VALUES (1)")
            other.execute("PREPARE TRANSACTION 'forgotten'")
        with pytest.raises(StepFailedError, match="a prepared transaction"):
            in_short_tries(impatient(database), add_column, deployment=NAME, what="w")
        execute(database, "ROLLBACK PREPARED 'forgotten'")


@pytest.mark.parametrize("way", [in_short_tries, in_our_turn])
def test_also_the_first_try_is_asked_for_once_the_sessions_are_there(database, way):
    """Who recovers ends the sessions that it finds: one that comes later must ask."""
    seen, tries = [], []

    def heed():
        seen.extend(pids_of(database, NAME))
        raise FencedError("recovered by another host")

    with pytest.raises(FencedError):
        way(database, tries.append, deployment=NAME, what="w", heed=heed)
    assert (len(seen), tries) == (2, [])


def test_who_takes_turns_with_a_limit_names_who_was_in_the_way(database):
    def drop(ours):
        ours.execute("DROP INDEX CONCURRENTLY t_i")

    execute(database, "CREATE INDEX t_i ON t (i)")
    with idle_in_transaction(database, "SELECT FROM t") as blocker:
        with pytest.raises(StepFailedError, match=r"w got no lock within 0\.4 s") as caught:
            in_our_turn(database, drop, deployment=NAME, what="w", lock_timeout_s=0.4)
        assert f"pid {blocker.info.backend_pid} (forgotten-psql of postgres" in str(caught.value)
    in_our_turn(database, drop, deployment=NAME, what="w", lock_timeout_s=0.4)


def test_each_further_try_is_asked_for_and_may_be_refused(database):
    asked = []

    def heed():
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise AbortedError("a person said so")

    with idle_in_transaction(database, "SELECT FROM t"), pytest.raises(AbortedError):
        in_short_tries(database, add_column, deployment=NAME, what="w", heed=heed)
    assert columns(database) == ["i"]


def test_a_deadlock_is_tried_again(database):
    execute(database, "CREATE TABLE u ()")
    lock = LockPolicy(first_ms=400, longest_ms=400, pause_s=0.1, patience_s=20)
    database = database.model_copy(update={"lock": lock})
    tries = []
    with session(database, autocommit=False) as other, ThreadPoolExecutor(1) as pool:
        other.execute("LOCK TABLE u")

        def work(ours):
            tries.append(1)
            if len(tries) == 2:
                crossing[0].result()  # users are never the victims: we notice first
                other.rollback()
            ours.execute("LOCK TABLE t")
            if len(tries) == 1:
                crossing.append(pool.submit(other.execute, "LOCK TABLE t"))
                time.sleep(0.1)
            ours.execute("LOCK TABLE u")
            ours.execute(ADD)

        crossing = []
        in_short_tries(database, work, deployment=NAME, what="w")
    assert len(tries) == 2
    assert columns(database) == ["i", "added"]


def test_another_error_is_not_tried_again_and_leaves_nothing(database):
    tries = []

    def work(ours):
        tries.append(1)
        ours.execute(ADD)
        ours.execute("SELECT 1 / 0")

    with pytest.raises(DatabaseError, match="division by zero") as caught:
        in_short_tries(database, work, deployment=NAME, what="w")
    assert caught.value.sqlstate == "22012"
    assert (len(tries), columns(database)) == (1, ["i"])


def test_two_deployments_take_turns_and_the_one_in_the_way_is_named(database, caplog):
    def slow(ours):
        ours.execute("SELECT pg_sleep(1)")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(in_short_tries, database, slow, deployment="first", what="the first")
        wait_until(lambda: len(pids_of(database, "first")) == 2)
        time.sleep(0.2)
        with pytest.raises(StepFailedError, match="sovereign-first"):
            in_short_tries(impatient(database, 0.3), add_column, deployment=NAME, what="the second")
        in_short_tries(database, add_column, deployment=NAME, what="beside it", exclusive=False)
        assert not first.done()
        execute(database, "ALTER TABLE t DROP COLUMN added")
        in_short_tries(database, add_column, deployment=NAME, what="the third")
        assert first.done()


def test_taking_turns_does_not_deadlock_with_an_index_that_is_built_concurrently(database):
    def build(ours):
        ours.execute("CREATE INDEX CONCURRENTLY t_i ON t (i)")

    others = impatient(database, 30)
    with (
        session(database, autocommit=False) as writer,
        ThreadPoolExecutor(2) as pool,
    ):
        writer.execute("INSERT INTO t VALUES (0)")  # the index waits for it, holding its turn
        building = pool.submit(in_our_turn, database, build, deployment=NAME, what="index")
        wait_until(lambda: execute(database, "SELECT 1 FROM pg_stat_progress_create_index"))
        waiting = pool.submit(in_short_tries, others, add_column, deployment="other", what="w")
        time.sleep(1.5)
        assert not waiting.done()
        writer.commit()
        building.result(timeout=20)
        waiting.result(timeout=20)
    assert execute(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_i'::regclass") == [
        (True,)
    ]


def test_autovacuum_gives_way_to_short_tries(tmp_path, monkeypatch):
    settings = lab.postgres._SETTINGS
    monkeypatch.setitem(settings, "autovacuum_naptime", "1s")
    with Postgres(tmp_path / "server") as server, fresh_database(server) as database:
        execute(
            database,
            "CREATE TABLE t (i int, w text) WITH (autovacuum_vacuum_cost_delay = 100, "
            "autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1)",
        )
        execute(database, "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g")
        execute(database, "DELETE FROM t WHERE i % 2 = 0")
        busy = "SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 't'::regclass"
        wait_until(lambda: execute(database, busy), timeout_s=30)
        began = time.monotonic()
        in_short_tries(database, add_column, deployment=NAME, what="w")
        assert time.monotonic() - began < 5
        assert columns(database) == ["i", "w", "added"]
