"""A schema's checksum: another for any change, the same once that is taken back; and its programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import psycopg
import pytest

from lab.postgres import Postgres, programs
from rules.database import Database, LockPolicy
from rules.hosts import HostAddress
from tasks import database as database_module
from tasks.database import libpq_environment, postgres_program, schema_sha256
from tasks.host import run
from tasks.postgres import DatabaseError
from tests.tasks.filled import (
    FIXED_TABLE,
    HNSW,
    NAMES,
    SCHEMA,
    execute,
    filled_database,
    filled_server,
    open_transaction,
    url,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Postgres]:
    with filled_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def database(server: Postgres) -> Database:
    return filled_database(server)


# --- schema ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("ALTER TABLE notes ADD COLUMN more text", "ALTER TABLE notes DROP COLUMN more"),
        ("CREATE INDEX extra ON notes (kind)", "DROP INDEX extra"),
        ("DROP INDEX memories_e", HNSW),
        ("DROP TABLE fixed", FIXED_TABLE),
        ("CREATE VIEW seen AS SELECT 'a ''b'' -- c' AS d FROM notes", "DROP VIEW seen"),
        ("ALTER TABLE notes ALTER kind SET NOT NULL", "ALTER TABLE notes ALTER kind DROP NOT NULL"),
        ("COMMENT ON TABLE notes IS 'x'", "COMMENT ON TABLE notes IS NULL"),
        ("ALTER TABLE notes ENABLE ROW LEVEL SECURITY", "ALTER TABLE notes DISABLE ROW LEVEL SECURITY"),
        ("CREATE EXTENSION pg_trgm", "DROP EXTENSION pg_trgm"),
        ("GRANT SELECT ON notes TO PUBLIC", "REVOKE SELECT ON notes FROM PUBLIC"),
        ("ALTER SEQUENCE notes_id_seq INCREMENT 2", "ALTER SEQUENCE notes_id_seq INCREMENT 1"),
    ],
)  # fmt: skip
def test_a_change_of_the_schema_is_seen_and_so_is_that_it_was_taken_back(database, up, down):
    before = schema_sha256(database)
    execute(database, up)
    assert schema_sha256(database) != before
    execute(database, down)
    if up.startswith("GRANT"):  # an owner's own privileges are spelled out from then on
        execute(database, "REVOKE ALL ON notes FROM postgres; GRANT ALL ON notes TO postgres")
    assert schema_sha256(database) == before


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO notes (kind) VALUES ('more')",
        "SELECT nextval('notes_id_seq')",
        "ANALYZE; VACUUM FULL notes",
        "REINDEX TABLE memories",
        "DROP TABLE alembic_version",
        "CREATE SCHEMA sovereign; CREATE TABLE sovereign.schema_version (revision text PRIMARY KEY)",
    ],
)
def test_rows_and_version_tables_are_no_part_of_the_schema(database, change):
    before = schema_sha256(database)
    for statement in change.split(";"):
        execute(database, statement)
    assert schema_sha256(database) == before


def test_other_sessions_temporary_tables_are_no_part_of_the_schema(database):
    before = schema_sha256(database)
    with psycopg.connect(url(database), autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE mine (x int)")
        assert schema_sha256(database) == before


def test_the_same_schema_made_anew_in_another_order_has_the_same_checksum(server, database):
    name = next(NAMES)
    server.create_database(name)
    statements = [s for s in SCHEMA.split(";\n") if s.strip() and not s.startswith("INSERT")]
    fixed = next(s for s in statements if "TABLE fixed" in s)
    other = database.model_copy(update={"address": database.address.model_copy(update={"database": name})})
    for statement in (fixed, *(s for s in statements if s != fixed)):
        execute(other, statement)
    assert schema_sha256(other) == schema_sha256(database)


def test_a_copy_of_the_schema_has_its_checksum(server, database):
    name = next(NAMES)
    server.create_database(name)
    copy = database.model_copy(update={"address": database.address.model_copy(update={"database": name})})
    dump = run(HostAddress(), (str(programs() / "pg_dump"), "--schema-only", f"--dbname={url(database)}"))
    psql = (
        str(programs() / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        f"--dbname={url(copy)}",
    )
    run(HostAddress(), psql, stdin=dump.stdout.encode())
    assert schema_sha256(copy) == schema_sha256(database)


def test_lines_that_look_like_noise_count_within_quotes():
    body = "AS $$\n-- why\n\nSET lock_timeout = 0;\n\\x\n$$;\n"
    text = "DEFAULT 'it''s\n\n-- not a comment\n'::text\n"
    name = '"odd\n\n-- name"\n'
    noise = (
        "--\n-- Name: x\n--\n\nSET client_encoding = 'UTF8';\n\\restrict abc\n\nCREATE SCHEMA sovereign;\n"
    )
    kept = "SET default_tablespace = '';\nCREATE SCHEMA other;\n"
    dump = f"{noise}CREATE FUNCTION f() {body}{noise}{kept}{text}\n{noise}{name}"
    assert database_module._statements(dump, {"sovereign"}) == f"CREATE FUNCTION f() {body}{kept}{text}{name}"
    assert "CREATE SCHEMA sovereign" in database_module._statements(dump, set())


def test_reading_the_schema_never_waits_long_for_a_lock_and_tries_again(database):
    with open_transaction(database, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE") as owner:
        timer = threading.Timer(3.0, owner.rollback)
        timer.start()
        assert len(schema_sha256(database)) == 64
        timer.join()


def test_a_lock_that_is_kept_ends_in_words(database):
    with (
        open_transaction(database, "LOCK TABLE notes IN ACCESS EXCLUSIVE MODE"),
        pytest.raises(DatabaseError, match=r"(?s)could not be read.*LOCK TABLE.*longer than 1 s"),
    ):
        schema_sha256(database.model_copy(update={"lock": LockPolicy(patience_s=1.0)}))


def test_a_pg_dump_that_is_older_than_the_server_is_said_to_be(database):
    old = [path for path in database_module.glob.glob("/usr/lib/postgresql/*/bin") if "/18/" not in path]
    if not old:
        pytest.skip("no older PostgreSQL is installed")
    with pytest.raises(DatabaseError, match=r"(?s)version mismatch.*`programs`"):
        schema_sha256(database.model_copy(update={"programs": old[0]}))


# --- programs ---------------------------------------------------------------------------------------


def test_programs_come_from_the_declared_directory_alone(database, tmp_path):
    assert postgres_program(database, "pg_dump") == str(programs() / "pg_dump")
    elsewhere = database.model_copy(update={"programs": str(tmp_path)})
    with pytest.raises(DatabaseError, match=f"no pg_dump in {tmp_path}"):
        postgres_program(elsewhere, "pg_dump")


def test_programs_come_from_the_path_first(database, tmp_path, monkeypatch):
    anywhere = database.model_copy(update={"programs": None})
    program = tmp_path / "pg_dump"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert postgres_program(anywhere, "pg_dump") == str(program)
    with pytest.raises(DatabaseError, match="no pg_nothing in PATH"):
        postgres_program(anywhere, "pg_nothing")


def test_the_newest_of_debians_programs_is_taken_where_path_has_none(database, tmp_path, monkeypatch):
    for version in ("9", "15", "9.6"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "pg_dump").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(database_module, "_DEBIAN_PROGRAMS", f"{tmp_path}/*/bin")
    anywhere = database.model_copy(update={"programs": None})
    assert postgres_program(anywhere, "pg_dump") == f"{tmp_path}/15/bin/pg_dump"


def test_no_argument_of_a_program_tells_a_password(database, tmp_path):
    passfile = tmp_path / "pgpass"
    address = database.address.model_copy(update={"passfile": str(passfile)})
    environment = libpq_environment(database.model_copy(update={"address": address}))
    assert environment["PGPASSFILE"] == str(passfile)
    assert not {"PGPASSWORD"} & set(environment)
    assert "PGPASSFILE" not in libpq_environment(database)


def test_nothing_of_a_schema_is_left_on_disk(database, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    schema_sha256(database)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - names alone
