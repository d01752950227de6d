"""What is done to a database, step by step, and what each step means for its state."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.backup import DatasetName
from rules.database import DatabaseState, IndexFacts, QualifiedName
from rules.frozen import Frozen
from rules.migration import Migration, VersionTable
from rules.vector_index import IndexGate, IndexParts, Partition, Rename


class TakeSnapshot(Frozen):
    """Take a snapshot of the dataset that holds the whole cluster."""

    action: Literal["take_snapshot"] = "take_snapshot"
    dataset: DatasetName
    snapshot: Annotated[str, Field(description="dataset@label")]


class ApplyMigration(Frozen):
    """Run one migration, its locks waited for in short tries."""

    action: Literal["apply_migration"] = "apply_migration"
    migration: Migration
    version_table: VersionTable
    revisions: tuple[str, ...] = Field(description="what the version table holds after it, sorted")
    schema_sha256: str | None = Field(description="of the schema after it, by the rehearsal; None: not known")


class VerifyDatabase(Frozen):
    """Prove that the schema is as rehearsed, nothing is corrupt, and declared queries work about as fast."""

    action: Literal["verify_database"] = "verify_database"


class BuildIndex(Frozen):
    """Build the new index on one leaf beside the old one, concurrently: nobody waits."""

    action: Literal["build_index"] = "build_index"
    partition: Partition
    parts: IndexParts
    definition: str = Field(description="as the catalog will have it, without its name")


class AttachIndexes(Frozen):
    """Make the partitioned index and attach the leaves' new indexes to it: it is valid once all are."""

    action: Literal["attach_indexes"] = "attach_indexes"
    table: QualifiedName
    index: QualifiedName
    partitions: tuple[Partition, ...]
    parts: IndexParts
    definition: str


class JudgeIndex(Frozen):
    """Measure recall and latency of the new index beside exact search and the old one; it passes or not."""

    action: Literal["judge_index"] = "judge_index"
    table: QualifiedName
    new: QualifiedName
    new_leaves: tuple[QualifiedName, ...]
    old: QualifiedName | None
    old_leaves: tuple[QualifiedName, ...] = ()
    parts: IndexParts
    gate: IndexGate


class SwapIndex(Frozen):
    """Swap names in one transaction and hide the old index from the planner: it is kept up, but not used."""

    action: Literal["swap_index"] = "swap_index"
    renames: tuple[Rename, ...] = Field(description="in this order: the old one makes room first")
    hidden: tuple[QualifiedName, ...] = Field(description="by their names after the renames")


class VerifyIndex(Frozen):
    """Prove that the planner takes the new index under its final name, and that it still passes."""

    action: Literal["verify_index"] = "verify_index"
    table: QualifiedName
    index: QualifiedName
    leaves: tuple[QualifiedName, ...]
    parts: IndexParts
    gate: IndexGate


class DropOldIndex(Frozen):
    """Drop what was kept through the bake, concurrently where that is possible; gone already is fine."""

    action: Literal["drop_old_index"] = "drop_old_index"
    index: QualifiedName
    table: QualifiedName
    is_partitioned: bool


DatabaseAction = (
    TakeSnapshot
    | ApplyMigration
    | VerifyDatabase
    | BuildIndex
    | AttachIndexes
    | JudgeIndex
    | SwapIndex
    | VerifyIndex
)


def database_applied(state: DatabaseState, action: DatabaseAction) -> DatabaseState:
    """Return the database's state after `action`: the meaning of each action, without the effect.

    Of indexes, only those of the tables that the plan concerns are told.
    """
    match action:
        case ApplyMigration():
            revisions = {**state.revisions, action.version_table.table: action.revisions}
            return state.model_copy(update={"revisions": revisions, "schema_sha256": action.schema_sha256})
        case BuildIndex():
            table, name = action.partition.table, action.partition.index
            built = IndexFacts(table=table, definition=action.definition, is_valid=True)
            return _with_indexes(state, {**state.indexes, name: built})
        case AttachIndexes():
            leaves = {p.index for p in action.partitions}
            attached = {
                name: facts.model_copy(update={"parent": action.index}) if name in leaves else facts
                for name, facts in state.indexes.items()
            }
            parent = IndexFacts(table=action.table, definition=action.definition, is_valid=True)
            return _with_indexes(state, {**attached, action.index: parent})
        case SwapIndex():
            return _with_indexes(state, swapped(state.indexes, action.renames, hidden=action.hidden))
        case TakeSnapshot() | VerifyDatabase() | JudgeIndex() | VerifyIndex():
            return state


def swapped(
    indexes: dict[str, IndexFacts],
    renames: tuple[Rename, ...],
    *,
    hidden: tuple[str, ...] = (),
    shown: tuple[str, ...] = (),
) -> dict[str, IndexFacts]:
    """Return the indexes under their new names, `hidden` ones not valid and `shown` ones valid."""
    for rename in renames:
        old, new = f"{rename.schema_name}.{rename.old}", f"{rename.schema_name}.{rename.new}"
        indexes = {
            (new if name == old else name): facts.model_copy(update={"parent": new})
            if facts.parent == old
            else facts
            for name, facts in indexes.items()
        }
    validity = {**dict.fromkeys(hidden, False), **dict.fromkeys(shown, True)}
    return {
        name: facts.model_copy(update={"is_valid": validity.get(name, facts.is_valid)})
        for name, facts in indexes.items()
    }


def _with_indexes(state: DatabaseState, indexes: dict[str, IndexFacts]) -> DatabaseState:
    # the schema's dump holds indexes too: what it reads afterwards is not known beforehand
    return state.model_copy(update={"indexes": indexes, "schema_sha256": None})
