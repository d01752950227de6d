"""Commits counted in the WAL of a real PostgreSQL, against what was really committed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import psycopg
import pytest

from lab.postgres import Postgres, programs
from lab.processes import wait_until
from rules.errors import CommandError
from tasks import wal
from tasks.wal import ClusterFiles

#: What production has and the lab leaves out; and nobody commits but the tests.
DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_prepared_transactions": "5",
    "autovacuum": "off",
    "min_wal_size": "32MB",
    "max_wal_size": "32MB",
}
LIMIT_S = 60.0


def connected(server: Postgres) -> psycopg.Connection:
    return psycopg.connect(server.url("postgres"), autocommit=True)


def files(cluster: Path, **changes) -> ClusterFiles:
    return ClusterFiles(
        **{"cluster": str(cluster), "wal": f"{cluster}/pg_wal", "programs": str(programs()), **changes}
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A stopped cluster with a table."""
    with Postgres(tmp_path_factory.mktemp("template"), settings=DURABLE) as server:
        with connected(server) as connection:
            connection.execute("CREATE TABLE t (n int)")
        server.stop()
        return server.cluster


@pytest.fixture
def server(template, tmp_path):
    running = Postgres(tmp_path / "server", settings=DURABLE)
    running.start(template=template)
    yield running
    running.stop()


@pytest.fixture
def crashed(server, tmp_path) -> ClusterFiles:
    """The server's files as a crash leaves them, with commits after the checkpoint; the server runs again."""
    with connected(server) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("INSERT INTO t VALUES (2)")
    crash(server)
    copy = tmp_path / "copy"
    shutil.copytree(server.cluster, copy)
    server.start()
    return files(copy)


def crash(server: Postgres) -> None:
    """End the server at once, without a checkpoint: its next start recovers."""
    server.process.send(signal.SIGQUIT)
    wait_until(lambda: not server.process.is_alive(), timeout_s=10, what="the server's end")
    server.process = None


def commit_forty_times(server: Postgres) -> int:
    """Commit in each way there is, and do what is no commit; return how many commits it was."""
    with connected(server) as connection:
        for n in range(30):
            connection.execute("INSERT INTO t VALUES (%s)", (n,))
        for _ in range(5):
            connection.execute("SELECT count(*) FROM t")
            with connection.transaction(force_rollback=True):
                connection.execute("INSERT INTO t VALUES (-1)")
        for n in range(6):
            with connection.transaction(), connection.transaction():  # the inner one is a savepoint
                connection.execute("INSERT INTO t VALUES (%s)", (100 + n,))
        for end in ("COMMIT", "ROLLBACK", "COMMIT", "COMMIT"):
            connection.execute("BEGIN; INSERT INTO t VALUES (7); PREPARE TRANSACTION 'x'")
            connection.execute(f"{end} PREPARED 'x'")
        connection.execute("DROP TABLE t")
    return 30 + 6 + 3 + 1


def test_commits_of_every_kind_are_counted_exactly_while_it_runs_and_when_it_is_stopped(server, crashed):
    ended = wal.end(crashed, timeout_s=LIMIT_S)
    live = files(server.cluster)
    assert wal.commits_since(live, ended, timeout_s=LIMIT_S).count == 0
    committed = commit_forty_times(server)
    assert committed == 40
    running = wal.commits_since(live, ended, timeout_s=LIMIT_S)
    server.stop()
    stopped = wal.commits_since(live, ended, timeout_s=LIMIT_S)
    assert running.count == stopped.count == committed
    assert stopped.at_most >= committed
    with Postgres(server.directory, settings=DURABLE) as again:
        assert connected(again).execute("SELECT to_regclass('t')").fetchone() == (None,)


def test_a_copy_holds_what_was_committed_before_it_and_those_are_not_counted(server, crashed):
    ended = wal.end(crashed, timeout_s=LIMIT_S)
    with connected(server) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert ended.last.position != ended.control.checkpoint
    assert wal.commits_since(crashed, ended, timeout_s=LIMIT_S).count == 0


def test_a_server_that_was_stopped_in_order_is_read_likewise(server, tmp_path):
    server.stop()
    shutil.copytree(server.cluster, tmp_path / "copy")
    ended = wal.end(files(tmp_path / "copy"), timeout_s=LIMIT_S)
    assert ended.last.position.replace("/0", "/") == ended.control.checkpoint
    server.start()
    with connected(server) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    found = wal.commits_since(files(server.cluster), ended, timeout_s=LIMIT_S)
    assert found.count == 1
    crash(server)
    assert wal.commits_since(files(server.cluster), ended, timeout_s=LIMIT_S) == found


def test_where_the_wal_was_recycled_the_number_is_not_known_but_a_limit_is(server, crashed):
    ended = wal.end(crashed, timeout_s=LIMIT_S)
    with connected(server) as connection:
        for n in range(6):
            connection.execute("INSERT INTO t VALUES (%s)", (n,))
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
    found = wal.commits_since(files(server.cluster), ended, timeout_s=LIMIT_S)
    assert found.count is None
    assert "recycled" in found.why_not
    assert found.at_most >= 6


def test_another_cluster_s_wal_is_not_counted(server, crashed, tmp_path):
    ended = wal.end(crashed, timeout_s=LIMIT_S)
    with Postgres(tmp_path / "other") as other:
        found = wal.commits_since(files(other.cluster), ended, timeout_s=LIMIT_S)
    assert found.count is None
    assert "another cluster" in found.why_not


def test_on_another_timeline_the_number_is_not_known(server, crashed):
    ended = wal.end(crashed, timeout_s=LIMIT_S)
    server.stop()
    (server.cluster / "recovery.signal").touch()
    server.settings = {**DURABLE, "restore_command": "false"}
    server.start()
    with connected(server) as connection:
        question = "SELECT NOT pg_is_in_recovery()"
        wait_until(lambda: connection.execute(question).fetchone()[0], timeout_s=20, what="its own timeline")
    found = wal.commits_since(files(server.cluster), ended, timeout_s=LIMIT_S)
    assert found.count is None
    assert "timeline 2" in found.why_not


def test_by_ssh_it_is_the_same(server, crashed, remote):
    here = wal.end(crashed, timeout_s=LIMIT_S)
    assert wal.end(crashed.model_copy(update={"host": remote}), timeout_s=LIMIT_S) == here
    commit_forty_times(server)
    far = files(server.cluster, host=remote)
    assert wal.commits_since(far, here, timeout_s=LIMIT_S).count == 40


def test_a_cluster_without_the_wal_that_it_needs_is_refused(crashed):
    for segment in Path(crashed.wal).glob("0*"):
        segment.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        wal.end(crashed, timeout_s=LIMIT_S)


def test_programs_of_another_version_are_not_taken(crashed):
    major = (Path(crashed.cluster) / "PG_VERSION").read_text().strip()
    (Path(crashed.cluster) / "PG_VERSION").write_text("99\n")
    with pytest.raises(CommandError, match="no pg_waldump 99"):
        wal.control(crashed, timeout_s=LIMIT_S)
    (Path(crashed.cluster) / "PG_VERSION").write_text(f"{major}\n")
    assert wal.control(crashed, timeout_s=LIMIT_S).timeline == 1


def test_a_directory_that_holds_no_cluster_is_refused(tmp_path):
    with pytest.raises(CommandError, match="PG_VERSION"):
        wal.control(files(tmp_path), timeout_s=LIMIT_S)
