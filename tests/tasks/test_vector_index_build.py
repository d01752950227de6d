"""Building a vector index on a real PostgreSQL: watched, cut short, killed, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest

from lab.postgres import Postgres
from rules.errors import FencedError, RevokedError, StepFailedError, WorldMovedError
from rules.index_plan import BuildMemory
from rules.vector_index import Hnsw
from tasks import vector_index, vector_index_build
from tasks.postgres import application_name, connection, end_sessions
from tasks.vector_catalog import at_home, index_state
from tests.tasks import vectors
from tests.tasks.vectors import change, copy_of, observed, plan, query

SLOW = Hnsw(m=48, ef_construction=400)
_BUILD = """
import sys
from rules.database import Database
from rules.database_plan import BuildIndex
from tasks.vector_index_build import build_index
database = Database.model_validate_json(sys.argv[1])
action = BuildIndex.model_validate_json(sys.argv[2])
build_index(database, action, deployment="d1")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Postgres(tmp_path_factory.mktemp("vectors"), settings=vectors.SETTINGS) as running:
        vectors.fill(running, "small", partitioned=False)
        vectors.fill(running, "large", rows=3_000, dimensions=64, partitioned=False, index=None)
        yield running


@pytest.fixture
def small(server):
    return copy_of(server, "small")


@pytest.fixture
def large(server):
    return copy_of(server, "large")


def build(database, action, **other):
    vector_index_build.build_index(database, action, deployment="d1", poll_s=0.05, **other)


def building(database, how=None):
    """The step that builds the index, and the one that takes it back."""
    step = plan(database, change(how=how) if how else change()).steps[0]
    return step.action, step.undo


def state_of(database, action):
    with connection(database, deployment="look", autocommit=True) as session:
        at_home(session)
        return index_state(session, action.partition.index)


def sessions(database):
    words = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return query(database, words, (application_name("d1"),))[0][0]


def wait_for(condition, *, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def phase(database):
    rows = query(
        database, "SELECT phase FROM pg_stat_progress_create_index WHERE datname = current_database()"
    )
    return rows[0][0] if rows else ""


def kill_while_building(database, action):
    """Let a process of its own build the index, and kill it in the middle."""
    argv = [sys.executable, "-c", _BUILD, database.model_dump_json(), action.model_dump_json()]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: phase(database) == "building index: loading tuples")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_progress_is_told_with_phases_and_grows(large):
    action, _ = building(large, SLOW)
    seen = []
    build(large, action, progress=seen.append)
    phases = {one.phase for one in seen}
    assert "building index: loading tuples" in phases
    ratios = [one.done_ratio for one in seen if one.done_ratio is not None]
    assert ratios == sorted(ratios)
    assert ratios[-1] == 1
    assert any(0 < one.blocks_done < one.blocks_total for one in seen)
    state = state_of(large, action)
    assert (state.is_whole, state.found.is_valid) == (True, False)  # hidden until it is swapped in


def test_too_little_memory_is_told_by_the_servers_own_words(large):
    action, _ = building(large)
    seen = []
    with connection(large, deployment="d1", autocommit=True) as session:
        at_home(session)
        one = vector_index_build._Build(
            large, action, session, deployment="d1", tell=seen.append, heed=lambda: None
        )
        session.add_notice_handler(one._notice)
        one._build(BuildMemory(maintenance_work_mem_bytes=1024**2, workers=0, needed_bytes=1), 0.05)
    assert any("no longer fits into maintenance_work_mem" in notice for notice in seen[-1].notices)


def test_workers_that_do_not_get_their_shared_memory_are_done_without(small):
    name = small.address.database
    query(small, f"ALTER DATABASE {name} SET maintenance_work_mem = '1900GB'")
    action, _ = building(small)
    seen = []
    build(small, action, progress=seen.append)
    assert any("built without workers: could not resize shared memory" in n for n in seen[-1].notices)
    assert state_of(small, action).is_whole


def test_who_keeps_a_build_waiting_is_named(small):
    action, _ = building(small)
    before = observed(small)
    seen = []
    with psycopg.connect(
        host="127.0.0.1",
        port=small.address.port,
        user="postgres",
        dbname=small.address.database,
        application_name="somebody",
    ) as user:
        user.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        user.execute("SELECT count(*) FROM memories")

        def leave_once_named(now):
            seen.append(now)
            if now.waits_for:
                user.rollback()

        build(small, action, progress=leave_once_named)
    (words,) = {one.waits_for.split(" (")[1].split(",")[0] for one in seen if one.waits_for}
    assert words == "somebody of postgres"
    assert len(observed(small).indexes) == len(before.indexes) + 1


