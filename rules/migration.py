"""Migrations of a schema: what each does, what a rehearsal showed of it, and how it is taken back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.database import Identifier, QualifiedName
from rules.frozen import Count, Frozen, Seconds, Sha256

#: What migrations are called: an alembic revision, or a file's name without its endings.
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class VersionTable(Frozen):
    """Where a runner keeps what is applied: a row for each head (alembic) or each file (plain SQL)."""

    table: QualifiedName
    column: Identifier


class Migration(Frozen):
    """One migration as the SQL that will be run, statement by statement, with its way down."""

    revision: Revision
    title: str
    is_transactional: bool = Field(
        default=True, description="all of it, and the version table's row, in one transaction"
    )
    up: tuple[str, ...] = Field(description="without BEGIN, COMMIT and the version table's own statements")
    down: tuple[str, ...] | None = Field(default=None, description="None: its author gave none")
    record: tuple[str, ...] = Field(description="brings the version table to where it is after `up`")
    unrecord: tuple[str, ...] = Field(description="and back")


class Migrations(Frozen):
    """A folder of migrations, as read: those that are pending, in their order."""

    version_table: VersionTable
    sha256: Sha256 = Field(description="of the migration files, one after the other by name")
    pending: tuple[Migration, ...]
    after: tuple[str, ...] = Field(description="what the version table holds once all are applied, sorted")


class LintFinding(Frozen):
    """Something dangerous in a migration, found by reading it."""

    rule: str = Field(description="squawk's name of the rule, or ours")
    level: Literal["error", "warning"]
    revision: Revision
    statement: Count = Field(description="which of its statements, counted from 0")
    message: str


class LockTaken(Frozen):
    """A lock that a statement takes."""

    relation: str
    mode: str = Field(description="such as AccessExclusiveLock")


class RehearsedStatement(Frozen):
    """What one statement did on the copy."""

    sql: str
    locks: tuple[LockTaken, ...]
    rewrites: tuple[str, ...] = Field(description="tables and indexes that were written anew")
    duration_s: Seconds

    @property
    def stops_readers(self) -> bool:
        """Whether it takes a lock on an existing relation that even SELECT waits for."""
        return any(lock.mode == "AccessExclusiveLock" for lock in self.locks)


class RehearsedMigration(Frozen):
    """What one migration did on the copy, and whether its way down led back."""

    revision: Revision
    statements: tuple[RehearsedStatement, ...]
    schema_sha256: str = Field(description="of the schema after it")
    restores_schema: bool | None = Field(default=None, description="None: it has no way down")
    restores_data: bool | None = Field(default=None, description="None: no way down, or a copy without data")
    words: str = Field(default="", description="what the way down left otherwise")


class Rehearsal(Frozen):
    """All pending migrations, up and down again, on a copy."""

    where: Literal["zfs_clone", "base_backup", "schema_copy"]
    schema_sha256: str = Field(description="before the first")
    migrations: tuple[RehearsedMigration, ...]
    took_s: Seconds

    def of(self, revision: str) -> RehearsedMigration:
        """Return what the migration of that revision did.

        Raises:
            KeyError: it was not rehearsed.
        """
        for migration in self.migrations:
            if migration.revision == revision:
                return migration
        raise KeyError(f"{revision} was not rehearsed")
