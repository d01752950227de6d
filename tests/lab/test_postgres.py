import os

import psycopg
import pytest

from lab.identity import started_ticks
from lab.ports import is_listening
from lab.postgres import Postgres, _version, as_nobody, programs


def write_and_read(server):
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('here')")
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


def test_it_starts_stops_and_keeps_its_data_also_as_root(tmp_path):
    server = Postgres(tmp_path / "postgres")
    with server:
        assert write_and_read(server) == 1
        pid = server.process.pid
        server.stop()
        assert started_ticks(pid) is None
        assert not is_listening(server.port)
        server.start()
        assert write_and_read(server) == 2
    assert not is_listening(server.port)


def test_it_shuts_down_cleanly_with_clients_connected(tmp_path):
    with Postgres(tmp_path / "postgres") as server, psycopg.connect(server.url("postgres")):
        server.stop()
    assert "database system is shut down" in server.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_it_runs_as_nobody_where_user_namespaces_are_forbidden(tmp_path):
    server = Postgres(tmp_path / "postgres")
    server.run_as = as_nobody()
    with server:
        assert write_and_read(server) == 1
        assert server.cluster.stat().st_uid == 65_534


def test_a_copied_cluster_has_the_data_and_leaves_the_template_alone(tmp_path):
    with Postgres(tmp_path / "first") as first:
        write_and_read(first)
    copy = Postgres(tmp_path / "copy")
    copy.start(template=first.cluster)
    try:
        assert write_and_read(copy) == 2
    finally:
        copy.stop()
    with first:
        assert write_and_read(first) == 2


def test_databases_are_separate_or_copies(tmp_path):
    with Postgres(tmp_path / "postgres") as server:
        server.create_database("one")
        with psycopg.connect(server.url("one"), autocommit=True) as connection:
            connection.execute("CREATE TABLE only_here ()")
        server.create_database("two", template="one")
        with psycopg.connect(server.url("two")) as connection:
            assert connection.execute("SELECT count(*) FROM only_here").fetchone() == (0,)


def test_the_programs_are_of_one_version_new_enough():
    assert _version(str(programs() / "initdb")) >= 16
