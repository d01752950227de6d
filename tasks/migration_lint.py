"""Lint migrations: squawk, with our own rules for what it misses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rules.errors import StepFailedError
from rules.migration import LintFinding, Migration, Migrations
from rules.migration_lint import dangers, squawk_level, why
from tasks.process import Finished, finish
from tasks.sql_statements import shape, without_comments

#: The oldest server that is supported: what is dangerous there and harmless on a newer one is reported.
_OLDEST_SERVER = "16"
_TIMEOUT_S = 60.0
_FOUND_NOTHING, _FOUND_SOMETHING = 0, 1


@dataclass(config=ConfigDict(extra="ignore"), frozen=True)
class _Found:
    """One of squawk's findings as it prints it; lines count from 0."""

    line: int
    rule_name: str
    message: str
    help: str | None = None


_FINDINGS = TypeAdapter(list[_Found])


def lint(migrations: Migrations) -> tuple[LintFinding, ...]:
    """Return what is dangerous in the pending migrations' ways up, in their order.

    Comments are taken out first, so none of them switches a rule off: what is accepted is in the request.

    Raises:
        StepFailedError: squawk is missing, fails or says what cannot be read: what was not looked at is not
            passed. Nothing was touched.
    """
    if not any(migration.up for migration in migrations.pending):
        return ()
    program = _squawk()
    return tuple(
        finding
        for migration in migrations.pending
        if migration.up
        for finding in sorted(
            {*_by_squawk(program, migration), *_by_us(migration)}, key=lambda one: (one.statement, one.rule)
        )
    )


def _by_us(migration: Migration) -> Iterator[LintFinding]:
    for number, statement in enumerate(migration.up):
        for danger in dangers(shape(statement)):
            yield LintFinding(
                rule=danger.rule,
                level=danger.level,
                revision=migration.revision,
                statement=number,
                message=danger.message,
            )


def _by_squawk(program: str, migration: Migration) -> Iterator[LintFinding]:
    """Give squawk the whole migration: an index on a table that is new in it harms nobody."""
    pieces = [f"{without_comments(statement)}\n;\n" for statement in migration.up]
    ends = list(accumulate(piece.count("\n") for piece in pieces))
    for found in _findings(program, "".join(pieces), migration):
        level = squawk_level(found.rule_name)
        if level is None:
            continue
        number = next((i for i, end in enumerate(ends) if found.line < end), len(ends) - 1)
        said = f"{found.message} {found.help or ''}".strip()
        reason = why(found.rule_name)
        yield LintFinding(
            rule=found.rule_name,
            level=level,
            revision=migration.revision,
            statement=number,
            message=f"{said} ({reason})" if reason else said,
        )


def _findings(program: str, sql: str, migration: Migration) -> list[_Found]:
    in_transaction = "--assume-in-transaction" if migration.is_transactional else "--no-assume-in-transaction"
    argv = (program, "--reporter", "json", "--pg-version", _OLDEST_SERVER, in_transaction)
    # a .squawk.toml in whatever directory this runs in must not switch rules off
    finished = finish((*argv, "--config", "/dev/null"), timeout_s=_TIMEOUT_S, stdin=sql.encode())
    try:
        found = _FINDINGS.validate_python(json.loads(finished.stdout))
    except (ValueError, ValidationError) as error:
        raise _failed(finished, migration) from error
    expected = _FOUND_SOMETHING if found else _FOUND_NOTHING
    if finished.returncode != expected or finished.dropped_bytes:
        raise _failed(finished, migration)
    return found


def _failed(finished: Finished, migration: Migration) -> StepFailedError:
    ended = "took too long" if finished.returncode is None else f"exited {finished.returncode}"
    return StepFailedError(
        f"{finished.argv[0]} {ended} on migration {migration.revision}: "
        f"{finished.output[-1000:].strip() or '(no output)'}. Nothing was touched; what was not looked at is "
        "not passed. Run it by hand on the migration, or install squawk-cli as this project's lock has it."
    )


def _squawk() -> str:
    """Return the linter of this environment, or the one on PATH.

    Raises:
        StepFailedError: there is none.
    """
    beside = Path(sys.executable).with_name("squawk")
    if beside.is_file():
        return str(beside)
    if found := shutil.which("squawk"):
        return found
    raise StepFailedError(
        f"There is no squawk, neither {beside} nor on PATH. Nothing was touched; what was not looked at is "
        "not passed. Install squawk-cli, or on NixOS the package squawk, and put it on the worker's PATH."
    )
