"""Users of the lab's database: what they count as what, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from lab.database import LabDatabase
from lab.database_load import DatabaseLoad, LoadFigures
from lab.processes import LabError, marked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, lab_cache):
    with LabDatabase(tmp_path_factory.mktemp("database"), cache=lab_cache) as running:
        yield running


@pytest.fixture
def load(lab, tmp_path):
    with DatabaseLoad(lab.database, tmp_path / "load", readers=2, writers=1) as running:
        yield running


def later(load: DatabaseLoad, holds, *, timeout_s: float = 20.0) -> LoadFigures:
    """Return the figures once they are as wanted."""
    deadline = time.monotonic() + timeout_s
    while not holds(figures := load.figures()):
        assert time.monotonic() < deadline, figures
        time.sleep(0.05)
    return figures


def test_users_of_a_healthy_server_are_served_and_nothing_is_lost(lab, load):
    figures = later(load, lambda f: f.reads > 200 and f.commits > 20)
    assert (figures.failed, figures.refused, figures.unknown, figures.longest_interruption_s) == (
        0,
        0,
        0,
        0.0,
    )
    assert 0 < figures.p50_s <= figures.p99_s <= figures.longest_stall_s
    assert {event.what for event in load.events()} == {"by_id", "nearest", "commit"}
    load.stop()
    assert load.lost() == ()
    tokens = [event.token for event in load.committed()]
    both = "SELECT content FROM memories UNION ALL SELECT content FROM episodic_memories"
    found = lab.query(f"SELECT count(*) FROM ({both}) WHERE content = ANY(%s)", (tokens,))  # noqa: S608
    assert found == [(2 * len(set(tokens)),)] == [(2 * len(tokens),)]


def test_a_server_that_stops_refuses_and_fails_nobody(lab, load):
    before = load.figures()
    lab.run(lab.service.stop)
    time.sleep(0.7)
    lab.run(lab.service.start)
    figures = later(load, lambda f: f.reads > before.reads + 100 and f.commits > before.commits + 5)
    assert figures.failed == 0
    assert figures.refused > 5
    assert 0.5 < figures.longest_interruption_s < 10
    load.stop()
    assert load.lost() == ()


def test_also_users_who_notice_only_when_it_is_back_were_refused(lab, tmp_path):
    with DatabaseLoad(lab.database, tmp_path, readers=1, writers=0, read_pause_s=2.0) as load:
        # both asked in its first moments, so it waits now
        lab.run(lab.service.stop)
        lab.run(lab.service.start)
        figures = later(load, lambda f: f.refused > 0)
        assert figures.failed == 0


def test_ending_a_session_of_a_server_that_goes_on_is_a_failure(lab, load):
    ended = lab.query(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    assert ended == [(3,)]
    figures = later(load, lambda f: f.failed + f.unknown >= 3)
    assert figures.refused == 0


def test_a_wrong_answer_is_a_failure(lab, load):
    with psycopg.connect(lab.url) as connection:
        connection.execute("UPDATE memories SET content = 'wrong: ' || content WHERE kind <> 'load'")
        connection.commit()
        later(load, lambda f: f.failed > 0)
        connection.execute("UPDATE memories SET content = substr(content, 8) WHERE kind <> 'load'")
    assert any("WrongAnswer" in event.words for event in load.events())


def test_the_longest_stall_is_how_long_a_lock_held_readers_up(lab, load):
    with psycopg.connect(lab.url) as connection:
        connection.execute("LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
        time.sleep(0.6)
    figures = later(load, lambda f: f.longest_stall_s > 0.5)
    assert figures.longest_stall_s < 5
    assert figures.failed == 0


def test_lost_commits_are_told_one_by_one(lab, load):
    later(load, lambda f: f.commits > 10)
    load.stop()
    gone = [event.token for event in load.committed()][-4:]
    lab.query("DELETE FROM memories WHERE content = ANY(%s)", (gone,))
    assert [event.token for event in load.lost()] == gone


def test_users_end_with_the_process_that_started_them(lab, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from lab.database_load import DatabaseLoad\n"
        "from rules.database import DatabaseAddress\n"
        "address = DatabaseAddress.model_validate_json(sys.argv[1])\n"
        "with DatabaseLoad(address, Path(sys.argv[2])): print('on', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", script, lab.database.address.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "on\n"
        assert len(list(marked(tmp_path))) == 1
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while list(marked(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_users_end_by_themselves(lab, tmp_path):
    with DatabaseLoad(lab.database, tmp_path, max_duration_s=1.0) as load:
        process = load.process
        deadline = time.monotonic() + 10
        while process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert load.figures().reads > 0


def test_users_of_no_server_say_why_they_do_not_begin(lab, tmp_path):
    nowhere = lab.database.address.model_copy(update={"port": 1})
    with pytest.raises(LabError, match="refused"):
        DatabaseLoad(nowhere, tmp_path).start()
    assert not list(marked(tmp_path))
