"""Folders of migrations for tests, and how to run what was read from them."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable
from pathlib import Path

import psycopg

from rules.change import MigrationFolder
from rules.migration import Migration
from tasks.process import finish


def sql_folder(directory: Path, **files: str) -> MigrationFolder:
    """Write `NAME__up` and `NAME__down` as files; the checksum is the one that the shell prints."""
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        stem, _, ending = name.rpartition("__")
        (directory / f"{stem}.{ending}.sql").write_text(text)
    return folder_of(directory, "sql")


def alembic_folder(directory: Path, **revisions: str) -> MigrationFolder:
    """Write `ID__after_DOWN` (or `ID__first`) as revision files with those bodies."""
    versions = directory / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    for name, body in revisions.items():
        revision, _, after = name.partition("__")
        before = None if after == "first" else after.removeprefix("after_")
        head = f'"""What {revision} is for"""\nimport sqlalchemy as sa\nfrom alembic import op\n'
        head += f"revision = {revision!r}\ndown_revision = {before!r}\n"
        (versions / f"{revision}_it.py").write_text(head + textwrap.dedent(body))
    return folder_of(directory, "alembic")


def folder_of(directory: Path, runner: str) -> MigrationFolder:
    """Return the folder as it is, with the checksum that the shell prints."""
    pattern = "versions/*.py" if runner == "alembic" else "*.sql"
    script = f'cd "$1"; LC_ALL=C; export LC_ALL; cat {pattern} | sha256sum'
    printed = finish(("bash", "-c", script, "sum", str(directory)), timeout_s=10).stdout
    return MigrationFolder(runner=runner, path=str(directory), sha256=printed.split()[0])


def run_up(connection: psycopg.Connection, migrations: Iterable[Migration]) -> None:
    """Run each migration's way up with its row, as an executor would."""
    for one in migrations:
        _run(connection, one, (*one.up, *one.record))


def run_down(connection: psycopg.Connection, migrations: Iterable[Migration]) -> None:
    """Run each migration's way down, newest first."""
    for one in reversed(tuple(migrations)):
        assert one.down is not None
        _run(connection, one, (*one.down, *one.unrecord))


def _run(connection: psycopg.Connection, migration: Migration, statements: tuple[str, ...]) -> None:
    assert connection.autocommit
    if migration.is_transactional:
        with connection.transaction():
            for statement in statements:
                connection.execute(statement.encode())
    else:
        for statement in statements:
            connection.execute(statement.encode())


def sha256(text: str) -> str:
    """Return the checksum of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
