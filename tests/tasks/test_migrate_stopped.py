"""Migrations that are told to stop, and ways back that wait in vain, on a real PostgreSQL."""

from __future__ import annotations

import signal
import time

import pytest

from rules.errors import AbortedError, FencedError, UndoFailedError
from tests.tasks.databases import (
    execute,
    fresh_database,
    idle_in_transaction,
    impatient,
    pids_of,
    session,
    wait_until,
)
from tests.tasks.migrating import BEFORE, NAME, apply, concurrent, fill, migration, revert, state

VALID = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('t_i') AND indisvalid"
BUILDING = "SELECT 1 FROM pg_stat_progress_create_index"


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        fill(made)
        yield made


def test_what_is_stopped_while_its_statements_run_is_not_committed(database):
    """As when a person aborts, or its lease has ended, in a transaction of minutes."""
    locked = (
        "SELECT 1 FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock' AND granted"
    )

    def heed():
        if execute(database, locked):
            raise AbortedError("a person said so")

    with pytest.raises(AbortedError):
        apply(database, migration(), heed=heed)
    assert state(database) == BEFORE


def test_one_that_was_given_up_for_dead_after_its_look_does_nothing(database):
    asked = []

    def heed():
        asked.append(1)
        if len(asked) == 2:  # it had looked at the version table, and stalled
            raise FencedError("recovered by another host")

    with pytest.raises(FencedError):
        apply(database, migration(up=("SELECT 1 / 0",)), heed=heed)
    assert state(database) == BEFORE


def test_stopped_between_two_statements_it_is_half_and_can_be_taken_back(database):
    def heed():
        if execute(database, VALID):
            raise AbortedError("a person said so")

    with pytest.raises(AbortedError):
        apply(database, concurrent(), heed=heed)
    assert state(database) == (["i", "k"], ["t_i"], [], ("a",))
    revert(database, concurrent())
    assert state(database) == BEFORE


def test_a_build_that_waits_is_cancelled_when_it_is_told_to_stop(database):
    told = []

    def heed():
        if execute(database, BUILDING):
            told.append(time.monotonic())
            raise AbortedError("a person said so")

    with session(database, autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (0, 0)")  # the index waits for it
        with pytest.raises(AbortedError):
            apply(database, concurrent(), heed=heed)
        assert time.monotonic() - told[0] < 2
        assert not execute(database, BUILDING)
        wait_until(lambda: not pids_of(database, NAME))
    assert state(database) == (["i", "k"], [], ["t_i"], ("a",))
    revert(database, concurrent())
    assert state(database) == BEFORE


def test_a_signal_while_an_index_is_built_ends_the_build(database):
    class TerminatedError(BaseException):
        pass

    def terminate(*_):
        raise TerminatedError

    before = signal.signal(signal.SIGALRM, terminate)
    try:
        with session(database, autocommit=False) as writer:
            writer.execute("INSERT INTO t VALUES (0, 0)")
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 1.5)
            with pytest.raises(TerminatedError):
                apply(database, concurrent())
            assert time.monotonic() - began < 4
            assert not execute(database, BUILDING)
    finally:
        signal.signal(signal.SIGALRM, before)
    revert(database, concurrent())
    assert state(database) == BEFORE


def test_a_way_down_gives_up_and_names_who_is_in_the_way_and_works_a_second_time(database):
    apply(database, concurrent())
    with idle_in_transaction(database, "SELECT FROM t") as blocker:
        began = time.monotonic()
        with pytest.raises(UndoFailedError, match=r"got no lock within 0\.7 s.*roll back again") as caught:
            revert(impatient(database, 0.7), concurrent())
        assert time.monotonic() - began < 5
        assert f"pid {blocker.info.backend_pid} (forgotten-psql of postgres, idle in" in str(caught.value)
    wait_until(lambda: not pids_of(database, NAME))
    assert state(database)[3] == ("b",)
    revert(database, concurrent())
    assert state(database) == BEFORE


def test_a_way_down_that_builds_gives_up_too_and_works_a_second_time(database):
    gone = concurrent(up=concurrent().down, down=concurrent().up)
    apply(database, gone)
    with session(database, autocommit=False, name="forgotten-psql") as writer:
        writer.execute("INSERT INTO t VALUES (0, 0)")
        with pytest.raises(UndoFailedError, match=r"got no lock within 0\.7 s.*forgotten-psql"):
            revert(impatient(database, 0.7), gone)
    revert(database, gone)
    assert state(database) == (["i", "k"], ["t_i"], [], ("a",))
