"""Alembic's revisions as SQL: the same that alembic itself does online, or refused."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lab.postgres import Postgres, programs
from rules.change import MigrationFolder
from rules.errors import InvalidRequestError
from tasks import alembic_scripts, migrations
from tasks.migrations import ALEMBIC_TABLE, read_migrations
from tests.tasks.migration_files import alembic_folder, run_down, run_up

TABLE = ALEMBIC_TABLE.table
Databases = Callable[[], tuple[str, psycopg.Connection]]

FIRST = """
    def upgrade():
        op.create_table(
            "notes",
            sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
            sa.Column("body", sa.Text, nullable=False, server_default="50%:x; y"),
            sa.Column("kind", sa.Enum("good", "bad", name="kind")),
            comment="it's",
        )
        op.execute("INSERT INTO notes (body) VALUES ('a\\tb 100% c -- d; e') -- said last")
        op.execute(r"INSERT INTO notes (body) VALUES (E'\\t\\'\\\\;')")
        bodies = [{"body": "x'y%\\\\:z"}, {"body": "\\t"}]
        op.bulk_insert(sa.table("notes", sa.column("body", sa.Text)), bodies)
        op.get_bind().execute(sa.text("UPDATE notes SET body = 'z' WHERE body = 'q'::text"))
    def downgrade():
        op.drop_table("notes")
        op.execute("DROP TYPE kind; -- and no more")
"""
SECOND = """
    def upgrade():
        with op.get_context().autocommit_block():
            op.create_index("notes_body", "notes", ["body"], postgresql_concurrently=True, if_not_exists=True)
    def downgrade():
        with op.get_context().autocommit_block():
            op.drop_index("notes_body", postgresql_concurrently=True, if_exists=True)
"""
THIRD = """
    print("this is no JSON")
    def upgrade():
        notes = sa.table("notes", sa.column("body", sa.Text), sa.column("id", sa.BigInteger))
        op.add_column("notes", sa.Column("n", sa.Integer, sa.CheckConstraint("n % 2 = 0", name="even")))
        op.execute(notes.update().where(notes.c.id.in_([1, 2])).values(body="in % (1, 2)"))
        op.execute(
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := 2; RETURN NEW; END $$;"
            "CREATE TRIGGER t BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION f();"
        )
    def downgrade():
        op.execute("DROP TRIGGER t ON notes")
        op.execute("DROP FUNCTION f()")
        op.drop_column("notes", "n")
"""
GOOD = {"one__first": FIRST, "two__after_one": SECOND, "three__after_two": THIRD}
PLAIN = """
    def upgrade():
        op.execute("CREATE TABLE t (id int)")
    def downgrade():
        op.execute("DROP TABLE t")
