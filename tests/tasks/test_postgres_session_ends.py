"""Sessions of a real PostgreSQL end with the process that opened them, or are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tasks.postgres_session
from tasks.postgres import DatabaseError, application_name, connection, end_sessions, in_short_tries
from tests.tasks.databases import execute, fresh_database, pids_of, session, wait_until

NAME = "web-2026-11-25"
_SLEEP = """
import sys
from rules.database import Database
from tasks.postgres import connection
database = Database.model_validate_json(sys.argv[1])
with connection(database, deployment=sys.argv[2], autocommit=True) as session:
    print("connected", flush=True)
    session.execute("SELECT pg_sleep(120)")
"""


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        yield made


@pytest.fixture
def deployer(database):
    """A process in the middle of a long statement."""
    argv = [sys.executable, "-c", _SLEEP, database.model_dump_json(), NAME]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, cwd=Path(tasks.__path__[0]).parent
    ) as process:
        assert process.stdout.readline() == "connected\n"
        running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(120)'"
        wait_until(lambda: execute(database, running))
        yield process
        process.kill()


def test_the_statement_of_a_killed_process_ends_by_itself(database, deployer):
    assert len(pids_of(database, NAME)) == 1
    deployer.send_signal(signal.SIGKILL)
    deployer.wait()
    took_s = wait_until(lambda: len(pids_of(database, NAME)) == 0)
    assert took_s < 2.5


def test_the_statement_of_a_killed_or_a_stopped_process_is_ended_at_once(database, deployer):
    deployer.send_signal(signal.SIGSTOP)  # cut off, but alive: its session would go on
    began = time.monotonic()
    assert end_sessions(database, deployment=NAME) == 1
    assert len(pids_of(database, NAME)) == 0
    assert time.monotonic() - began < 1
    assert end_sessions(database, deployment=NAME) == 0
    deployer.send_signal(signal.SIGCONT)


def test_sessions_of_others_are_left_alone(database, deployer):
    assert end_sessions(database, deployment="web-2026-11-2") == 0
    assert len(pids_of(database, NAME)) == 1


@pytest.mark.parametrize("deployment", [f"{NAME}-again", f"{NAME}-again-again"])
def test_who_takes_a_deployment_back_once_more_ends_the_sessions_of_the_earlier_tries(
    database, deployer, deployment
):
    assert end_sessions(database, deployment=f"{NAME}-against") == 0
    assert end_sessions(database, deployment=f"other-{NAME}-again") == 0
    with connection(database, deployment=deployment, autocommit=True):
        assert end_sessions(database, deployment=NAME) == 1  # not the other way round
        assert len(pids_of(database, deployment)) == 1
    deployer.wait(timeout=10)
    wait_until(lambda: not pids_of(database, NAME) and not pids_of(database, deployment))
    with session(database, name=application_name(NAME)):
        assert end_sessions(database, deployment=deployment) == 1
    assert not pids_of(database, NAME)


def test_sessions_that_do_not_end_in_time_are_an_error(database, deployer, monkeypatch):
    monkeypatch.setattr(tasks.postgres_session, "_END_TIMEOUT_S", 0.3)
    (pid,) = pids_of(database, NAME)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DatabaseError, match=rf"\[{pid}\].*still run after 0.3 s"):
            end_sessions(database, deployment=NAME)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_signal_in_the_middle_of_a_statement_gets_through_and_the_session_ends(database):
    class TerminatedError(BaseException):
        pass

    def terminate(*_):
        raise TerminatedError

    before = signal.signal(signal.SIGALRM, terminate)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        began = time.monotonic()
        with pytest.raises(TerminatedError):
            in_short_tries(
                database, lambda ours: ours.execute("SELECT pg_sleep(60)"), deployment=NAME, what="w"
            )
        assert time.monotonic() - began < 2
    finally:
        signal.signal(signal.SIGALRM, before)
    assert wait_until(lambda: len(pids_of(database, NAME)) == 0) < 2.5
