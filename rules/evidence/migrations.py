"""Has each migration its way back?"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from pydantic import Field

from rules.finding import Finding
from rules.frozen import Frozen
from rules.words import listed

UP, DOWN = ".up.sql", ".down.sql"

_SECTION = re.compile(r"^--\s*(?:\+goose|migrate:|\+migrate)\s*(up|down)\b", re.IGNORECASE)
_SQL_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


class Migration(Frozen):
    """One migration: an alembic revision, or SQL with its way back in `down` or in a section of its own."""

    name: str
    text: str
    down: str | None = Field(default=None, description="text of the file beside it that takes it back")


def judge_migrations(migrations: Sequence[Migration]) -> Finding:
    """Return whether each migration can be taken back.

    An alembic revision needs a `downgrade` that does something; `X.up.sql` an `X.down.sql` with a statement;
    other SQL a `-- migrate:down` or `-- +goose Down` section with one. Whether the way back is right, only
    running it can tell.

    Raises:
        ValueError: a Python migration cannot be parsed.
    """
    if not migrations:
        return Finding.unknown("no migration was named.")
    bare = [migration.name for migration in migrations if not _returns(migration)]
    if bare:
        return Finding.failed(
            f"{len(bare)} of {len(migrations)} migrations have no way back: {listed(bare)}."
        )
    return Finding.passed(f"{len(migrations)} migrations have their way back.")


def _returns(migration: Migration) -> bool:
    if migration.name.endswith(".py"):
        return _downgrades(migration)
    if migration.down is not None:
        return _says_something(migration.down)
    return _says_something(_down_section(migration.text))


def _downgrades(migration: Migration) -> bool:
    try:
        module = ast.parse(migration.text)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"{migration.name} is not Python: {type(error).__name__}") from error
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == "downgrade":
            return any(_does_something(statement) for statement in node.body)
    return False


def _does_something(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Raise() | ast.Return(value=None | ast.Constant()):
            return False
        case ast.Expr(value=ast.Constant()):  # a docstring, or `...`
            return False
        case _:
            return True


def _down_section(text: str) -> str:
    lines, inside = [], False
    for line in text.splitlines():
        if section := _SECTION.match(line.strip()):
            inside = section[1].lower() == "down"
        elif inside:
            lines.append(line)
    return "\n".join(lines)


def _says_something(sql: str) -> bool:
    return bool(_SQL_COMMENT.sub("", sql).strip(" \t\r\n;"))
