"""The way back of each change of a database, as data: see `rules.undo`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.backup import DatasetName
from rules.database import DatabaseState, QualifiedName
from rules.database_plan import swapped
from rules.frozen import Frozen, Seconds
from rules.migration import Migration, VersionTable
from rules.vector_index import Rename


class RevertMigration(Frozen):
    """Run a migration's own way down, if the version table says that it is applied."""

    undo: Literal["revert_migration"] = "revert_migration"
    migration: Migration
    version_table: VersionTable
    revisions: tuple[str, ...] = Field(description="what the version table held before it, sorted")
    schema_sha256: str | None = Field(description="of the schema before it")

    def describe(self) -> str:
        """Return this step in words."""
        return f"migration {self.migration.revision} taken back by its way down"


class RestoreSnapshot(Frozen):
    """Bring the whole cluster back to the snapshot, if the migration is applied or may be half applied.

    The server is stopped for it, and what was written since the snapshot is lost: how much is measured,
    and written down, before it is done.
    """

    undo: Literal["restore_snapshot"] = "restore_snapshot"
    migration: Migration
    version_table: VersionTable
    revisions: tuple[str, ...]
    schema_sha256: str | None
    dataset: DatasetName
    snapshot: Annotated[str, Field(description="dataset@label")]
    max_loss_s: Seconds = Field(description="with more than this to lose, a person has to accept it first")

    def describe(self) -> str:
        """Return this step in words."""
        return f"the cluster back to the snapshot {self.snapshot}"


class RemoveIndex(Frozen):
    """Remove an index that this deployment made, valid or not; gone already is fine."""

    undo: Literal["remove_index"] = "remove_index"
    index: QualifiedName
    table: QualifiedName
    is_partitioned: bool = Field(
        default=False, description="it cannot be dropped concurrently, and holds no rows"
    )

    def describe(self) -> str:
        """Return this step in words."""
        return f"index {self.index} removed"


class RestoreIndexNames(Frozen):
    """Swap the names back in one transaction and show the old index to the planner again."""

    undo: Literal["restore_index_names"] = "restore_index_names"
    renames: tuple[Rename, ...] = Field(description="in this order; none of it if the first has happened")
    shown: tuple[QualifiedName, ...] = Field(description="by their names after the renames")

    def describe(self) -> str:
        """Return this step in words."""
        return ", ".join(f"index {rename.old} named {rename.new} again" for rename in self.renames)


DatabaseUndo = RevertMigration | RestoreSnapshot | RemoveIndex | RestoreIndexNames


def database_undone(state: DatabaseState, step: DatabaseUndo) -> DatabaseState:
    """Return the database's state after `step`: the meaning of each undo step, without the effect."""
    match step:
        case RevertMigration() | RestoreSnapshot():
            revisions = {**state.revisions, step.version_table.table: step.revisions}
            return state.model_copy(update={"revisions": revisions, "schema_sha256": step.schema_sha256})
        case RemoveIndex():
            kept = {
                name: facts
                for name, facts in state.indexes.items()
                if step.index not in (name, facts.parent)  # attached ones go with it
            }
            return state.model_copy(update={"indexes": kept, "schema_sha256": None})
        case RestoreIndexNames():
            if not _is_swapped(state, step):
                return state
            back = swapped(state.indexes, step.renames, shown=step.shown)
            return state.model_copy(update={"indexes": back, "schema_sha256": None})


def _is_swapped(state: DatabaseState, step: RestoreIndexNames) -> bool:
    """Return whether the names are those after the swap: it may never have happened, or be taken back."""
    first, last = step.renames[0], step.renames[-1]
    return (
        f"{last.schema_name}.{last.old}" in state.indexes
        and f"{first.schema_name}.{first.new}" not in state.indexes
    )
