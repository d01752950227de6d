"""Render alembic's revisions as SQL, without a database and without the folder's own env.py.

A program of its own, `python -m tasks.alembic_scripts DIRECTORY TARGET [APPLIED]`, because it runs the Python
of whoever wrote the revisions. It prints one line of JSON: `{"migrations": […]}` or `{"refused": "why"}`.

What alembic renders offline is not always what it runs online. Here it is: tabs are kept, `%` is not doubled,
a comment at a statement's end does not swallow its semicolon, and a revision that asks the database something
is refused instead of being told that there is nothing.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from alembic.config import Config
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import Script, ScriptDirectory
from sqlalchemy import CursorResult, Executable, TextClause, text
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.schema import ExecutableDDLElement

from rules.migration import Migration
from tasks.sql_statements import shape, split_statements

_SCHEMA = "public"
_ASKING = ("SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN", "FETCH")
_NO_BIND = (
    "A migration is read, checked and shown before it runs, so it may not depend on what the database "
    "answers: write it with op.* or as SQL in op.execute(), where the server decides (IF NOT EXISTS, "
    "INSERT … SELECT)"
)


class RefusedError(Exception):
    """The revisions cannot be turned into SQL; says why, and what to do."""


class _Piece(NamedTuple):
    """Something rendered: `sql`, or `begin` and `commit` by alembic itself."""

    kind: str
    text: str


class _NoConnection(MockConnection):
    """What op.get_bind() gives: it takes statements that only change, and refuses to be asked."""

    def execute(self, obj: Executable, parameters: Any = None, execution_options: Any = None) -> Any:
        first = shape(obj.text).partition(" ")[0] if isinstance(obj, TextClause) else ""
        asks = first in _ASKING or not (isinstance(obj, ExecutableDDLElement | TextClause) or obj.is_dml)
        if asks or parameters:
            what = "asks the database something" if asks else "passes values beside the statement"
            raise RefusedError(f"op.get_bind().execute(…) {what}, and there is none. {_NO_BIND}")
        return super().execute(obj, parameters, execution_options)


class _ExactImpl(PostgresqlImpl):
    """Keeps each statement as it would be sent, apart from the others.

    It names no dialect of its own: alembic would take it for all of this process.
    """

    def __init__(self, context: MigrationContext) -> None:
        gate = _NoConnection(context.dialect, lambda clause, *_: self._exec(clause))
        super().__init__(context.dialect, gate, True, True, io.StringIO(), context.opts)  # type: ignore[arg-type] # noqa: FBT003 - alembic's signature
        self.pieces: list[_Piece] = []

    def _exec(
        self,
        construct: Executable | str,
        execution_options: Mapping[str, Any] | None = None,  # noqa: ARG002 - alembic's signature
        multiparams: Sequence[Mapping[str, Any]] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> CursorResult[Any] | None:
        if multiparams is not None or params:
            raise RefusedError(f"values are passed beside a statement. {_NO_BIND}")
        clause: Any = text(construct) if isinstance(construct, str) else construct
        if isinstance(clause, ExecutableDDLElement):
            self.static_output(str(clause.compile(dialect=self.dialect)))
        else:
            self._refuse_missing_values(clause)
            literal = clause.compile(dialect=self.dialect, compile_kwargs={"literal_binds": True})
            self.static_output(str(literal))
        return None

    def _refuse_missing_values(self, clause: Any) -> None:
        """Online such a statement is an error; written out, it would have NULL there."""
        binds = clause.compile(dialect=self.dialect).binds.items()
        if missing := sorted(name for name, bind in binds if bind.required):
            raise RefusedError(
                f"`{clause}` has no value for {', '.join(missing)}. Bind it: sa.text(…).bindparams(…), "
                "sa.insert(…).values(…). A colon that is meant as such is written \\:"
            )

    def static_output(self, text: str) -> None:
        self.pieces.append(_Piece("sql", text))

    def emit_begin(self) -> None:
        self.pieces.append(_Piece("begin", ""))

    def emit_commit(self) -> None:
        self.pieces.append(_Piece("commit", ""))


class _Rendered(NamedTuple):
    """One direction of one revision: its own statements, and those for the version table."""

    own: tuple[str, ...]
    books: tuple[str, ...]
    is_transactional: bool


def migrations(directory: str, *, target: str, applied: str | None) -> list[Migration]:
    """Return the revisions after `applied` (None: all from the first) up to `target`, in their order.

    Raises:
        RefusedError: they are no single line from one to the other, or one cannot be rendered.
    """
    script = ScriptDirectory(directory)
    try:
        with warnings.catch_warnings():
            # alembic warns of these and goes on with one of the two, or without the one that is missing
            warnings.filterwarnings("error", message=".*(present more than once|is not present|overlaps).*")
            scripts = {one.revision: one for one in script.walk_revisions()}
            heads = script.get_heads()
    except Exception as error:
        raise RefusedError(f"the revisions cannot be read: {_place(error, directory)}") from error
    if len(heads) > 1:
        raise RefusedError(
            f"there are {len(heads)} heads, {', '.join(sorted(heads))}: which comes first is not told. Let "
            "one follow the other by its down_revision"
        )
    return [_migration(script, one) for one in _pending(scripts, target=target, applied=applied)]


def _pending(scripts: dict[str, Script], *, target: str, applied: str | None) -> list[Script]:
    known = ", ".join(sorted(scripts)) or "none"
    for name, what in ((target, "to go to"), (applied, "that is applied")):
        if name is not None and name not in scripts:
            raise RefusedError(f"the revision {what}, {name}, is not among the files; they have {known}")
    path: list[Script] = []
    current: str | None = target
    while current is not None and current != applied:
        one = scripts[current]
        if one.dependencies or isinstance(one.down_revision, tuple | list):
            raise RefusedError(
                f"{current} comes after more than one revision. Branches are not deployed: let each revision "
                "follow one other by its down_revision"
            )
        path.append(one)
        current = one.down_revision
    if current != applied:
        raise RefusedError(
            f"{applied} is applied, and {target} does not come after it. A deployment only goes forward: it "
            "is taken back by its own rollback; to undo an older one, write a new revision"
        )
    return path[::-1]


def _migration(script: ScriptDirectory, one: Script) -> Migration:
    up = _render(script, one, is_up=True)
    if up is None:
        raise RefusedError(f"{one.revision} has no upgrade()")
    down = _render(script, one, is_up=False)
    has_way_down = down is not None and bool(down.own or not up.own)
    return Migration(
        revision=one.revision,
        title=" ".join((one.doc or "").split())[:200] or one.revision,
        is_transactional=up.is_transactional and not (has_way_down and down and not down.is_transactional),
        up=up.own,
        down=down.own if down and has_way_down else None,
        record=up.books,
        unrecord=down.books if down else _render_books(script, one),
    )


def _render(script: ScriptDirectory, one: Script, *, is_up: bool) -> _Rendered | None:
    """Return what the revision renders to; None: it says that it has no such direction."""
    if not hasattr(one.module, "upgrade" if is_up else "downgrade"):
        return None
    try:
        return _run(script, one, is_up=is_up)
    except NotImplementedError as error:
        if not is_up:
            return None
        raise RefusedError(f"{one.revision}: {_place(error, script.dir)}") from error
    except RefusedError as error:
        raise RefusedError(f"{one.revision}: {error}") from error
    except Exception as error:
        raise RefusedError(
            f"{one.revision} cannot be rendered without a database: {_place(error, script.dir)}. {_NO_BIND}. "
            "If it has no way back, let downgrade() raise NotImplementedError"
        ) from error


def _render_books(script: ScriptDirectory, one: Script) -> tuple[str, ...]:
    """Return what takes the revision out of the version table, without running its downgrade()."""
    vars(one.module)["downgrade"] = lambda: None
    return _run(script, one, is_up=False).books


def _run(script: ScriptDirectory, one: Script, *, is_up: bool) -> _Rendered:
    before = one.down_revision
    step = (RevisionStep.upgrade_from_script if is_up else RevisionStep.downgrade_from_script)(
        script.revision_map, one
    )
    start, end = (before, one.revision) if is_up else (one.revision, before)
    environment = EnvironmentContext(
        Config(), script, as_sql=True, fn=lambda *_: [step], starting_rev=start, destination_rev=end
    )
    with environment:
        environment.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},  # any other doubles each %
            transaction_per_migration=True,
            version_table_schema=_SCHEMA,
        )
        return _pieces_of(environment.get_context(), environment, step)


def _pieces_of(context: MigrationContext, environment: EnvironmentContext, step: RevisionStep) -> _Rendered:
    impl = context.impl = _ExactImpl(context)
    context.connection = impl.connection
    own: list[_Piece] = []
    run = step.migration_fn

    def marked(**options: Any) -> None:
        first = len(impl.pieces)
        run(**options)
        own.extend(impl.pieces[first:])
        del impl.pieces[first:]

    step.migration_fn = marked
    with environment.begin_transaction():
        environment.run_migrations()
    books = _statements(impl.pieces)
    return _Rendered(
        own=_statements(own),
        # the table may be there and empty, after a way back from the first revision
        books=tuple(each.replace("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS ", 1) for each in books),
        is_transactional=all(piece.kind == "sql" for piece in own),
    )


def _statements(pieces: list[_Piece]) -> tuple[str, ...]:
    return tuple(
        statement for piece in pieces if piece.kind == "sql" for statement in split_statements(piece.text)
    )


def _place(error: BaseException, directory: str | Path) -> str:
    """Return the error in words, with the line of a revision in which it came up."""
    words = f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(directory))]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {words}" if frames else words


def main(arguments: Sequence[str], output: TextIO) -> None:
    """Print the pending migrations, or why there are none to be had."""
    directory, target, *applied = arguments
    try:
        found = migrations(directory, target=target, applied=applied[0] if applied else None)
        answer: dict[str, object] = {"migrations": [one.model_dump(mode="json") for one in found]}
    except (RefusedError, ValueError) as error:
        answer = {"refused": str(error)}
    output.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # revisions may print
        main(sys.argv[1:], answers)
