"""Sessions of a real PostgreSQL: their settings, passwords and errors."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import psycopg
import pytest

from lab.ports import LOCALHOST, free_port, give_back
from lab.postgres import Postgres
from rules.database import Database, DatabaseAddress
from rules.migration import VersionTable
from tasks.postgres import (
    DatabaseError,
    DatabaseUnreachableError,
    application_name,
    connection,
    quoted,
    version_rows,
)
from tests.tasks.databases import execute, fresh_database

NAME = "web-2026-11-25"
PASSWORD = "sesame-0815-open"  # noqa: S105 - of a server in a temporary directory


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        execute(made, "CREATE TABLE t AS SELECT g AS i FROM generate_series(1, 100) g")
        yield made


def test_each_deployment_has_a_name_of_its_own_that_the_server_keeps_whole(database):
    names = ["a", "x" * 53, "x" * 54, "x" * 54 + "y", "ü", "a\nb"]
    told = [application_name(name) for name in names]
    assert len(set(told)) == len(names)
    assert told[0] == "sovereign-a"
    for name in names:
        with connection(database, deployment=name) as ours:
            assert ours.execute("SHOW application_name").fetchone() == (application_name(name),)


def test_a_sessions_settings_hold_against_those_of_its_role_and_database(database):
    execute(database, f"ALTER DATABASE {database.address.database} SET lock_timeout = '5s'")
    execute(database, f"ALTER DATABASE {database.address.database} SET statement_timeout = '1s'")
    with connection(database, deployment=NAME, autocommit=True) as ours:
        shown = [
            ours.execute(f"SHOW {name}").fetchone()[0]
            for name in (
                "lock_timeout",
                "statement_timeout",
                "client_connection_check_interval",
                "idle_in_transaction_session_timeout",
            )
        ]
        assert shown == ["0", "0", "1s", "1min"]
        assert ours.prepare_threshold is None
    with (
        pytest.raises(DatabaseError, match="statement timeout"),
        connection(database, deployment=NAME, statement_timeout_s=0.05) as ours,
    ):
        ours.execute("SELECT pg_sleep(5)")


def test_what_is_done_is_committed_at_the_end_and_rolled_back_after_an_error(database):
    with connection(database, deployment=NAME) as ours:
        ours.execute("DELETE FROM t WHERE i = 1")
    with pytest.raises(DatabaseError, match="zero"), connection(database, deployment=NAME) as ours:
        ours.execute("WITH gone AS (DELETE FROM t RETURNING i) SELECT sum(1 / (i - 2)) FROM gone")
    assert execute(database, "SELECT count(*) FROM t") == [(99,)]


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_session_that_reads_cannot_write(database, autocommit):
    with (
        pytest.raises(DatabaseError, match="read-only transaction") as caught,
        connection(database, deployment=NAME, read_only=True, autocommit=autocommit) as ours,
    ):
        ours.execute("DELETE FROM t")
    assert caught.value.sqlstate == "25006"


def test_an_error_names_the_place_but_quotes_no_row(database):
    execute(database, "ALTER TABLE t ADD CONSTRAINT small CHECK (i < 1000)")
    with (
        pytest.raises(DatabaseError, match="violates check constraint") as caught,
        connection(database, deployment=NAME) as ours,
    ):
        ours.execute("INSERT INTO t VALUES (471147)")
    assert caught.value.sqlstate == "23514"
    assert database.address.database in str(caught.value)
    assert "471147" not in str(caught.value)


def test_an_error_about_a_value_does_not_show_it(database):
    execute(database, "CREATE TABLE words AS SELECT 'sesame \"0815\" open' AS w")
    with (
        pytest.raises(DatabaseError, match='invalid input syntax for type integer: "…", sqlstate') as caught,
        connection(database, deployment=NAME) as ours,
    ):
        ours.execute("ALTER TABLE words ALTER COLUMN w TYPE int USING w::int")
    assert "sesame" not in str(caught.value)
    assert "0815" not in str(caught.value)


def test_a_network_that_is_dead_is_noticed_also_while_data_waits_to_be_acknowledged(database):
    with (
        connection(database, deployment=NAME) as ours,
        socket.socket(fileno=os.dup(ours.fileno())) as wire,
    ):
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000


def test_a_server_that_does_not_answer_is_unreachable(database):
    port = free_port()
    address = database.address.model_copy(update={"port": port})
    with (
        pytest.raises(DatabaseUnreachableError, match=f"{LOCALHOST}:{port}.*Nothing was changed"),
        connection(database.model_copy(update={"address": address}), deployment=NAME),
    ):
        pass
    give_back(port)


def test_a_database_that_is_not_there_is_unreachable(database):
    address = database.address.model_copy(update={"database": "nowhere"})
    with (
        pytest.raises(DatabaseUnreachableError, match='"nowhere" does not exist'),
        connection(database.model_copy(update={"address": address}), deployment=NAME),
    ):
        pass


def test_a_session_that_is_ended_by_someone_else_is_lost_and_says_so(database):
    with (
        pytest.raises(DatabaseUnreachableError, match="not known"),
        connection(database, deployment=NAME) as ours,
    ):
        ours.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_what_the_server_notices_is_logged(database, caplog):
    caplog.set_level(logging.INFO)
    with connection(database, deployment=NAME) as ours:
        ours.execute("DROP TABLE IF EXISTS never_there")
    assert 'NOTICE: table "never_there" does not exist, skipping' in caplog.text


def test_names_are_quoted_as_names(database):
    with connection(database, deployment=NAME) as ours:
        assert quoted("public.order").as_string(ours) == '"public"."order"'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server of its own, where one user needs a password."""
    with Postgres(tmp_path_factory.mktemp("guarded")) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE keeper LOGIN PASSWORD '{PASSWORD}'")
            rules = server.cluster / "pg_hba.conf"
            rules.write_text(f"host all keeper {LOCALHOST}/32 scram-sha-256\n" + rules.read_text())
            admin.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def kept(guarded, tmp_path):
    """A database whose password is in a file."""
    passfile = tmp_path / "passfile"
    passfile.write_text(f"{LOCALHOST}:{guarded.port}:*:keeper:{PASSWORD}\n")
    passfile.chmod(0o600)
    address = DatabaseAddress(
        host=LOCALHOST, port=guarded.port, user="keeper", database="postgres", passfile=str(passfile)
    )
    return Database(name="main", address=address)