"""
ENV = """
from alembic import context
from sqlalchemy import create_engine, pool
url = context.config.get_main_option("sqlalchemy.url")
with create_engine(url, poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[Databases]:
    with ExitStack() as stack:

        def new() -> tuple[str, psycopg.Connection]:
            name = f"alembic_{secrets.token_hex(4)}"
            postgres.create_database(name)
            connection = psycopg.connect(postgres.url(name), autocommit=True, prepare_threshold=None)
            return name, stack.enter_context(connection)

        yield new


def read(folder: MigrationFolder, target: str, *heads: str):
    return read_migrations(folder, target=target, applied={TABLE: heads} if heads else {})


def refused(folder: MigrationFolder, target: str, *heads: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read(folder, target, *heads)
    assert "othing was touched" in str(caught.value)
    return str(caught.value)


def told(directory: Path, *words: str) -> dict[str, Any]:
    """Return what the program prints for a folder, run within this process: it starts faster."""
    output = io.StringIO()
    alembic_scripts.main([str(directory), *words], output)
    answer: dict[str, Any] = json.loads(output.getvalue())
    return answer


def alembic(folder: MigrationFolder, url: str, *words: str) -> None:
    """Run alembic itself, online, by an env.py as its users have it."""
    place = Path(folder.path)
    (place / "env.py").write_text(ENV)
    settings = place.parent / f"alembic-{secrets.token_hex(4)}.ini"
    settings.write_text(f"[alembic]\nscript_location = {place}\nsqlalchemy.url = {url}\n")
    argv = (sys.executable, "-m", "alembic", "-c", str(settings), *words)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


def schema(postgres: Postgres, name: str) -> str:
    argv = (str(programs() / "pg_dump"), "--schema-only", "--restrict-key=x", "-d", postgres.url(name))
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def heads(connection: psycopg.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT version_num FROM alembic_version").fetchall()


def notes(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM notes ORDER BY id").fetchall()


# --- the same as alembic ---------------------------------------------------------------------------


def test_what_is_rendered_leaves_what_alembic_leaves_online_up_and_down_again(tmp_path, postgres, databases):
    folder = alembic_folder(tmp_path / "migrations", **GOOD)
    found = read(folder, "three")
    (ours, mine), (theirs, others) = databases(), databases()
    for _ in range(2):  # the second time the version table is there, and empty
        run_up(mine, found.pending)
        alembic(folder, postgres.url(theirs, driver="postgresql+psycopg"), "upgrade", "three")
        assert schema(postgres, ours) == schema(postgres, theirs)
        assert heads(mine) == heads(others) == [("three",)]
        assert tuple(row[0] for row in heads(mine)) == found.after
        assert notes(mine) == notes(others)
        assert len(notes(mine)) == 4
        run_down(mine, found.pending)
        alembic(folder, postgres.url(theirs, driver="postgresql+psycopg"), "downgrade", "base")
        assert schema(postgres, ours) == schema(postgres, theirs)
        assert heads(mine) == heads(others) == []


def test_tabs_percent_signs_and_last_comments_are_kept_as_they_are(tmp_path):
    (one,) = read(alembic_folder(tmp_path, one__first=FIRST), "one").pending
    assert one.up[3:] == (
        "INSERT INTO notes (body) VALUES ('a\tb 100% c -- d; e')",
        r"INSERT INTO notes (body) VALUES (E'\t\'\\;')",
        "INSERT INTO notes (body) VALUES ('x''y%\\:z')",
        "INSERT INTO notes (body) VALUES ('\t')",
        "UPDATE notes SET body = 'z' WHERE body = 'q'::text",
    )
    assert one.down == ("DROP TABLE notes", "DROP TYPE kind")


def test_each_revision_is_a_migration_with_its_title_and_kind(tmp_path):
    found = read(alembic_folder(tmp_path, **GOOD), "three")
    assert [(one.revision, one.title, one.is_transactional) for one in found.pending] == [
        ("one", "What one is for", True),
        ("two", "What two is for", False),
        ("three", "What three is for", True),
    ]
    assert found.pending[1].up == ("CREATE INDEX CONCURRENTLY IF NOT EXISTS notes_body ON notes (body)",)
    assert (found.version_table, found.after) == (ALEMBIC_TABLE, ("three",))


def test_only_revisions_between_the_applied_one_and_the_target_are_pending(tmp_path):
    folder = alembic_folder(tmp_path, **GOOD)
    (two,) = read(folder, "two", "one").pending
    assert two.revision == "two"
    assert read(folder, "two", "two").pending == ()
    words = " ".join((*two.record, *two.unrecord))
    assert "CREATE" not in words
    assert "version_num='two'" in words


def test_the_version_table_is_made_only_where_there_is_none(tmp_path):
    folder = alembic_folder(tmp_path, **GOOD)
    made = read_migrations(folder, target="two", applied={}).pending
    assert [len(one.record) for one in made] == [2, 1]
    assert made[0].record[0].startswith("CREATE TABLE IF NOT EXISTS public.alembic_version")
    kept = read_migrations(folder, target="one", applied={TABLE: ()}).pending
    assert [len(one.record) for one in kept] == [1]


def test_a_revision_that_writes_to_the_version_table_itself_keeps_that_statement(tmp_path):
    body = """
        def upgrade():
            op.execute("UPDATE alembic_version SET version_num = version_num")
        def downgrade():
            pass
    """
    alembic_folder(tmp_path, one__first=body)
    (one,) = told(tmp_path, "one")["migrations"]
    assert one["up"] == ["UPDATE alembic_version SET version_num = version_num"]


# --- ways down -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way_down", "down"),
    [
        ("def downgrade():\n        pass", None),
        ("def downgrade():\n        raise NotImplementedError('none')", None),
        ("", None),
        ("def downgrade():\n        op.execute('-- nothing')", None),
        ("def downgrade():\n        op.execute('DROP TABLE t')", ["DROP TABLE t"]),
    ],
)
def test_a_way_down_that_does_nothing_is_none(tmp_path, way_down, down):
    body = f"""
    def upgrade():
        op.execute("CREATE TABLE t ()")
    {way_down}
    """
    alembic_folder(tmp_path, one__first=body)
    (one,) = told(tmp_path, "one")["migrations"]
    assert one["down"] == down
    assert one["unrecord"] == [
        "DELETE FROM public.alembic_version WHERE public.alembic_version.version_num = 'one'"
    ]


def test_a_revision_that_does_nothing_goes_back_by_doing_nothing(tmp_path):
    body = """
    def upgrade(): pass
    def downgrade(): pass
    """
    alembic_folder(tmp_path, one__first=body)
    (one,) = told(tmp_path, "one")["migrations"]
    assert (one["up"], one["down"]) == ([], [])


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upgrade", "words"),
    [
        ("op.get_bind().execute(sa.text('SELECT 1')).scalar()", "asks the database something"),
        ("op.get_bind().execute(sa.select(sa.column('x')))", "asks the database something"),
        (
            "op.get_bind().execute(sa.text('/* x */ with a as (select 1) select * from a'))",
            "asks the database",
        ),
        ("op.get_bind().execute(sa.text('DELETE FROM t')).rowcount", "one_it.py, line 7: AttributeError"),
        ("op.get_bind().execute(sa.text('DELETE FROM t WHERE a = :a'), {'a': 1})", "passes values"),
        ("op.get_bind().scalar(sa.text('SELECT 1'))", "one_it.py, line 7: AttributeError"),
        ("sa.inspect(op.get_bind()).get_table_names()", "one_it.py, line 7: NoInspectionAvailable"),
        ("op.execute(sa.text('DELETE FROM t WHERE a = :a'))", "has no value for a"),
        ("op.execute(sa.table('t', sa.column('a')).insert())", "has no value for a"),
        ("op.execute(\"INSERT INTO t VALUES ('a :b')\")", "has no value for b"),
        ("raise RuntimeError('not today')", "one_it.py, line 7: RuntimeError: not today"),
        ("raise NotImplementedError('later')", "one_it.py, line 7: NotImplementedError: later"),
        ('op.execute("INSERT INTO t VALUES (\'a")', "the quote ' is not closed"),
    ],
)
def test_a_revision_that_cannot_be_told_beforehand_is_refused(tmp_path, upgrade, words):
    body = f"def upgrade():\n    {upgrade}\ndef downgrade():\n    pass\n"
    alembic_folder(tmp_path, one__first=body)
    assert words in told(tmp_path, "one")["refused"]


@pytest.mark.parametrize(
    ("upgrade", "words"),
    [
        ("op.get_bind().execute(sa.text('SELECT 1')).scalar()", "one: op.get_bind().execute(…) asks"),
        ("op.execute('COMMIT')", "controls transactions"),
        ("op.create_index('i', 't', ['x'], postgresql_concurrently=True)", "autocommit_block()"),
        ("import sys; sys.exit(3)", "the program for it exited 3"),
        ("import os; os._exit(0)", "the program for it exited 0"),
    ],
)
def test_what_its_program_says_of_it_or_dies_of_is_told(tmp_path, upgrade, words):
    body = f"def upgrade():\n    {upgrade}\ndef downgrade():\n    pass\n"
    assert words in refused(alembic_folder(tmp_path, one__first=body), "one")


def test_a_way_down_that_fails_for_another_reason_than_having_none_is_refused(tmp_path):
    body = "def upgrade():\n    pass\ndef downgrade():\n    op.nothing()\n"
    alembic_folder(tmp_path, one__first=body)
    words = told(tmp_path, "one")["refused"]
    assert "one_it.py, line 9: AttributeError" in words
    assert "let downgrade() raise NotImplementedError" in words


def test_statements_beside_an_autocommit_block_and_unrepeatable_ones_in_it_are_refused(tmp_path):
    beside = SECOND.replace("def upgrade():", "def upgrade():\n        op.execute('CREATE TABLE u ()')")
    assert "`CREATE TABLE u ()` is refused" in refused(
        alembic_folder(tmp_path / "a", one__first=beside), "one"
    )
    once = SECOND.replace(", if_not_exists=True", "")
    assert "right a second time" in refused(alembic_folder(tmp_path / "b", one__first=once), "one")


def test_a_way_down_of_another_kind_than_the_way_up_is_refused(tmp_path):
    upward, _, _ = SECOND.partition("    def downgrade")
    body = f"{upward}    def downgrade():\n        op.drop_index('notes_body')\n"
    assert "the way down of one: `DROP INDEX notes_body`" in refused(
        alembic_folder(tmp_path, one__first=body), "one"
    )


def test_branches_and_several_heads_are_refused(tmp_path):
    alembic_folder(tmp_path, one__first=PLAIN, two__after_one=PLAIN, three__after_one=PLAIN)
    assert "there are 2 heads, three, two" in told(tmp_path, "two")["refused"]
    merge = PLAIN.replace("def upgrade", "down_revision = ('two', 'three')\n    def upgrade")
    merged = alembic_folder(tmp_path, four__after_one=merge)
    assert "four comes after more than one revision" in told(tmp_path, "four")["refused"]
    assert [one["revision"] for one in told(tmp_path, "two", "one")["migrations"]] == ["two"]
    assert "holds 2 heads, three, two" in refused(merged, "four", "three", "two")


def test_ways_that_do_not_lead_forward_are_refused(tmp_path):
    alembic_folder(tmp_path, **GOOD)

    def words(*asked):
        return told(tmp_path, *asked)["refused"]

    assert "the revision to go to, four, is not among the files; they have one, three, two" in words("four")
    assert "the revision to go to, head, is not" in words("head")
    assert "the revision to go to, thr, is not" in words("thr")
    assert "the revision that is applied, gone, is not" in words("three", "gone")
    assert "three is applied, and one does not come after it" in words("one", "three")


def test_files_that_are_no_good_revisions_are_refused(tmp_path):
    alembic_folder(tmp_path / "a", one__first="def upgrade(:\n")
    alembic_folder(tmp_path / "b", one__after_zero=PLAIN)
    alembic_folder(tmp_path / "c", one__first=PLAIN)
    (tmp_path / "c/versions/again.py").write_text((tmp_path / "c/versions/one_it.py").read_text())
    alembic_folder(tmp_path / "d", one__first="import no_such_module")
    (tmp_path / "e/versions").mkdir(parents=True)
    (tmp_path / "e/versions/other.py").write_text("x = 1")
    for name, words in {
        "a": "SyntaxError",
        "b": "Revision zero referenced from zero -> one (head)",
        "c": "Revision one is present more than once",
        "d": "one_it.py, line 6: ModuleNotFoundError",
        "e": "Could not determine revision id from filename other.py",
    }.items():
        assert words in told(tmp_path / name, "one")["refused"]


def test_files_that_are_not_those_asked_for_are_refused_and_never_run(tmp_path):
    folder = alembic_folder(tmp_path / "a", one__first=PLAIN)
    mark = tmp_path / "ran"
    (tmp_path / "a/versions/one_it.py").write_text(f"open({str(mark)!r}, 'w')")
    assert folder.sha256 in refused(folder, "one")
    assert not mark.exists()


def test_a_revision_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(migrations, "_RENDER_TIMEOUT_S", 3.0)
    folder = alembic_folder(tmp_path, one__first="import time; time.sleep(60)")
    assert "took too long" in refused(folder, "one")


def test_revisions_get_nothing_of_our_environment_and_the_folder_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_KEY", "a-secret")
    body = "import os\nassert 'PREFECT_API_KEY' not in os.environ\nassert 'PATH' in os.environ\n"
    folder = alembic_folder(tmp_path, one__first=body + PLAIN.replace("\n    ", "\n"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert len(read(folder, "one").pending) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
