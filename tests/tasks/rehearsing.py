"""What tests of rehearsals share: migrations, and a proof that the original was only read."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from lab.database import LabDatabase
from rules.database import Database
from rules.migration import Migration, Migrations, Rehearsal, VersionTable
from tasks.database import schema_sha256
from tasks.rehearsal import rehearse
from tasks.rehearsal_state import content_of
from tasks.settings import Settings

ROOT = Path(__file__).parents[2]
VERSION_TABLE = "public.alembic_version"
_SET_VERSION = "UPDATE public.alembic_version SET version_num = '%s'"

#: A migration that does not end by itself.
ENDLESS = ("SELECT count(*) FROM generate_series(1, 100000000000)", None)

#: Beside what the lab's database holds anyway.
TABLES = """
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('0000');
CREATE TABLE users (id serial PRIMARY KEY, email text, age int);
INSERT INTO users (email, age) SELECT 'user-' || n, n % 90 FROM generate_series(1, 500) n;
CREATE TABLE orders (id int PRIMARY KEY, user_id int);
INSERT INTO orders SELECT n, 1 + n % 500 FROM generate_series(1, 1000) n;
CREATE ROLE app NOLOGIN;
CREATE ROLE reader NOLOGIN;
GRANT reader TO app;
GRANT SELECT ON users TO reader;
ALTER TABLE orders OWNER TO app;
"""


def migrations(*ups_and_downs: tuple[Any, ...]) -> Migrations:
    """Return migrations 0001, 0002… of (up, down) or (up, down, False: without a transaction)."""
    pending = []
    for number, (up, down, *rest) in enumerate(ups_and_downs, start=1):
        revision, before = f"{number:04}", f"{number - 1:04}"
        pending.append(
            Migration(
                revision=revision,
                title="a change",
                is_transactional=not rest,
                up=(up,) if isinstance(up, str) else up,
                down=(down,) if isinstance(down, str) else down,
                record=(_SET_VERSION % revision,),
                unrecord=(_SET_VERSION % before,),
            )
        )
    table = VersionTable(table=VERSION_TABLE, column="version_num")
    return Migrations(
        version_table=table, sha256="0" * 64, pending=tuple(pending), after=(pending[-1].revision,)
    )


def rehearsed(database: Database, pending: Migrations, settings: Settings) -> Rehearsal:
    return rehearse(database, pending, deployment="d1", settings=settings)


def locks(rehearsal: Rehearsal) -> list[set[str]]:
    """Return for each statement its locks as `mode relation`, and what it writes anew as `anew relation`."""
    return [
        {f"{lock.mode.removesuffix('Lock')} {lock.relation}" for lock in statement.locks}
        | {f"anew {relation}" for relation in statement.rewrites}
        for migration in rehearsal.migrations
        for statement in migration.statements
    ]


@contextmanager
def only_read(lab: LabDatabase, settings: Settings) -> Iterator[None]:
    """Prove that within the block nothing is written to the database, and that nothing is left of copies."""
    before = _state(lab)
    yield
    assert _state(lab) == before
    assert left_of_copies(settings) == []


def left_of_copies(settings: Settings) -> list[str]:
    """Return the directories of copies, and those of their sockets that they name."""
    place = settings.journal_dir.parent / "rehearsals"
    directories = [path for path in place.glob("*") if path.is_dir()]
    sockets = [(path / "private").readlink() for path in directories if (path / "private").is_symlink()]
    return [str(path) for path in (*directories, *sockets)]


def _state(lab: LabDatabase) -> tuple[Any, ...]:
    counted = "SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del) FROM pg_stat_user_tables"
    files = "SELECT sum(relfilenode::bigint), count(*) FROM pg_class"
    return (
        schema_sha256(lab.database),
        content_of(lab.database, deployment="proof"),
        lab.query(counted),
        lab.query(files),
        lab.query("SELECT * FROM public.alembic_version"),
    )


def wait_for_endless(settings: Settings) -> None:
    """Wait until a copy has a server, and a session there that runs the statement `ENDLESS`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for left in map(Path, left_of_copies(settings)):
            if (left / ".s.PGSQL.5432").exists() and _is_working(left):
                return
        time.sleep(0.05)
    raise AssertionError("no server was started on a copy")


def _is_working(socket_directory: Path) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"
    try:
        with psycopg.connect(
            host=str(socket_directory), port=5432, user="postgres", dbname="postgres"
        ) as session:
            return session.execute(query, (ENDLESS[0],)).fetchone() == (1,)
    except psycopg.Error:
        return False


_KILLED = """
    import json, sys
    from pathlib import Path
    from rules.database import Database
    from rules.migration import Migrations
    from tasks.rehearsal import rehearse
    from tasks.settings import Settings
    database, migrations, journal_dir = json.loads(sys.argv[1])
    print("rehearsing", flush=True)
    rehearse(
        Database.model_validate(database),
        Migrations.model_validate(migrations),
        deployment="d1",
        settings=Settings(journal_dir=Path(journal_dir)),
    )
"""


def rehearsing(database: Database, pending: Migrations, settings: Settings) -> subprocess.Popen[str]:
    """Start a process that rehearses, and return it once it has begun."""
    values = [
        database.model_dump(mode="json"),
        pending.model_dump(mode="json"),
        str(settings.journal_dir),
    ]
    argv = [sys.executable, "-c", textwrap.dedent(_KILLED), json.dumps(values)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "rehearsing\n"
    return process
