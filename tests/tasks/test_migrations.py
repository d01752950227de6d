"""Folders of plain SQL: what is pending, what is refused, and what it does on a real server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.postgres import Postgres
from rules.change import MigrationFolder
from rules.errors import InvalidRequestError
from tasks.migrations import SQL_TABLE, read_migrations
from tests.tasks.migration_files import folder_of, run_down, run_up, sha256, sql_folder

TABLE = SQL_TABLE.table
ADD = {"0001_notes__up": "CREATE TABLE notes (id int);", "0001_notes__down": "DROP TABLE notes;"}
MORE = {"0002_body__up": "ALTER TABLE notes ADD COLUMN body text;"}
INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON notes (id)"
ALONE = "-- sovereign: no-transaction\n"


@pytest.fixture
def session(postgres: Postgres) -> Iterator[psycopg.Connection]:
    name = f"migrations_{secrets.token_hex(4)}"
    postgres.create_database(name)
    with psycopg.connect(postgres.url(name), autocommit=True, prepare_threshold=None) as connection:
        yield connection


def read(folder: MigrationFolder, target: str, *done: str):
    return read_migrations(folder, target=target, applied={TABLE: done} if done else {})


def refused(folder: MigrationFolder, target: str, *done: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read(folder, target, *done)
    assert "othing was touched" in str(caught.value)
    return str(caught.value)


# --- reading ---------------------------------------------------------------------------------------


def test_what_is_pending_is_read_in_order_with_its_way_down(tmp_path):
    folder = sql_folder(tmp_path, **ADD, **MORE)
    found = read(folder, "0002_body")
    assert [one.revision for one in found.pending] == ["0001_notes", "0002_body"]
    first, second = found.pending
    assert (first.up, first.down) == (("CREATE TABLE notes (id int)",), ("DROP TABLE notes",))
    assert (second.down, second.is_transactional) == (None, True)
    assert (found.sha256, found.version_table, found.after) == (
        folder.sha256,
        SQL_TABLE,
        ("0001_notes", "0002_body"),
    )


def test_only_what_is_not_applied_and_not_beyond_the_target_is_pending(tmp_path):
    folder = sql_folder(tmp_path, **ADD, **MORE, c__up="SELECT 1")
    found = read(folder, "0002_body", "0001_notes")
    assert [one.revision for one in found.pending] == ["0002_body"]
    assert found.after == ("0001_notes", "0002_body")
    assert read(folder, "0002_body", "0001_notes", "0002_body").pending == ()


def test_names_are_ordered_by_bytes_and_not_by_their_endings(tmp_path):
    names = ["a", "a-b", "a.b", "a_b", "B", "a1"]
    folder = sql_folder(tmp_path, **{f"{name}__up": f'CREATE TABLE "{name}" ()' for name in names})
    assert [one.revision for one in read(folder, "a_b").pending] == ["B", "a", "a-b", "a.b", "a1", "a_b"]


def test_the_first_comment_is_the_title_and_the_name_stands_in_for_it(tmp_path):
    texts = {"1__up": f"{ALONE}\n-- Faster search --\n{INDEX}", "2__up": "CREATE TABLE t (); -- not this"}
    one, two = read(sql_folder(tmp_path, **texts), "2").pending
    assert (one.title, one.is_transactional, one.up) == ("Faster search", False, (INDEX,))
    assert (two.title, two.is_transactional) == ("2", True)


def test_a_mark_that_is_not_on_the_first_line_does_not_count(tmp_path):
    words = refused(sql_folder(tmp_path, a__up=f"-- x\n{ALONE}{INDEX}"), "a")
    assert "cannot run in a transaction" in words
    assert "`-- sovereign: no-transaction` as the first line" in words


def test_an_empty_way_down_is_none(tmp_path):
    folder = sql_folder(tmp_path, a__up="CREATE TABLE a ()", a__down="-- there is no way back\n;")
    assert read(folder, "a").pending[0].down is None


def test_byte_order_marks_and_windows_lines_do_no_harm(tmp_path):
    (tmp_path / "a.up.sql").write_bytes(f"\ufeff{ALONE}{INDEX};\n".replace("\n", "\r\n").encode())
    (found,) = read(folder_of(tmp_path, "sql"), "a").pending
    assert (found.is_transactional, found.up) == (False, (INDEX,))


def test_hidden_and_other_files_do_not_count(tmp_path):
    (tmp_path / ".a.up.sql").write_text("DROP TABLE x")
    (tmp_path / "README.md").write_text("words")
    assert len(read(sql_folder(tmp_path, **ADD), "0001_notes").pending) == 1


# --- refusing --------------------------------------------------------------------------------------


def test_files_that_are_not_those_asked_for_are_refused_and_both_checksums_named(tmp_path):
    asked = sql_folder(tmp_path, **ADD)
    (tmp_path / "0001_notes.up.sql").write_text("DROP TABLE notes")
    words = refused(asked, "0001_notes")
    now = folder_of(tmp_path, "sql").sha256
    assert asked.sha256 in words
    assert now in words
    assert now != asked.sha256


def test_folders_that_cannot_be_read_are_refused(tmp_path):
    gone = MigrationFolder(path=str(tmp_path / "gone"), sha256=sha256(""))
    assert "No such file or directory" in refused(gone, "a")
    assert "There is no file *.sql" in refused(MigrationFolder(path=str(tmp_path), sha256=sha256("")), "a")
    (tmp_path / "a.up.sql").mkdir()
    assert "Is a directory" in refused(MigrationFolder(path=str(tmp_path), sha256=sha256("")), "a")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.sql", "a.sql: neither NAME.up.sql nor"),
        ("a.down.sql", "a.down.sql: neither NAME.up.sql nor"),
        ("ä.up.sql", "begins with a letter or digit"),
        ("a b.up.sql", "begins with a letter or digit"),
        ("_a.up.sql", "begins with a letter or digit"),
        ("a'b.up.sql", "begins with a letter or digit"),
    ],
)
def test_files_of_which_it_is_not_clear_what_they_are_are_refused(tmp_path, name, words):
    (tmp_path / name).write_text("SELECT 1")
    assert words in refused(sql_folder(tmp_path, **ADD), "0001_notes")


def test_ways_that_do_not_lead_forward_are_refused(tmp_path):
    folder = sql_folder(tmp_path, a__up="CREATE TABLE a ()", b__up="CREATE TABLE b ()", c__up="SELECT 1")
    assert "There is no d.up.sql; the folder has a, b, c" in refused(folder, "d")
    assert "gone: applied to this database, but without an up file" in refused(folder, "b", "a", "gone")
    assert "c: applied already, and later than b" in refused(folder, "b", "a", "b", "c")
    assert "a: not applied, but earlier in order than b" in refused(folder, "c", "b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no statement"),
        (b"-- nothing\n;", "holds no statement"),
        (b"SELECT '\xff'", "is not UTF-8"),
        (b"SELECT 1;\nSELECT 'a", "line 2: the quote ' is not closed"),
    ],
)
def test_files_that_are_no_sql_are_refused(tmp_path, content, words):
    (tmp_path / "a.up.sql").write_bytes(content)
    assert words in refused(folder_of(tmp_path, "sql"), "a")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("BEGIN", "controls transactions"),
        ("start transaction isolation level serializable", "controls transactions"),
        ("/* x */ COMMIT", "controls transactions"),
        ("END", "controls transactions"),
        ("ROLLBACK", "controls transactions"),
        ("ABORT", "controls transactions"),
        ("SAVEPOINT a", "controls transactions"),
        ("RELEASE a", "controls transactions"),
        ("ROLLBACK TO a", "controls transactions"),
        ("PREPARE TRANSACTION 'a'", "controls transactions"),
        ("\\i other.sql", "psql's own"),
        ("\\set x 1\nSELECT 1", "psql's own"),
        ("SELECT 1 \\gexec", "psql's own"),
        ("COPY notes (id) FROM STDIN WITH (FORMAT csv)", "do not come as SQL"),
        ("copy (select 1) to stdout", "do not come as SQL"),
        ("SET lock_timeout = '1s'", "timeouts"),
        ("SET LOCAL statement_timeout TO 0", "timeouts"),
        ("SET SESSION transaction_timeout TO 0", "timeouts"),
        ("RESET lock_timeout", "timeouts"),
        ("SET standard_conforming_strings = off", "timeouts and the form of strings"),
        ("SELECT set_config('lock_timeout', '0', false)", "SET LOCAL"),
        ("SELECT pg_catalog.set_config('lock_timeout', '0', false)", "SET LOCAL"),
        ("RESET ALL", "the executor's own session"),
        ("DISCARD ALL", "the executor's own session"),
        ("SET ROLE nobody", "the executor's own session"),
        ("SET SESSION AUTHORIZATION nobody", "the executor's own session"),
        ("CREATE DATABASE d", "Do it by hand"),
        ("ALTER SYSTEM SET fsync = off", "Do it by hand"),
        ("ALTER TABLE a DETACH PARTITION b CONCURRENTLY", "Do it by hand"),
    ],
)
@pytest.mark.parametrize("where", ["a__up", "a__down"])
def test_statements_that_no_migration_may_hold_are_refused(tmp_path, statement, words, where):
    for kind in ("", ALONE):
        fine = {"a__up": f"{kind}ANALYZE;\n", "a__down": "ANALYZE;\n"}
        said = refused(sql_folder(tmp_path, **{**fine, where: f"{fine[where]}{statement};"}), "a")
        assert words in said
        assert ("the way down of a" if where == "a__down" else "migration a: ") in said


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL search_path TO public",
        "CREATE TABLE committed (begin_at text DEFAULT 'BEGIN; \\x')",
        "COPY notes FROM '/srv/notes.csv'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql SET lock_timeout = '1s' AS $$ BEGIN END $$",
        "COMMENT ON TABLE notes IS 'COPY x FROM STDIN'",
        "ANALYZE notes",
        "REINDEX TABLE notes",
        "DO $$ BEGIN PERFORM 1; END $$",
    ],
)
def test_what_only_looks_like_them_is_not(tmp_path, statement):
    (found,) = read(sql_folder(tmp_path, a__up=f"{statement};"), "a").pending
    assert found.up == (statement,)


REPEATABLE = [
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON notes (id)",
    "create unique index concurrently if not exists i on notes (id)",
    "DROP INDEX CONCURRENTLY IF EXISTS public.i, j",
    "ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'angry'",
    "VACUUM (ANALYZE) notes",
    "ANALYZE notes",
    "REINDEX INDEX CONCURRENTLY i",
    "REINDEX (VERBOSE) TABLE CONCURRENTLY notes",
    "REINDEX (CONCURRENTLY) INDEX i",
]
NOT_REPEATABLE = [
    "CREATE INDEX CONCURRENTLY i ON notes (id)",
    "CREATE INDEX CONCURRENTLY ON notes (id)",
    "CREATE INDEX IF NOT EXISTS i ON notes (id)",
    "DROP INDEX CONCURRENTLY i",
    "DROP INDEX IF EXISTS i",
    "ALTER TYPE mood ADD VALUE 'angry'",
    "REINDEX INDEX i",
    "CREATE TABLE IF NOT EXISTS t (id int)",
    "UPDATE notes SET id = id + 1",
    "ALTER TABLE notes ADD COLUMN IF NOT EXISTS x int",
]


@pytest.mark.parametrize("statement", REPEATABLE)
@pytest.mark.parametrize("where", ["a__up", "a__down"])
def test_outside_a_transaction_what_can_be_repeated_may_stand(tmp_path, statement, where):
    files = {"a__up": f"{ALONE}ANALYZE", "a__down": "ANALYZE", where: f"{ALONE}{statement}"}
    (found,) = read(sql_folder(tmp_path, **files), "a").pending
    assert (found.up if where == "a__up" else found.down) == (statement,)


@pytest.mark.parametrize("statement", NOT_REPEATABLE)
@pytest.mark.parametrize("where", ["a__up", "a__down"])
def test_outside_a_transaction_all_else_is_refused(tmp_path, statement, where):
    files = {"a__up": f"{ALONE}ANALYZE", "a__down": "ANALYZE", where: f"{ALONE}{statement}"}
    assert "must be right a second time" in refused(sql_folder(tmp_path, **files), "a")


@pytest.mark.parametrize(
    "statement",
    [
        *(each for each in REPEATABLE if "ADD VALUE" not in each and not each.startswith("ANALYZE")),
        "CREATE INDEX CONCURRENTLY i ON notes (id)",
        "CLUSTER",
        "REINDEX DATABASE d",
        "REINDEX (VERBOSE) SCHEMA s",
    ],
)
def test_within_a_transaction_what_would_fail_there_is_refused(tmp_path, statement):
    assert "cannot run in a transaction" in refused(sql_folder(tmp_path, a__up=statement), "a")


# --- on a server -----------------------------------------------------------------------------------


def held(session):
    return session.execute("SELECT revision, sha256 FROM sovereign.schema_version ORDER BY 1").fetchall()


def test_what_was_read_runs_and_goes_back_and_runs_again(tmp_path, session):
    files = {**ADD, **MORE, "0002_body__down": "ALTER TABLE notes DROP COLUMN body"}
    index = {"0003__up": ALONE + INDEX, "0003__down": "DROP INDEX CONCURRENTLY IF EXISTS i"}
    found = read(sql_folder(tmp_path, **files, **index), "0003")
    rows = [
        (one.revision, sha256((tmp_path / f"{one.revision}.up.sql").read_text())) for one in found.pending
    ]
    for _ in range(2):
        run_up(session, found.pending)
        assert held(session) == rows
        assert tuple(row[0] for row in held(session)) == found.after
        run_down(session, found.pending)
        assert held(session) == []
    assert session.execute("SELECT to_regclass('notes')").fetchone() == (None,)


def test_outside_a_transaction_each_way_may_be_run_twice(tmp_path, session):
    files = {**ADD, "0003__up": ALONE + INDEX, "0003__down": "DROP INDEX CONCURRENTLY IF EXISTS i"}
    first, index = read(sql_folder(tmp_path, **files), "0003").pending
    run_up(session, [first])
    assert index.down
    for statement in (*index.up, *index.up, *index.down, *index.down):
        session.execute(statement.encode())


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_each_name_that_is_allowed_is_written_as_it_is(tmp_path_factory, postgres, name):
    folder = sql_folder(tmp_path_factory.mktemp("one"), **{f"{name}__up": "CREATE TABLE one ()"})
    (found,) = read(folder, name).pending
    with psycopg.connect(postgres.url("postgres")) as connection:
        run = [connection.execute(each.encode()) for each in found.record]
        assert len(run) == 3
        row = connection.execute("SELECT revision FROM sovereign.schema_version").fetchone()
        assert row == (name,)
        for statement in found.unrecord:
            assert connection.execute(statement.encode()).rowcount == 1
        connection.rollback()
