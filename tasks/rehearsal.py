"""Rehearse migrations on a copy of the database: up, statement by statement, and down again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from rules.database import Database
from rules.errors import InvalidRequestError
from rules.migration import Migration, Migrations, Rehearsal, RehearsedMigration, RehearsedStatement
from tasks.blockers import without_values
from tasks.postgres import DatabaseError, Session, connection, error_words
from tasks.rehearsal_copy import copy_of
from tasks.rehearsal_probe import needs_to_run_alone, run_alone, run_in_transaction
from tasks.rehearsal_remains import remove_rehearsals
from tasks.rehearsal_state import (
    Content,
    Schema,
    content_differences,
    content_of,
    schema_difference,
    schema_of,
)
from tasks.settings import Settings

__all__ = ["rehearse", "remove_rehearsals"]

#: Nobody works on a copy: who waits there, waits for a transaction that was left prepared.
_LOCK_TIMEOUT = "SET lock_timeout = '10s'"
_LONGEST_STATEMENT = 200


@dataclass
class _OnCopy:
    """A copy, and what is known of the ways down: why they stop, and which tables' rows one has lost."""

    database: Database
    deployment: str
    has_data: bool
    stopped_by: str = ""
    lost: set[str] = field(default_factory=set)

    def session(self) -> AbstractContextManager[Session]:
        """One transaction, as the migration will have it."""
        limit_s = self.database.statement_timeout_s
        return connection(self.database, deployment=self.deployment, statement_timeout_s=limit_s)

    def schema(self) -> Schema:
        return schema_of(self.database)

    def content(self, *, like: Content | None = None) -> Content | None:
        """Return what is in the tables; None: the copy has no rows."""
        return content_of(self.database, deployment=self.deployment, like=like) if self.has_data else None


def rehearse(database: Database, migrations: Migrations, *, deployment: str, settings: Settings) -> Rehearsal:
    """Run all pending migrations on a copy, then their ways down, newest first, and say what each did.

    Of each statement of `up`: the locks that it takes on relations that were there before, which of them it
    writes anew, and how long it took. Of each way down: whether it brings back the schema, and all rows of
    all user tables, also those that are not declared, in the columns that were there before. The first one
    that is missing, fails or does not bring the schema back ends the tries: beyond it nothing can be told.

    The copy is the best that can be had, or the one that `database.rehearsal` asks for: a clone of the
    cluster's ZFS dataset, a base backup, or the schema alone. It has a server of its own that nobody else
    reaches; it is removed in any case. The original is only read.

    Args:
        database: which.
        migrations: those that are pending.
        deployment: for whom.
        settings: where copies lie: in `rehearsals` beside the journal's directory.

    Raises:
        InvalidRequestError: a statement of `up` fails on the copy, or no copy can be had. Nothing was
            touched.
        LockHeldError: another rehearsal of this database goes on.
        DeployError: the database or its copy cannot be read.
    """
    began = time.monotonic()
    with copy_of(database, deployment=deployment, settings=settings) as copy:
        on_copy = _OnCopy(copy.database, deployment, has_data=copy.where != "schema_copy")
        first, rehearsed = _up_and_down(on_copy, migrations.pending)
    return Rehearsal(
        where=copy.where,
        schema_sha256=first.sha256,
        migrations=tuple(rehearsed),
        took_s=time.monotonic() - began,
    )


def _up_and_down(on_copy: _OnCopy, pending: Sequence[Migration]) -> tuple[Schema, list[RehearsedMigration]]:
    """Return the schema before, and what was seen of each migration."""
    schemas, contents, rehearsed = [on_copy.schema()], [], []
    for number, migration in enumerate(pending):
        contents.append(on_copy.content() if number >= _first_to_revert(pending) else None)
        statements = tuple(_up(on_copy, migration))
        schemas.append(on_copy.schema())
        rehearsed.append(
            RehearsedMigration(
                revision=migration.revision, statements=statements, schema_sha256=schemas[-1].sha256
            )
        )
    for number in reversed(range(len(pending))):
        back = _way_back(on_copy, pending[number], schemas[number], contents[number])
        rehearsed[number] = rehearsed[number].model_copy(update=back)
    return schemas[0], rehearsed


def _first_to_revert(pending: Sequence[Migration]) -> int:
    """Return from which one on all have a way down: reading all rows takes long, and is not done in vain."""
    first = len(pending)
    while first and pending[first - 1].down is not None:
        first -= 1
    return first