def test_who_is_told_to_stop_cancels_the_build_and_leaves_nothing(large):
    action, _ = building(large, SLOW)

    def heed():
        if phase(large) == "building index: loading tuples":
            raise RevokedError("cancelled")

    with pytest.raises(RevokedError, match="cancelled"):
        build(large, action, heed=heed)
    assert observed(large).indexes == {}
    assert sessions(large) == 0


def test_one_that_was_fenced_off_neither_begins_again_nor_ends_who_goes_on(large):
    action, _ = building(large, SLOW)

    def heed():
        raise FencedError("recovered by another process")

    with connection(large, deployment="d1", autocommit=True) as session:
        with pytest.raises(FencedError):
            build(large, action, heed=heed)
        assert session.execute("SELECT 1").fetchall() == [(1,)]
    assert observed(large).indexes == {}


def test_a_build_whose_deployer_was_killed_is_removed_at_once(large):
    action, undo = building(large, SLOW)
    kill_while_building(large, action)
    began = time.monotonic()
    vector_index.remove_index(large, undo, deployment="d1")
    assert time.monotonic() - began < 10
    assert observed(large).indexes == {}
    assert sessions(large) == 0
    vector_index.remove_index(large, undo, deployment="d1")


def test_what_a_killed_build_left_is_dropped_and_built_anew(large):
    action, _ = building(large, Hnsw(m=32, ef_construction=200))
    kill_while_building(large, action)
    wait_for(lambda: sessions(large) == 0)  # by itself: the server notices that its client is gone
    assert not state_of(large, action).is_whole
    # the trap: this says that all is well
    name = action.partition.index.split(".")[1]
    query(
        large, f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON memories USING hnsw (e vector_cosine_ops)"
    )
    assert not state_of(large, action).is_whole
    build(large, action)
    assert state_of(large, action).is_whole
    oid = query(large, f"SELECT '{action.partition.index}'::regclass::oid")
    build(large, action)
    assert query(large, f"SELECT '{action.partition.index}'::regclass::oid") == oid


def test_one_that_became_valid_just_before_its_deployer_died_is_hidden_and_kept(small):
    action, _ = building(small)
    build(small, action)
    name = action.partition.index
    query(small, "UPDATE pg_index SET indisvalid = true WHERE indexrelid = %s::regclass", (name,))
    query(small, f"COMMENT ON INDEX {name} IS NULL")
    oid = query(small, f"SELECT '{name}'::regclass::oid")
    build(small, action)
    assert query(small, f"SELECT '{name}'::regclass::oid") == oid
    assert not state_of(small, action).found.is_valid


def test_an_index_of_that_name_that_is_another_one_is_left_alone(small):
    action, _ = building(small)
    query(small, f"CREATE INDEX {action.partition.index.split('.')[1]} ON memories (id)")
    with pytest.raises(WorldMovedError, match="left alone"):
        build(small, action)


def test_a_build_that_the_server_ends_fails_and_says_what_is_left(large):
    action, undo = building(large, SLOW)
    ended = []

    def end_it(now):
        if now.phase == "building index: loading tuples" and not ended:
            ended.append(end_sessions_of_build(large))

    with pytest.raises(StepFailedError, match=r"was not built: terminating connection.*Part of it is left"):
        build(large, action, progress=end_it)
    vector_index.remove_index(large, undo, deployment="d1")
    assert observed(large).indexes == {}


def end_sessions_of_build(database):
    return query(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index "
        "WHERE datname = current_database()",
    )


def test_a_transaction_that_does_not_end_keeps_an_index_from_being_dropped_but_not_for_ever(small):
    action, undo = building(small)
    build(small, action)
    impatient = small.model_copy(update={"lock": small.lock.model_copy(update={"patience_s": 0.3})})
    with psycopg.connect(
        host="127.0.0.1", port=small.address.port, user="postgres", dbname=small.address.database
    ) as user:
        user.execute("SELECT count(*) FROM memories")
        with pytest.raises(StepFailedError, match="still used by a transaction"):
            vector_index.remove_index(impatient, undo, deployment="d1")
    vector_index.remove_index(small, undo, deployment="d1")
    assert state_of(small, action) is None
    assert end_sessions(small, deployment="d1") == 0