def user_of(database):
    with connection(database, deployment=NAME) as ours:
        return ours.execute("SELECT current_user").fetchone()[0]


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_the_password_comes_from_a_file_that_is_ours_alone(kept, mode):
    Path(kept.address.passfile).chmod(mode)
    assert user_of(kept) == "keeper"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666, 0o700])
def test_a_file_that_others_may_read_is_refused_by_name(kept, mode):
    Path(kept.address.passfile).chmod(mode)
    with pytest.raises(DatabaseUnreachableError, match=rf"passfile .* has mode {mode:04o}, not 0600 or 0400"):
        user_of(kept)


def test_a_file_of_someone_else_is_refused(kept):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(kept.address.passfile, 65_534, 65_534)
    with pytest.raises(DatabaseUnreachableError, match="belongs to user 65534, not to 0"):
        user_of(kept)


def test_a_file_that_is_not_there_or_is_none_is_refused(kept):
    path = Path(kept.address.passfile)
    path.unlink()
    with pytest.raises(DatabaseUnreachableError, match="cannot be read: No such file"):
        user_of(kept)
    path.mkdir(mode=0o600)
    with pytest.raises(DatabaseUnreachableError, match="is no file"):
        user_of(kept)


def test_a_wrong_password_is_told_but_not_shown(kept):
    path = Path(kept.address.passfile)
    path.write_text(path.read_text().replace(PASSWORD, "wrong-and-secret"))
    with pytest.raises(DatabaseUnreachableError, match="password authentication failed") as caught:
        user_of(kept)
    assert "wrong-and-secret" not in str(caught.value)


def test_a_version_table_is_read_sorted_and_may_be_missing(database):
    table = VersionTable(table="sovereign.schema_version", column="revision")
    assert version_rows(database, table, deployment=NAME) is None
    execute(database, "CREATE SCHEMA sovereign; CREATE TABLE sovereign.schema_version (revision text)")
    assert version_rows(database, table, deployment=NAME) == ()
    execute(database, "INSERT INTO sovereign.schema_version VALUES ('b'), ('a')")
    assert version_rows(database, table, deployment=NAME) == ("a", "b")
    with connection(database, deployment=NAME) as ours:
        assert version_rows(ours, table) == ("a", "b")
    wrong = VersionTable(table="sovereign.schema_version", column="version")
    with pytest.raises(DatabaseError, match='column "version" does not exist'):
        version_rows(database, wrong, deployment=NAME)
