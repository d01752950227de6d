"""A database's state, read from a real server: the same for the same content, another for any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from lab.postgres import Postgres
from rules.database import Database, DatabaseState, DeclaredTable
from rules.errors import InvalidRequestError
from tasks.database import schema_sha256
from tasks.postgres import DatabaseError, DatabaseUnreachableError
from tests.tasks.filled import (
    FIXED,
    execute,
    filled_database,
    filled_server,
    observe,
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


# --- content ---------------------------------------------------------------------------------------


def test_an_untouched_database_reads_the_same_again(database):
    before = observe(database)
    assert {name: digest.rows for name, digest in before.tables.items()} == {
        "public.notes": 1000,
        "public.fixed": 2,
        "public.memories": 200,
    }
    assert before.revisions == {"public.alembic_version": ("a1", "b2")}
    assert before.tables["public.notes"].columns == ("id", "at", "kind", "score")
    assert before.tables["public.notes"].watermark == "1000"
    assert before.tables["public.fixed"].watermark is None
    assert observe(database) == before
    assert observe(database, like=before) == before
    assert DatabaseState.model_validate_json(before.model_dump_json()) == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE notes SET kind = NULL WHERE id = 17",
        "UPDATE notes SET kind = '' WHERE id = 17",
        "UPDATE notes SET score = score + 1e-13 WHERE id = 1",
        "UPDATE notes SET at = at + interval '1 microsecond' WHERE id = 1000",
        "UPDATE notes a SET score = b.score FROM notes b WHERE (a.id, b.id) IN ((5, 6), (6, 5))",
        "UPDATE fixed SET value = '{\"x\": 1.0}' WHERE key = 'a'",
        "UPDATE memories SET e = '[1,1,0.0001]' WHERE id = 1",
    ],
)
def test_one_changed_value_is_another_content(database, change):
    before = observe(database)
    execute(database, change)
    (words,) = observe(database, like=before).differences(before)
    assert "not the same content" in words


def test_the_order_of_rows_does_not_count_but_a_second_copy_of_one_does(database):
    before = observe(database)
    execute(database, "CREATE TEMPORARY TABLE t AS SELECT * FROM fixed; DELETE FROM fixed; "
                      "INSERT INTO fixed SELECT * FROM t ORDER BY key DESC")  # fmt: skip
    execute(database, "UPDATE notes SET kind = kind WHERE id < 400")
    assert observe(database, like=before) == before
    execute(database, "ALTER TABLE memories_1 ADD CONSTRAINT never CHECK (true)")
    execute(database, "INSERT INTO memories SELECT * FROM memories WHERE id IN (1, 1)")
    execute(database, "DELETE FROM memories WHERE id = 2")
    found = observe(database, like=before).tables["public.memories"]
    assert found.rows == before.tables["public.memories"].rows
    assert found.checksum != before.tables["public.memories"].checksum


def test_rows_that_users_add_meanwhile_are_left_out_and_lost_ones_are_counted(database):
    before = observe(database)
    execute(database, "INSERT INTO notes (kind) SELECT 'new' FROM generate_series(1, 50)")
    execute(database, "INSERT INTO memories VALUES (999, '2026-02-28', '[1,2,3]')")
    assert observe(database, like=before).differences(before) != ()  # its watermark is that very day
    execute(database, "DELETE FROM memories WHERE id = 999")
    assert observe(database, like=before) == before
    execute(database, "DELETE FROM notes WHERE id IN (3, 1040)")
    assert observe(database, like=before).differences(before) == (
        "public.notes has 999 of the rows that count, not 1000",
    )


def test_a_table_that_was_empty_has_only_new_rows(database):
    execute(database, "TRUNCATE notes")
    before = observe(database)
    assert (before.tables["public.notes"].rows, before.tables["public.notes"].watermark) == (0, None)
    execute(database, "INSERT INTO notes (kind) VALUES ('new')")
    assert observe(database, like=before) == before


@pytest.mark.parametrize("kind", ["timestamp(0)", "numeric(12,3)", "text", "uuid", "integer[]", '"odd %s"'])
def test_tables_grow_by_columns_of_any_ordered_type(database, kind):
    execute(database, 'CREATE DOMAIN "odd %s" AS integer')
    value = {
        "timestamp(0)": "timestamp '2026-01-01' + n * interval '1 s'",
        "uuid": "lpad(n::text, 32, '0')::uuid",
        "integer[]": "ARRAY[n]",
        "text": "lpad(n::text, 5, '0')",
    }.get(kind, "n")
    execute(database, f'CREATE TABLE grown ("by" {kind}, "100%% of it" text)')
    fill = f"INSERT INTO grown SELECT ({value})::{kind}, 'x' FROM generate_series"  # noqa: S608 - our own words
    execute(database, f"{fill}(1, 50) n")
    declared = database.model_copy(
        update={"tables": (DeclaredTable(name="public.grown", append_only_by="by"),)}
    )
    before = observe(declared)
    assert before.tables["public.grown"].rows == 50
    execute(database, f"{fill}(51, 60) n")
    assert observe(declared, like=before) == before


def test_how_a_role_or_database_writes_text_makes_no_difference(database):
    before = observe(database, indexes_of="public.memories")
    name = database.address.database
    execute(database, f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'")
    execute(database, f"ALTER DATABASE {name} SET datestyle = 'German'")
    execute(database, f"ALTER DATABASE {name} SET intervalstyle = 'sql_standard'")
    execute(database, f"ALTER DATABASE {name} SET bytea_output = 'escape'")
    execute(database, f"ALTER DATABASE {name} SET extra_float_digits = -5")
    execute(database, f"ALTER DATABASE {name} SET search_path = ''")
    assert observe(database, like=before, indexes_of="public.memories") == before


def test_a_gone_column_or_table_is_named(database):
    before = observe(database)
    execute(database, "ALTER TABLE notes DROP COLUMN kind")
    execute(database, "DROP TABLE fixed")
    now = observe(database, like=before)
    assert now.tables["public.notes"].checksum == "column kind is gone"
    assert now.tables["public.notes"].rows == 1000
    assert {"public.fixed is gone", "public.notes: column kind is gone"} < set(now.differences(before))
    execute(database, "ALTER TABLE notes DROP COLUMN id")
    assert observe(database, like=before).tables["public.notes"].checksum == "column id, kind is gone"


def test_a_new_column_does_not_count(database):
    before = observe(database)
    execute(database, "ALTER TABLE notes ADD COLUMN more text DEFAULT 'x'")
    now = observe(database, like=before)
    assert now.tables == before.tables
    assert now.schema_sha256 != before.schema_sha256


@pytest.mark.parametrize(
    ("table", "by", "words"),
    [
        ("public.absent", None, "no table public.absent"),
        ("public.notes_pkey", None, "no table public.notes_pkey"),
        ("public.notes", "born", "has no column born"),
        ("public.notes", "kind", "NULL in some rows"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused(database, table, by, words):
    execute(database, "UPDATE notes SET kind = NULL WHERE id = 4")
    wrong = database.model_copy(update={"tables": (DeclaredTable(name=table, append_only_by=by),)})
    with pytest.raises(InvalidRequestError, match=words):
        observe(wrong)


def test_rows_that_a_policy_hides_are_an_error_and_not_absent(database, server):
    role = f"reader_{database.address.database}"
    execute(database, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = database.model_copy(
        update={"address": database.address.model_copy(update={"user": role}), "tables": (FIXED,)}
    )
    assert observe(reader).tables["public.fixed"].rows == 2
    execute(database, "ALTER TABLE fixed ENABLE ROW LEVEL SECURITY")
    with pytest.raises(DatabaseError, match="row-level security"):
        observe(reader)


def test_a_row_with_an_early_number_that_commits_late_is_waited_for(database):
    late = "INSERT INTO notes (kind) VALUES ('drew 1001, commits last')"
    with open_transaction(database, late) as writer:
        execute(database, "INSERT INTO notes (kind) VALUES ('drew 1002, commits first')")
        timer = threading.Timer(0.5, writer.commit)
        timer.start()
        before = observe(database)
        timer.join()
    assert (before.tables["public.notes"].watermark, before.tables["public.notes"].rows) == ("1002", 1002)
    assert observe(database, like=before) == before


def test_who_stays_in_a_transaction_for_long_is_named_but_not_waited_for(database, caplog):
    with open_transaction(database, "SELECT 1") as idle:
        began = time.monotonic()
        observe(database)
        assert 5 <= time.monotonic() - began < 15
        assert f"[{idle.info.backend_pid}]" in caplog.text


def test_what_was_counted_under_live_writes_stays_as_it_was(database):
    over = threading.Event()

    def write(number: int) -> None:
        with psycopg.connect(url(database)) as connection:
            while not over.is_set():
                connection.execute("INSERT INTO notes (kind) VALUES ('a'), ('b')")
                time.sleep(0.05 * number)
                connection.execute("INSERT INTO notes (kind) VALUES ('c')")
                connection.commit()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for writer in writers:
        writer.start()
    try:
        states = [observe(database) for _ in range(5)]
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert len({state.tables["public.notes"].rows for state in states}) > 1
    for state in states:
        assert observe(database, like=state).tables == state.tables


def test_a_state_that_is_compared_waits_for_nobody(database):
    before = observe(database)
    with open_transaction(database, "SELECT 1"):
        began = time.monotonic()
        observe(database, like=before)
        assert time.monotonic() - began < 4


def test_two_hundred_thousand_rows_take_about_a_second(database):
    execute(
        database, "INSERT INTO notes (kind, score) SELECT md5(n::text), n FROM generate_series(1, 200000) n"
    )
    began = time.monotonic()
    before = observe(database)
    took_s = time.monotonic() - began
    assert before.tables["public.notes"].rows == 201_000
    assert took_s < 5, f"{took_s:.2f} s"


# --- revisions -------------------------------------------------------------------------------------


def test_each_version_table_that_exists_is_read_by_its_key(database):
    execute(
        database,
        "CREATE SCHEMA sovereign; CREATE TABLE sovereign.schema_version ("
        "applied_at timestamptz DEFAULT now(), revision text PRIMARY KEY); "
        "INSERT INTO sovereign.schema_version (revision) VALUES ('0002'), ('0001')",
    )
    assert observe(database).revisions == {
        "public.alembic_version": ("a1", "b2"),
        "sovereign.schema_version": ("0001", "0002"),
    }
    execute(database, "DROP TABLE alembic_version; DROP SCHEMA sovereign CASCADE")
    assert observe(database).revisions == {}


# --- indexes ---------------------------------------------------------------------------------------


def test_all_indexes_of_a_table_and_its_partitions_are_told(database):
    found = observe(database, indexes_of="public.memories").indexes
    using = "USING hnsw (e vector_cosine_ops) WITH (m='16', ef_construction='64')"
    assert {name: (facts.definition, facts.parent) for name, facts in found.items()} == {
        "public.memories_e": (f"CREATE INDEX ON ONLY public.memories {using}", None),
        "public.memories_1_e_idx": (f"CREATE INDEX ON public.memories_1 {using}", "public.memories_e"),
        "public.memories_2_e_idx": (f"CREATE INDEX ON ONLY public.memories_2 {using}", "public.memories_e"),
        "public.memories_2_odd_e_idx": (
            f"CREATE INDEX ON public.memories_2_odd {using}", "public.memories_2_e_idx",
        ),
    }  # fmt: skip
    assert all(facts.is_valid for facts in found.values())
    assert set(observe(database, indexes_of="public.notes").indexes) == {"public.notes_pkey"}
    assert observe(database).indexes == {}


def test_an_index_is_told_alike_wherever_pgvector_lives(database):
    before = observe(database, indexes_of="public.memories").indexes
    execute(database, "CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
    assert observe(database, indexes_of="public.memories").indexes == before


def test_an_index_that_is_not_valid_or_whose_name_needs_quotes(database):
    execute(database, "CREATE INDEX half ON ONLY memories (id)")
    execute(database, 'CREATE UNIQUE INDEX "Odd INDEX half ON " ON notes (kind, id)')
    assert observe(database, indexes_of="public.memories").indexes["public.half"].is_valid is False
    assert set(observe(database, indexes_of="public.notes").indexes) == {"public.notes_pkey"}


def test_indexes_of_a_table_that_is_not_there(database):
    with pytest.raises(InvalidRequestError, match=r"no table public\.absent"):
        observe(database, indexes_of="public.absent")
    assert observe(database, like=observe(database), indexes_of="public.absent").indexes == {}


# --- reaching it -----------------------------------------------------------------------------------


def test_a_server_that_is_away_is_unreachable(database):
    away = database.model_copy(update={"address": database.address.model_copy(update={"port": 1})})
    with pytest.raises(DatabaseUnreachableError):
        observe(away)
    with pytest.raises(DatabaseError, match="could not be read"):
        schema_sha256(away)