def _up(on_copy: _OnCopy, migration: Migration) -> list[RehearsedStatement]:
    done: list[RehearsedStatement] = []
    try:
        if migration.is_transactional:
            with on_copy.session() as session:
                session.execute(_LOCK_TIMEOUT)
                for each in run_in_transaction(session, migration.up):
                    done.append(each)  # noqa: PERF402 - it counts those before a failure
                _execute(session, migration.record)
        else:
            for statement in migration.up:
                done.append(_run_one(on_copy, statement))  # noqa: PERF401 - see above
            with on_copy.session() as session:
                _execute(session, migration.record)
    except DatabaseError as error:
        failed = (
            migration.up[len(done)] if len(done) < len(migration.up) else "its entry in the version table"
        )
        raise InvalidRequestError(
            f"Migration {migration.revision} fails on a copy of the database, at statement {len(done) + 1}, "
            f"{_shortened(failed)}: {_said(error)}. Nothing but the copy was touched, and that is gone. "
            "Correct the migration and deploy again."
        ) from error
    return done


def _run_one(on_copy: _OnCopy, statement: str) -> RehearsedStatement:
    """Run a statement in a transaction of its own, where it shows its locks; without one if it must."""
    try:
        with on_copy.session() as session:
            session.execute(_LOCK_TIMEOUT)
            return next(run_in_transaction(session, (statement,)))
    except DatabaseError as error:
        if not needs_to_run_alone(error.sqlstate):
            raise
    database, name = on_copy.database, on_copy.deployment
    with (
        connection(database, deployment=name, autocommit=True) as session,
        connection(database, deployment=name, autocommit=True, read_only=True) as observer,
        connection(database, deployment=name) as gate,
    ):
        return run_alone(session, observer, gate, statement)


def _way_back(
    on_copy: _OnCopy, migration: Migration, schema: Schema, content: Content | None
) -> dict[str, Any]:
    """Take the migration back if that can be tried, and return how it went, as fields of what was seen."""
    if on_copy.stopped_by:
        return {"words": f"its way down could not be tried: {on_copy.stopped_by}"}
    if migration.down is None:
        on_copy.stopped_by = f"{migration.revision}, which comes after it, has none"
        return {"words": "it has no way down"}
    try:
        _down(on_copy, migration, migration.down)
    except DatabaseError as error:
        on_copy.stopped_by = f"that of {migration.revision}, which comes after it, fails"
        has_data = False if content else None
        words = f"its way down fails: {_said(error)}"
        return {"restores_schema": False, "restores_data": has_data, "words": words}
    difference = schema_difference(schema, on_copy.schema())
    if difference:
        on_copy.stopped_by = f"that of {migration.revision}, which comes after it, does not lead back"
    restores_data, lost = _rows_back(on_copy, content)
    words = "; ".join(filter(None, (difference, *lost)))
    return {"restores_schema": not difference, "restores_data": restores_data, "words": words}


def _down(on_copy: _OnCopy, migration: Migration, down: tuple[str, ...]) -> None:
    if migration.is_transactional:
        with on_copy.session() as session:
            session.execute(_LOCK_TIMEOUT)
            _execute(session, (*down, *migration.unrecord))
        return
    for statement in down:
        _run_one(on_copy, statement)
    with on_copy.session() as session:
        _execute(session, migration.unrecord)


def _rows_back(on_copy: _OnCopy, before: Content | None) -> tuple[bool | None, tuple[str, ...]]:
    """Return whether all rows are back, and in words which are not; None: it cannot be told."""
    after = on_copy.content(like=before) if before else None
    if before is None or after is None:
        return None, ()
    differences = content_differences(before, after)
    inherited = on_copy.lost & {*differences}
    words = tuple(
        f"{name} {said}" + (": lost by a later way down already" if name in inherited else "")
        for name, said in sorted(differences.items())
    )
    on_copy.lost |= {*differences}
    if {*differences} - inherited:
        return False, words
    return (None if inherited else True), words


def _execute(session: Session, statements: tuple[str, ...]) -> None:
    for statement in statements:
        session.execute(statement.encode(), prepare=False)


def _said(error: DatabaseError) -> str:
    return error_words(error.__cause__) if isinstance(error.__cause__, psycopg.Error) else str(error)


def _shortened(statement: str) -> str:
    # up to its first value: what users wrote belongs in no message
    return f"`{without_values(statement, letters=_LONGEST_STATEMENT)}`"
