"""Base backups of a real PostgreSQL, and whether one is stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

import lab.postgres
from blocks.postgres import PostgresAccess
from lab.postgres import Postgres, programs
from rules.errors import CommandError
from rules.finding import Result
from rules.hosts import HostAddress
from tasks import base_backup

BLOCK = "sovereign-postgres-base-backup/main"
PASSWORD = "sesame-0815-open"  # noqa: S105 - of a server in a temporary directory
HERE = HostAddress()


def execute(server, query):
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        answer = connection.execute(query)
        return answer.fetchone() if answer.description else None


TOTAL = "SELECT count(*), md5(string_agg(v, ',' ORDER BY v)) FROM t"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that can be copied, with a table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lab.postgres._SETTINGS, "wal_level", "replica")
        patch.setitem(lab.postgres._SETTINGS, "max_wal_senders", "4")
        with Postgres(tmp_path_factory.mktemp("server")) as running:
            execute(running, "CREATE TABLE t AS SELECT md5(g::text) AS v FROM generate_series(1, 5000) g")
            yield running


@pytest.fixture
def postgres(server, tmp_path):
    return PostgresAccess(
        host="127.0.0.1",
        port=server.port,
        directory=str(tmp_path / "copies"),
        programs=str(programs()),
        timeout_s=120,
    )


@pytest.fixture
def taken(postgres):
    return base_backup.take(postgres, BLOCK, deployment="d1")


def test_a_copy_is_taken_once_and_starts_as_the_server_was(postgres, taken, server, tmp_path):
    before = execute(server, TOTAL)
    assert taken.identity == f"{postgres.directory}/sovereign-d1"
    assert taken.size_bytes > 1_000_000
    execute(server, "CREATE TABLE later ()")
    assert base_backup.take(postgres, BLOCK, deployment="d1") == taken
    execute(server, "DROP TABLE later")
    copy = Postgres(tmp_path / "restored")
    shutil.copytree(taken.identity, copy.cluster)
    with copy:
        assert execute(copy, TOTAL) == before
        assert execute(copy, "SELECT to_regclass('later')") == (None,)


def test_verification_reads_every_file_and_the_wal(postgres, taken):
    found = base_backup.verify(postgres, taken)
    assert found.result is Result.PASSED
    assert taken.position in found.evidence


def test_one_changed_byte_in_any_file_is_found(postgres, taken):
    files = [
        path for path in (Path(taken.identity) / "base").rglob("*") if path.is_file() and path.stat().st_size
    ]
    changed = bytearray(files[-1].read_bytes())
    changed[0] ^= 1
    files[-1].write_bytes(changed)
    found = base_backup.verify(postgres, taken)
    assert found.result is Result.FAILED
    assert "checksum mismatch" in found.evidence


def test_a_missing_file_or_copy_is_found(postgres, taken):
    (Path(taken.identity) / "PG_VERSION").unlink()
    assert base_backup.verify(postgres, taken).result is Result.FAILED
    shutil.rmtree(taken.identity)
    assert base_backup.verify(postgres, taken).result is Result.FAILED


def test_a_copy_of_another_time_under_the_same_name_is_not_the_one_that_was_taken(postgres, taken, server):
    shutil.rmtree(taken.identity)
    execute(server, "SELECT pg_switch_wal()")
    base_backup.take(postgres, BLOCK, deployment="d1")
    assert "another one" in base_backup.verify(postgres, taken).evidence


def test_half_a_copy_is_thrown_away_and_taken_again(postgres):
    half = Path(postgres.directory) / "sovereign-d1.unfinished"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    taken = base_backup.take(postgres, BLOCK, deployment="d1")
    assert base_backup.verify(postgres, taken).result is Result.PASSED
    assert not half.exists()


def test_the_loss_is_the_wal_written_since(postgres, taken, server):
    quiet = base_backup.loss(postgres, taken, now=taken.taken_at)
    execute(server, "CREATE TABLE junk AS SELECT repeat('x', 1000) AS w FROM generate_series(1, 5000)")
    busy = base_backup.loss(postgres, taken, now=taken.taken_at + timedelta(seconds=30))
    execute(server, "DROP TABLE junk")
    assert busy.lost_s == 30
    assert busy.lost_bytes - quiet.lost_bytes > 100_000


def test_pruning_keeps_the_newest_and_what_is_not_ours(postgres, taken):
    for name in ("d2", "d3"):
        shutil.copytree(taken.identity, f"{postgres.directory}/sovereign-{name}")
    shutil.copytree(taken.identity, f"{postgres.directory}/by-hand")
    (Path(postgres.directory) / "sovereign-d0.unfinished").mkdir()
    now = datetime.now(UTC)
    for days, name in ((9, "sovereign-d1"), (8, "sovereign-d2"), (1, "sovereign-d3"), (30, "by-hand")):
        when = (now - timedelta(days=days)).timestamp()
        os.utime(f"{postgres.directory}/{name}/backup_manifest", (when, when))
    removed = base_backup.prune(postgres, now=now, keep_s=7 * 86_400)
    assert [Path(path).name for path in removed] == ["sovereign-d1", "sovereign-d2"]
    assert sorted(path.name for path in Path(postgres.directory).iterdir()) == ["by-hand", "sovereign-d3"]


def test_tablespaces_are_refused_because_their_copies_would_hit_the_originals(postgres, server, tmp_path):
    place = tmp_path / "space"
    place.mkdir()
    execute(server, f"CREATE TABLESPACE aside LOCATION '{place}'")
    try:
        with pytest.raises(base_backup.DatabaseError, match="aside"):
            base_backup.take(postgres, BLOCK, deployment="d1")
        assert base_backup.plan(postgres).result is Result.FAILED
    finally:
        execute(server, "DROP TABLESPACE aside")


def test_a_plan_asks_the_server_its_programs_and_the_directory(postgres):
    found = base_backup.plan(postgres)
    assert found.result is Result.PASSED
    assert base_backup.needed_bytes(postgres) > 1_000_000
    assert base_backup.free_bytes(postgres) > 0
    nobody = postgres.model_copy(update={"port": 1})
    assert base_backup.plan(nobody).result is Result.FAILED
    missing = postgres.model_copy(update={"programs": "/nowhere"})
    assert "/nowhere/pg_basebackup" in base_backup.plan(missing).evidence


def test_a_user_who_may_not_replicate_cannot_copy(postgres, server):
    execute(server, "CREATE ROLE reader LOGIN")
    reader = postgres.model_copy(update={"user": "reader"})
    assert "may not replicate" in base_backup.plan(reader).evidence
    with pytest.raises(CommandError):
        base_backup.take(reader, BLOCK, deployment="d1")
    assert not list(Path(postgres.directory).glob("sovereign-d1"))


def test_a_password_is_asked_for_and_shows_nowhere(postgres, server):
    execute(server, f"CREATE ROLE copier LOGIN REPLICATION PASSWORD '{PASSWORD}'")
    rules = server.cluster / "pg_hba.conf"
    before = rules.read_text()
    lines = "host all copier 127.0.0.1/32 scram-sha-256\nhost replication copier 127.0.0.1/32 scram-sha-256\n"
    rules.write_text(lines + before)
    execute(server, "SELECT pg_reload_conf()")
    copier = postgres.model_copy(update={"user": "copier", "password": SecretStr(PASSWORD)})
    try:
        wait_until_refused(copier.model_copy(update={"password": SecretStr("wrong")}))
        assert base_backup.plan(copier).result is Result.PASSED
        taken = base_backup.take(copier, BLOCK, deployment="d1")
        wrong = copier.model_copy(update={"password": SecretStr("wrong-and-secret")})
        with pytest.raises(base_backup.DatabaseError) as caught:
            base_backup.take(wrong, BLOCK, deployment="d2")
        texts = (str(caught.value), taken.model_dump_json(), repr(copier), copier.model_dump_json())
        assert not any(PASSWORD in text or "wrong-and-secret" in text for text in texts)
    finally:
        rules.write_text(before)
        execute(server, "SELECT pg_reload_conf()")


def wait_until_refused(wrong):
    """The server reads its rules a moment after it was told to."""
    deadline = time.monotonic() + 10
    while base_backup.plan(wrong).result is not Result.FAILED:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_runs_is_not_stopped_and_one_that_was_never_there_is(server, tmp_path):
    assert not base_backup.server_is_stopped(HERE, str(server.cluster))
    link = tmp_path / "link"
    link.symlink_to(server.cluster)
    assert not base_backup.server_is_stopped(HERE, str(link))
    assert base_backup.server_is_stopped(HERE, str(tmp_path))


def test_a_server_whose_pid_file_is_gone_still_runs(tmp_path):
    # what stands in the directory counts, not what a file says
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=cluster, stdin=subprocess.PIPE) as process:
        assert not base_backup.server_is_stopped(HERE, str(cluster))
        process.communicate(b"\n")
    assert base_backup.server_is_stopped(HERE, str(cluster))
    (cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster}\n")
    assert base_backup.server_is_stopped(HERE, str(cluster)) is (os.geteuid() == 0)
    base_backup.remove_stale_pid_file(HERE, str(cluster))
    assert not (cluster / "postmaster.pid").exists()
