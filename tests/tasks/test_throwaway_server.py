"""Servers of our own on copied clusters: harmless, reachable by us alone, and gone with us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psycopg
import pytest

from lab.postgres import Postgres, programs
from rules.database import Database, DatabaseAddress
from tasks.throwaway_server import (
    ThrowawayServerError,
    as_owner,
    end_servers_in,
    new_private_directory,
    server_programs,
    throwaway_server,
)

ROOT = Path(__file__).parents[2]
DATABASE = Database(
    name="main", address=DatabaseAddress(host="127.0.0.1", port=1, database="postgres", passfile="/secret")
)
#: What a production server may be configured to; none of it may be done by a copy.
DANGEROUS = """
listen_addresses = '*'
port = 5999
unix_socket_directories = '/nonexistent'
data_directory = '/nonexistent'
hba_file = '/nonexistent/hba'
external_pid_file = '{outside}/pid'
logging_collector = on
log_directory = '{outside}'
archive_mode = on
archive_command = 'touch {outside}/archived-%f'
wal_level = replica
max_wal_senders = 8
primary_conninfo = 'host=127.0.0.1 port=5999'
synchronous_standby_names = '*'
summarize_wal = on
lc_messages = 'C'
work_mem = '7MB'
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A stopped cluster with a table."""
    directory = tmp_path_factory.mktemp("template")
    with (
        Postgres(directory, settings={"wal_level": "replica"}) as server,
        psycopg.connect(server.url("postgres")) as connection,
    ):
        connection.execute("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 1000) g")
    return server.cluster


@pytest.fixture
def cluster(template, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(template, place)
    owner = template.stat()
    for path in (place, *place.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    return place


def serving(cluster, *, private=None):
    return throwaway_server(
        DATABASE, cluster, programs=programs(), private_directory=private or new_private_directory()
    )


def ask(database, query):
    address = database.address
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, dbname=address.database, autocommit=True
    ) as connection:
        answer = connection.execute(query)
        return answer.fetchone()[0] if answer.description else None


def processes_in(directory):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until_none_is_in(directory, *, timeout_s=8.0):
    deadline = time.monotonic() + timeout_s
    while (left := processes_in(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_it_serves_the_copy_on_a_private_socket_and_leaves_nothing(cluster):
    private = new_private_directory()
    with serving(cluster, private=private) as copy:
        assert copy.address.host == str(private)
        assert copy.address.passfile is None
        assert copy.server is None
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert ask(copy, "SELECT count(*) FROM t") == 1000
        assert ask(copy, "SHOW listen_addresses") == ""
        ask(copy, "CREATE TABLE written ()")
    assert not private.exists()
    assert processes_in(cluster) == []


def test_none_of_a_production_configuration_is_done(cluster, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    with (cluster / "postgresql.conf").open("a") as file:
        file.write(DANGEROUS.format(outside=outside))
    with serving(cluster) as copy:
        assert ask(copy, "SHOW work_mem") == "7MB"  # its harmless settings count
        ask(copy, "SELECT pg_switch_wal()")
        ask(copy, "CREATE TABLE written ()")  # would wait for a standby for ever
        settings = ("archive_mode", "primary_conninfo", "wal_level", "max_wal_senders", "autovacuum")
        assert [ask(copy, f"SHOW {name}") for name in settings] == ["off", "", "minimal", "0", "off"]
        workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'logical|autovacuum|archiver'"
        assert ask(copy, workers) == 0
    assert list(outside.iterdir()) == []


def test_a_configuration_that_cannot_be_used_gives_way_to_an_empty_one(cluster):
    with (cluster / "postgresql.conf").open("a") as file:
        file.write("include = '/nonexistent/settings.conf'\n")
    with serving(cluster) as copy:
        assert ask(copy, "SELECT count(*) FROM t") == 1000


def test_a_cluster_configured_elsewhere_needs_no_configuration(cluster):
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):  # as Debian has it
        (cluster / name).unlink()
    with serving(cluster) as copy:
        assert ask(copy, "SELECT count(*) FROM t") == 1000


def test_preloaded_libraries_are_kept_when_they_are_there_and_left_out_when_not(cluster):
    configuration = cluster / "postgresql.conf"
    configuration.write_text(configuration.read_text() + "shared_preload_libraries = 'pg_stat_statements'\n")
    with serving(cluster) as copy:
        assert ask(copy, "SHOW shared_preload_libraries") == "pg_stat_statements"
    configuration.write_text(configuration.read_text() + "shared_preload_libraries = 'not_installed'\n")
    with serving(cluster) as copy:
        assert ask(copy, "SHOW shared_preload_libraries") == ""


def test_it_has_no_network_so_that_a_migration_reaches_nobody_else(cluster):
    prefix = as_owner(cluster, programs())
    if "--net" not in prefix:
        pytest.skip("the kernel gives no network namespaces here")
    with serving(cluster):
        ours = Path("/proc/self/ns/net").readlink()
        theirs = {Path(f"/proc/{pid}/ns/net").readlink() for pid in processes_in(cluster)}
    assert theirs
    assert ours not in theirs


def test_what_a_running_server_left_in_the_copy_does_not_matter(cluster):
    (cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster}\n0\n5999\n\n\n 1 2\nready\n")
    (cluster / "standby.signal").touch()
    slot = cluster / "pg_replslot" / "replica"
    slot.mkdir()
    (slot / "state").write_bytes(b"broken")
    with serving(cluster) as copy:
        assert ask(copy, "SELECT pg_is_in_recovery()") is False


@pytest.mark.parametrize("link", ["pg_wal", "pg_tblspc/16384"])
def test_a_copy_that_leads_to_the_originals_files_is_refused(cluster, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    if (cluster / link).exists():
        shutil.rmtree(cluster / link)
    (cluster / link).symlink_to(outside)
    private = new_private_directory()
    with pytest.raises(ThrowawayServerError, match="outside of it"), serving(cluster, private=private):
        pass
    assert list(outside.iterdir()) == []
    assert not private.exists()


def test_one_that_does_not_start_says_why_by_its_log_and_leaves_nothing(cluster):
    (cluster / "global" / "pg_control").write_bytes(b"\0" * 8192)
    private = new_private_directory()
    with (
        pytest.raises(ThrowawayServerError, match=r"control file|database files are incompatible"),
        serving(cluster, private=private),
    ):
        pass
    assert not private.exists()
    assert processes_in(cluster) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_runs_it_as_the_owner_of_the_copy(cluster):
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 65_534, 65_534)
    with serving(cluster) as copy:
        assert ask(copy, "SELECT count(*) FROM t") == 1000
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in processes_in(cluster)} == {65_534}
        assert (cluster / "postmaster.pid").stat().st_uid == 65_534


KILLED = """
    import json, sys, time
    from pathlib import Path
    import psycopg
    from rules.database import Database
    from tasks.throwaway_server import throwaway_server
    database, cluster, programs, private = json.loads(sys.argv[1])
    with throwaway_server(
        Database.model_validate(database),
        Path(cluster),
        programs=Path(programs),
        private_directory=Path(private),
    ) as copy:
        with psycopg.connect(
            host=private, port=5432, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            print("serving", flush=True)
            connection.execute("SELECT count(*) FROM generate_series(1, 100000000000)")
"""


@pytest.mark.parametrize("owner", ["same", "another"])
def test_it_ends_when_its_starter_is_killed_also_in_the_middle_of_a_statement(cluster, owner):
    if owner == "another":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        for path in (cluster, *cluster.rglob("*")):
            os.chown(path, 65_534, 65_534)
    private = new_private_directory()
    values = [DATABASE.model_dump(mode="json"), str(cluster), str(programs()), str(private)]
    argv = [sys.executable, "-c", textwrap.dedent(KILLED), json.dumps(values)]
    try:
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
            assert starter.stdout.readline() == "serving\n"
            assert processes_in(cluster)
            starter.send_signal(signal.SIGKILL)
        wait_until_none_is_in(cluster)
    finally:
        end_servers_in(cluster)
        shutil.rmtree(private, ignore_errors=True)


def test_what_still_runs_in_a_directory_is_ended_and_nothing_else(tmp_path):
    inside, beside = tmp_path / "a" / "deep", tmp_path / "ab"
    inside.mkdir(parents=True)
    beside.mkdir()
    with (
        subprocess.Popen(["sleep", "60"], cwd=inside) as one,
        subprocess.Popen(["sleep", "60"], cwd=beside) as two,
    ):
        end_servers_in(tmp_path / "a")
        assert one.wait(5) == -signal.SIGKILL
        assert two.poll() is None
        two.kill()


def test_a_socket_never_gets_too_long_a_path(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 90)))
    place = new_private_directory()
    assert len(str(place)) < 60
    assert not place.exists()


def test_programs_are_those_of_the_servers_version():
    declared = DATABASE.model_copy(update={"programs": str(programs())})
    major = _major()
    assert server_programs(declared, major=major) == programs()
    with pytest.raises(ThrowawayServerError, match=f"no server program of PostgreSQL 9 .* has {major}"):
        server_programs(declared, major=9)
    nowhere = DATABASE.model_copy(update={"programs": "/nonexistent"})
    with pytest.raises(ThrowawayServerError, match="none was found"):
        server_programs(nowhere, major=major)


def _major():
    said = subprocess.run([programs() / "postgres", "--version"], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[2].partition(".")[0])
