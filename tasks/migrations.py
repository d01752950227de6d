"""Read a folder of migrations: exactly those files that were asked for, as the SQL that will be run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psycopg.sql import Literal
from pydantic import TypeAdapter, ValidationError

from rules.change import MigrationFolder
from rules.errors import InvalidRequestError
from rules.migration import Migration, Migrations, Revision, VersionTable
from tasks.migration_refusals import NO_TRANSACTION, refuse_unfit
from tasks.process import finish
from tasks.sql_statements import split_statements

ALEMBIC_TABLE = VersionTable(table="public.alembic_version", column="version_num")
SQL_TABLE = VersionTable(table="sovereign.schema_version", column="revision")

_UP, _DOWN = ".up.sql", ".down.sql"
_RENDER_TIMEOUT_S = 120.0
#: What a program needs to run; nothing that only Prefect or a person of this host should know.
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH", "SSL_CERT_FILE"),
)
_MAKE_SQL_TABLE = (
    "CREATE SCHEMA IF NOT EXISTS sovereign",
    (
        "CREATE TABLE IF NOT EXISTS sovereign.schema_version (revision text PRIMARY KEY, "
        "sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    ),
)
_REVISION: TypeAdapter[str] = TypeAdapter(Revision)


def read_migrations(
    folder: MigrationFolder, *, target: str, applied: Mapping[str, tuple[str, ...]]
) -> Migrations:
    """Return the migrations that are pending up to `target`, as SQL, each with its way down if it has one.

    Args:
        folder: where they are, and the checksum that their files must have.
        target: the last one to apply: an alembic revision, or a file's name without `.up.sql`.
        applied: version table -> what it holds now; absent: there is no such table.

    Raises:
        InvalidRequestError: the files are not those of the checksum, `target` is not ahead of what is
            applied, or a migration cannot be read, rendered or run safely. Says which and what to do.
            Nothing was touched.
    """
    if folder.runner == "alembic":
        found = _read_alembic(folder, target=target, applied=applied)
    else:
        found = _read_sql(folder, target=target, applied=applied)
    for one in found.pending:
        kind = one.is_transactional
        refuse_unfit(one.up, where=f"migration {one.revision}", is_transactional=kind)
        refuse_unfit(one.down or (), where=f"the way down of {one.revision}", is_transactional=kind)
    return found


# --- files -----------------------------------------------------------------------------------------


def _files(folder: MigrationFolder, directory: Path, ending: str) -> dict[str, bytes]:
    """Return name -> content as the shell's `*.sql` in the C locale has them, read once.

    Raises:
        InvalidRequestError: they cannot be read, there are none, or they are others than asked for.
    """
    try:
        # the order of code points is that of bytes in UTF-8
        paths = sorted(directory.iterdir(), key=lambda path: path.name)
        shown = [path for path in paths if path.name.endswith(ending) and not path.name.startswith(".")]
        files = {path.name: path.read_bytes() for path in shown}
    except OSError as error:
        raise InvalidRequestError(
            f"The migrations in {directory} cannot be read: {error.strerror}: {error.filename}. Nothing was "
            "touched. Name the directory as the worker's host has it, readable by its user."
        ) from error
    if not files:
        raise InvalidRequestError(f"There is no file *{ending} in {directory}. Nothing was touched.")
    sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
    if sha256 != folder.sha256:
        pattern = f"{directory.name}/*{ending}" if folder.runner == "alembic" else f"*{ending}"
        raise InvalidRequestError(
            f"The {len(files)} files *{ending} in {directory} have the sha256 {sha256}, not {folder.sha256}, "
            "so they are not those that were asked for. Nothing was touched. Bring the right ones there, or "
            f"ask for these: LC_ALL=C; cat {pattern} | sha256sum"
        )
    return files


# --- plain SQL -------------------------------------------------------------------------------------


def _read_sql(folder: MigrationFolder, *, target: str, applied: Mapping[str, tuple[str, ...]]) -> Migrations:
    files = _files(folder, Path(folder.path), ".sql")
    names = _names(files)
    done = applied.get(SQL_TABLE.table, ())
    pending = _pending(names, target=target, done=done)
    return Migrations(
        version_table=SQL_TABLE,
        sha256=folder.sha256,
        pending=tuple(_sql_migration(name, files) for name in pending),
        after=tuple(sorted({*done, *pending})),
    )


def _names(files: Mapping[str, bytes]) -> list[str]:
    """Return what the migrations are called, in their order."""
    names = sorted(name.removesuffix(_UP) for name in files if name.endswith(_UP))
    for name in names:
        try:
            _REVISION.validate_python(name)
        except ValidationError as error:
            raise InvalidRequestError(
                f"{name}{_UP}: a migration's name begins with a letter or digit and has up to 64 letters, "
                "digits, dots, dashes and underscores. Nothing was touched. Rename the file."
            ) from error
    known = {f"{name}{ending}" for name in names for ending in (_UP, _DOWN)}
    if strange := sorted(set(files) - known):
        raise InvalidRequestError(
            f"{', '.join(strange)}: neither NAME{_UP} nor the NAME{_DOWN} of one. Nothing was touched. "
            "Rename or remove it: what would be run is not clear."
        )
    return names


def _pending(names: list[str], *, target: str, done: tuple[str, ...]) -> list[str]:
    """Return those that have to be applied, in their order.

    Raises:
        InvalidRequestError: there is no `target`, or what is applied is not the beginning of the way to it.
    """
    if target not in names:
        raise InvalidRequestError(
            f"There is no {target}{_UP}; the folder has {', '.join(names)}. Nothing was touched."
        )
    if gone := sorted(set(done) - set(names)):
        raise InvalidRequestError(
            f"{', '.join(gone)}: applied to this database, but without an up file in the folder. Nothing was "
            "touched. Deploy from a folder that has all that was ever applied: add the missing ones again."
        )
    if beyond := sorted(name for name in done if name > target):
        raise InvalidRequestError(
            f"{', '.join(beyond)}: applied already, and later than {target}. Nothing was touched. A "
            "deployment only goes forward: take back the one that applied it, or write one that undoes it."
        )
    pending = [name for name in names if name not in done and name <= target]
    if done and (late := [name for name in pending if name < max(done)]):
        raise InvalidRequestError(
            f"{', '.join(late)}: not applied, but earlier in order than {max(done)}, which is. Nothing was "
            f"touched. It was tested the other way round: rename it, so that it comes after {max(done)}."
        )
    return pending


def _sql_migration(name: str, files: Mapping[str, bytes]) -> Migration:
    text = _text(f"{name}{_UP}", files[f"{name}{_UP}"])
    up = _statements(f"{name}{_UP}", text)
    if not up:
        raise InvalidRequestError(f"{name}{_UP} holds no statement. Nothing was touched. Remove it.")
    down_file = f"{name}{_DOWN}"
    down = _statements(down_file, _text(down_file, files[down_file])) if down_file in files else ()
    first, *_ = text.split("\n", 1)
    row = Literal(name).as_string(None)
    digest = Literal(hashlib.sha256(files[f"{name}{_UP}"]).hexdigest()).as_string(None)
    insert = f"INSERT INTO sovereign.schema_version (revision, sha256) VALUES ({row}, {digest})"  # noqa: S608 - literals
    return Migration(
        revision=name,
        title=_title(text) or name,
        is_transactional=first.strip() != NO_TRANSACTION,
        up=up,
        down=down or None,  # an empty way down leads nowhere
        record=(*_MAKE_SQL_TABLE, insert),
        unrecord=(f"DELETE FROM sovereign.schema_version WHERE revision = {row}",),  # noqa: S608 - a literal
    )


def _text(file: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{file} is not UTF-8: {error}. Nothing was touched. Convert it."
        ) from error


def _statements(file: str, text: str) -> tuple[str, ...]:
    try:
        return split_statements(text)
    except ValueError as error:
        raise InvalidRequestError(f"{file}, {error}. Nothing was touched. Correct it.") from error


def _title(text: str) -> str:
    """Return the first words that stand in a comment at the beginning, if any."""
    for line in text.splitlines():
        words = line.strip()
        if words and not words.startswith("--"):
            return ""
        if words.strip("- ") and words != NO_TRANSACTION:
            return words.strip("- ")[:200]
    return ""


# --- alembic ---------------------------------------------------------------------------------------


def _read_alembic(
    folder: MigrationFolder, *, target: str, applied: Mapping[str, tuple[str, ...]]
) -> Migrations:
    files = _files(folder, Path(folder.path) / "versions", ".py")
    heads = applied.get(ALEMBIC_TABLE.table, ())
    if len(heads) > 1:
        raise InvalidRequestError(
            f"{ALEMBIC_TABLE.table} holds {len(heads)} heads, {', '.join(heads)}: branches are not deployed. "
            "Nothing was touched. Merge them by hand first (alembic merge)."
        )
    pending = _rendered(files, target=target, applied=heads)
    return Migrations(
        version_table=ALEMBIC_TABLE,
        sha256=folder.sha256,
        pending=tuple(_keep_table(one, has_table=ALEMBIC_TABLE.table in applied) for one in pending),
        after=(target,),
    )


def _rendered(files: Mapping[str, bytes], *, target: str, applied: tuple[str, ...]) -> list[Migration]:
    """Render a copy of the files: what is rendered is what was summed up, whoever writes there meanwhile."""
    with tempfile.TemporaryDirectory(prefix="sovereign-alembic-") as directory:
        versions = Path(directory) / "versions"
        versions.mkdir()
        for name, content in files.items():
            (versions / name).write_bytes(content)
        answer = _ask_program(directory, target, *applied)
    if refused := answer.get("refused"):
        raise InvalidRequestError(f"alembic: {refused}. Nothing was touched.")
    return TypeAdapter(list[Migration]).validate_python(answer["migrations"])


def _ask_program(directory: str, *words: str) -> dict[str, Any]:
    """Run `tasks.alembic_scripts` with as little of our environment as it needs."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    finished = finish(
        (sys.executable, "-m", "tasks.alembic_scripts", directory, *words),
        timeout_s=_RENDER_TIMEOUT_S,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        answer: dict[str, Any] = json.loads(finished.stdout.rstrip().rpartition("\n")[2])
    except ValueError as error:
        ended = "took too long" if finished.returncode is None else f"exited {finished.returncode}"
        raise InvalidRequestError(
            f"alembic's revisions could not be rendered: the program for it {ended}: "
            f"{finished.output[-1000:].strip() or '(no output)'}. Nothing was touched. A revision must only "
            "describe statements: let it neither wait for anything nor end the process."
        ) from error
    return answer


def _keep_table(migration: Migration, *, has_table: bool) -> Migration:
    """Make the version table only where there is none: else it takes a right that its user may lack."""
    if not has_table:
        return migration
    kept = tuple(each for each in migration.record if not each.startswith("CREATE TABLE"))
    return migration.model_copy(update={"record": kept})
