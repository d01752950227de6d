"""Migrations on a real PostgreSQL: applied once, taken back once, whole or not at all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.ports import LOCALHOST
from lab.postgres import Postgres
from rules.database import Database, DatabaseAddress
from rules.database_plan import ApplyMigration
from rules.database_undo import RevertMigration
from rules.errors import StepFailedError, UndoFailedError, WorldMovedError
from rules.migration import VersionTable
from tasks.migrate import apply_migration, is_applied, revert_migration, version_rows
from tasks.migrations import read_migrations
from tasks.postgres import DatabaseUnreachableError
from tests.tasks.databases import (
    QUICK,
    execute,
    fresh_database,
    idle_in_transaction,
    impatient,
    reader,
)
from tests.tasks.migrating import (
    AFTER,
    ALEMBIC,
    BEFORE,
    INDEXED,
    NAME,
    apply,
    concurrent,
    fill,
    migration,
    revert,
    state,
    wait_until_it_runs,
)
from tests.tasks.migration_files import alembic_folder, sql_folder

FILES = VersionTable(table="sovereign.schema_version", column="revision")


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        fill(made)
        yield made


def test_apply_and_revert_lead_there_and_back(database):
    assert not is_applied(database, migration(), ALEMBIC, deployment=NAME)
    apply(database, migration())
    assert state(database) == AFTER
    assert is_applied(database, migration(), ALEMBIC, deployment=NAME)
    assert execute(database, "SELECT DISTINCT two FROM t") == [("100 %",)]
    revert(database, migration())
    assert state(database) == BEFORE


@pytest.mark.parametrize(("make", "after"), [(migration, AFTER), (concurrent, INDEXED)])
def test_twice_is_once_both_ways(database, make, after):
    for _ in range(2):
        apply(database, make())
        assert state(database) == after
    for _ in range(2):
        revert(database, make())
        assert state(database) == BEFORE


@pytest.mark.parametrize("make", [migration, concurrent])
def test_reverting_what_never_happened_changes_nothing(database, make):
    revert(database, make())
    assert state(database) == BEFORE


def test_the_first_migration_of_plain_files_makes_its_table(database):
    first = migration(
        revision="001-one",
        record=(
            "CREATE SCHEMA IF NOT EXISTS sovereign",
            "CREATE TABLE IF NOT EXISTS sovereign.schema_version (revision text PRIMARY KEY)",
            "INSERT INTO sovereign.schema_version VALUES ('001-one')",
        ),
        unrecord=("DELETE FROM sovereign.schema_version WHERE revision = '001-one'",),
    )
    action = ApplyMigration(migration=first, version_table=FILES, revisions=("001-one",), schema_sha256=None)
    apply_migration(database, action, deployment=NAME)
    assert version_rows(database, FILES, deployment=NAME) == ("001-one",)
    step = RevertMigration(migration=first, version_table=FILES, revisions=(), schema_sha256=None)
    for _ in range(2):
        revert_migration(database, step, deployment=NAME)
        assert version_rows(database, FILES, deployment=NAME) == ()
    assert state(database)[0] == ["i", "k"]


def test_a_failing_statement_takes_the_whole_with_it_and_is_shown(database):
    bad = migration(up=("ALTER TABLE t ADD COLUMN one int", "ALTER TABLE gone ADD COLUMN one int"))
    with pytest.raises(StepFailedError) as caught:
        apply(database, bad)
    words = str(caught.value)
    assert "migration b failed at `ALTER TABLE gone ADD COLUMN one int`" in words
    assert 'relation "gone" does not exist, sqlstate 42P01' in words
    assert "nothing of it stays" in words
    assert state(database) == BEFORE


def test_a_long_statement_is_shown_in_its_first_two_hundred_letters(database):
    with pytest.raises(StepFailedError, match=r"`SELECT x+…`"):
        apply(database, migration(up=("SELECT " + "x" * 300,)))


@pytest.mark.parametrize("value", ["'sesame-0815'", "E'sesame-0815'", "$$sesame-0815$$", "$a$sesame-0815$a$"])
def test_a_failing_statement_is_shown_up_to_its_first_value(database, value):
    with pytest.raises(StepFailedError, match=r"failed at `COMMENT ON TABLE gone IS( E)?…`") as caught:
        apply(database, migration(up=(f"COMMENT ON TABLE gone IS {value}",)))
    assert "sesame" not in str(caught.value)


def test_a_statement_that_takes_too_long_is_ended(database):
    slow = database.model_copy(update={"statement_timeout_s": 0.3})
    with pytest.raises(StepFailedError, match="statement timeout, sqlstate 57014"):
        apply(slow, migration(up=("ALTER TABLE t ADD COLUMN one int", "SELECT pg_sleep(30)")))
    assert state(database) == BEFORE


@pytest.mark.parametrize("make", [migration, concurrent])
@pytest.mark.parametrize(
    ("moved", "rows"),
    [("UPDATE alembic_version SET version_num = 'z'", "z"), ("DELETE FROM alembic_version", "nothing")],
)
def test_a_version_table_that_is_elsewhere_is_refused_before_anything_is_done(database, make, moved, rows):
    execute(database, moved)
    before = state(database)
    with pytest.raises(WorldMovedError, match=f"would hold {rows}, not b.*nothing was changed"):
        apply(database, make())
    assert state(database) == before


def test_a_file_that_is_written_down_already_beside_others_is_refused(database):
    execute(
        database, "CREATE SCHEMA sovereign; CREATE TABLE sovereign.schema_version (revision text PRIMARY KEY)"
    )
    execute(database, "INSERT INTO sovereign.schema_version VALUES ('001'), ('002')")
    one = migration(revision="001", record=("INSERT INTO sovereign.schema_version VALUES ('001')",))
    action = ApplyMigration(migration=one, version_table=FILES, revisions=("001",), schema_sha256=None)
    with pytest.raises(WorldMovedError, match="sqlstate 23505"):
        apply_migration(database, action, deployment=NAME)
    assert state(database) == BEFORE


def test_someone_who_migrates_at_the_same_time_is_noticed_and_nothing_stands(database):
    asked = []

    def heed():
        # before the look at the version table, before the first try, and before the second
        asked.append(1)
        if len(asked) == 3:
            execute(database, "UPDATE alembic_version SET version_num = 'z'")
            blocker.rollback()

    with (
        idle_in_transaction(database, "SELECT FROM t") as blocker,
        pytest.raises(WorldMovedError, match=r"would hold z, not b.*rolled back"),
    ):
        apply(database, migration(), heed=heed)
    assert state(database) == (["i", "k"], [], [], ("z",))


def test_going_back_under_a_later_migration_is_refused(database):
    apply(database, migration())
    execute(database, "UPDATE alembic_version SET version_num = 'c'")
    with pytest.raises(UndoFailedError, match="holds c: neither b nor what was there before, a"):
        revert(database, migration())
    execute(database, "UPDATE alembic_version SET version_num = 'b'")
    execute(database, "INSERT INTO alembic_version VALUES ('other')")
    with pytest.raises(UndoFailedError, match="would hold a, other, not a"):
        revert(database, migration())
    assert state(database)[0] == ["i", "k", "one", "two"]


def test_without_a_way_down_there_is_none(database):
    apply(database, migration(down=None))
    with pytest.raises(UndoFailedError, match="has no way down; nothing was changed"):
        revert(database, migration(down=None))
    assert state(database) == AFTER


def test_a_way_down_that_fails_leaves_all_as_it_was(database):
    bad = migration(down=("ALTER TABLE t DROP COLUMN two", "ALTER TABLE t DROP COLUMN gone"))
    apply(database, bad)
    with pytest.raises(UndoFailedError, match=r'`ALTER TABLE t DROP COLUMN gone`.*"gone".*does not exist'):
        revert(database, bad)
    assert state(database) == AFTER


def test_a_server_that_is_gone_is_told_as_such(database):
    address = database.address.model_copy(update={"port": 1})
    nowhere = database.model_copy(update={"address": address})
    with pytest.raises(DatabaseUnreachableError, match="Nothing was changed"):
        apply(nowhere, migration())
    with pytest.raises(DatabaseUnreachableError, match="Nothing was changed"):
        revert(nowhere, migration())


@pytest.mark.parametrize("way", ["up", "down"])
def test_readers_hardly_wait_for_a_migration_that_waits(database, way):
    if way == "down":
        apply(database, migration())
    with (
        idle_in_transaction(database, "SELECT FROM t") as blocker,
        reader(database, "SELECT count(i) FROM t") as reads,
        ThreadPoolExecutor(1) as pool,
    ):
        going = pool.submit(apply if way == "up" else revert, database, migration())
        time.sleep(2.5)
        assert not going.done()
        blocker.rollback()
        going.result(timeout=10)
    assert not reads.errors
    assert reads.longest_s < 0.5, f"a reader waited {reads.longest_s:.3f} s"
    assert state(database) == (AFTER if way == "up" else BEFORE)


def test_when_patience_ends_both_ways_name_who_is_in_the_way(database):
    with idle_in_transaction(database, "SELECT FROM t"):
        with pytest.raises(StepFailedError, match=r"migration b got no lock.*forgotten-psql"):
            apply(impatient(database), migration())
        assert state(database) == BEFORE
    apply(database, migration())
    with idle_in_transaction(database, "SELECT FROM t"):
        with pytest.raises(UndoFailedError, match=r"way down of migration b got no lock.*forgotten-psql"):
            revert(impatient(database), migration())
        assert state(database) == AFTER


def test_a_server_that_stops_in_the_middle_leaves_nothing(tmp_path):
    with Postgres(tmp_path / "server") as server:
        server.create_database("main")
        address = DatabaseAddress(host=LOCALHOST, port=server.port, database="main")
        own = Database(name="main", address=address, lock=QUICK)
        execute(own, "CREATE TABLE t (i int, k int); CREATE TABLE alembic_version (version_num text)")
        execute(own, "INSERT INTO alembic_version VALUES ('a')")
        slow = migration(up=(*migration().up, "SELECT pg_sleep(60)"))
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(apply, own, slow)
            wait_until_it_runs(own, "pg_sleep")
            server.stop()
            with pytest.raises(
                StepFailedError, match=r"was lost.*nothing of it stays unless the version table"
            ):
                going.result(timeout=10)
        server.start()
        revert(own, slow)
        assert state(own) == BEFORE


def test_migrations_as_alembic_and_as_files_go_up_and_down_and_up_again(database, tmp_path):
    execute(database, "DROP TABLE alembic_version")
    folders = [
        (
            alembic_folder(
                tmp_path / "alembic",
                a1__first="""
                    def upgrade():
                        op.add_column("t", sa.Column("one", sa.Text, server_default="50 %"))
                    def downgrade():
                        op.drop_column("t", "one")
                """,
                a2__after_a1="""
                    def upgrade():
                        with op.get_context().autocommit_block():
                            op.create_index(
                                "t_i", "t", ["i"], postgresql_concurrently=True, if_not_exists=True
                            )
                    def downgrade():
                        with op.get_context().autocommit_block():
                            op.drop_index("t_i", "t", postgresql_concurrently=True, if_exists=True)
                """,
            ),
            "a2",
        ),
        (
            sql_folder(
                tmp_path / "files",
                **{
                    "001__up": "ALTER TABLE t ADD two text DEFAULT '100 %'; COMMENT ON COLUMN t.two IS ';'",
                    "001__down": "ALTER TABLE t DROP two",
                    "002__up": "-- sovereign: no-transaction\n"
                    "CREATE INDEX CONCURRENTLY IF NOT EXISTS t_k ON t (k)",
                    "002__down": "DROP INDEX CONCURRENTLY IF EXISTS t_k",
                },
            ),
            "002",
        ),
    ]
    for folder, target in folders:
        read = read_migrations(folder, target=target, applied={})
        for _ in range(2):
            held = ()
            undo = []
            for one in read.pending:
                after = (one.revision,) if folder.runner == "alembic" else (*held, one.revision)
                names = {"migration": one, "version_table": read.version_table, "schema_sha256": None}
                undo.append(RevertMigration(**names, revisions=held))
                apply_migration(database, ApplyMigration(**names, revisions=after), deployment=NAME)
                held = after
            assert held == read.after == version_rows(database, read.version_table, deployment=NAME)
            assert len(state(database)[0]) == 3
            assert len(state(database)[1]) == 1
            for step in reversed(undo):
                revert_migration(database, step, deployment=NAME)
            assert version_rows(database, read.version_table, deployment=NAME) == ()
            assert state(database)[:3] == BEFORE[:3]
            read = read_migrations(folder, target=target, applied={read.version_table.table: ()})
