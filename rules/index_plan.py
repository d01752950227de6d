"""Plan a change of a pgvector index: built beside, judged, swapped in, the old one kept, then dropped.

The old index stays, hidden from the planner and kept up by writes, until nothing leads back any more.
"""

from __future__ import annotations

from typing import NamedTuple

from rules.change import IndexChange
from rules.database import DatabaseState, QualifiedName
from rules.database_plan import (
    AttachIndexes,
    BuildIndex,
    DatabaseAction,
    DropOldIndex,
    JudgeIndex,
    SwapIndex,
    VerifyIndex,
)
from rules.database_undo import DatabaseUndo, RemoveIndex, RestoreIndexNames
from rules.index_build import BuildMemory, BuildProgress, MemoryFacts, build_memory
from rules.index_catalog import (
    FoundIndex,
    Leaf,
    TableCatalog,
    existing_index,
    index_parts,
    refuse_ordinary_user,
    refuse_rivals,
    refuse_table,
)
from rules.index_names import is_leftover, kept_name, without_leftovers, work_name
from rules.plan import Step
from rules.vector_index import Hnsw, IndexParts, IvfFlat, Partition, Rename

__all__ = [
    "BuildMemory",
    "BuildProgress",
    "FoundIndex",
    "IndexPlan",
    "Leaf",
    "MemoryFacts",
    "TableCatalog",
    "build_memory",
    "plan_index",
    "without_leftovers",
]

_ROWS_FOR_A_LIST = 50
_MIB = 1024**2

_Planned = tuple[str, DatabaseAction, DatabaseUndo | None]


class IndexPlan(NamedTuple):
    """The steps of an index change, what is done once its undo is disarmed, and what people should know."""

    steps: tuple[Step, ...]
    finish: tuple[DropOldIndex, ...]
    notes: tuple[str, ...]


class _Names(NamedTuple):
    """The new index and the old one, by all their names."""

    stable: QualifiedName
    new: QualifiedName
    partitions: tuple[Partition, ...]
    old: FoundIndex | None = None
    kept: QualifiedName | None = None
    old_leaves: tuple[QualifiedName, ...] = ()  # those that are valid

    @property
    def new_leaves(self) -> tuple[QualifiedName, ...]:
        return tuple(partition.index for partition in self.partitions)

    @property
    def is_comparable(self) -> bool:
        """Whether the old index serves the whole table."""
        return self.old is not None and self.old.is_valid and len(self.old_leaves) == len(self.partitions)


def plan_index(
    change: IndexChange, catalog: TableCatalog, before: DatabaseState, *, seed: str = ""
) -> IndexPlan:
    """Return the steps that bring the index about, each with its way back; none when it is there already.

    An unfinished index of an earlier try is taken over where `before` leaves it out (`without_leftovers`).
    One that `before` tells of has to be there again after a way back: the new one is built beside it, and
    it is dropped at the end.

    Args:
        change: what is asked for.
        catalog: of its table, as it is now.
        before: the state that a way back returns to.
        seed: of the deployment alone: no other one ever keeps an old index under the same name, and so
            removes this one's for its own.

    Raises:
        InvalidRequestError: it cannot be done; says what would work. Nothing was touched.
    """
    parts = index_parts(change, catalog)
    refuse_table(catalog)
    stable = f"{catalog.schema_name}.{change.index}"
    old = existing_index(stable, parts, catalog)
    if old and catalog.is_as_wanted(old, parts):
        return IndexPlan((), (), (f"index {stable} is as wanted already; {_settings(parts)}",))
    refuse_ordinary_user(stable, catalog)
    refuse_rivals(stable, parts, catalog)
    names = _names(change, parts, catalog, before=before)
    if old:
        names = _with_old(names, old, catalog, seed=f"{seed}|{old.definition}|{catalog.definition(parts)}")
    planned = _actions(change, parts, catalog, names)
    steps = tuple(
        Step(number=number, title=title, action=action, undo=undo)
        for number, (title, action, undo) in enumerate(planned)
    )
    return IndexPlan(steps, _finish(names, catalog, before), _notes(parts, catalog, names))


# --- names -----------------------------------------------------------------------------------------


def _names(change: IndexChange, parts: IndexParts, catalog: TableCatalog, *, before: DatabaseState) -> _Names:
    taken = _taken(parts, catalog, before)
    stable = f"{catalog.schema_name}.{change.index}"
    seed = f"{stable}|{catalog.definition(parts)}"
    new = work_name(change.index, seed, schema=catalog.schema_name, taken=taken)
    if not catalog.is_partitioned:
        return _Names(stable, new, (Partition(table=catalog.table, index=new),))
    partitions: list[Partition] = []
    for leaf in catalog.leaves:
        schema, table = leaf.table.split(".")
        seed = f"{stable}|{catalog.definition(parts, leaf)}"
        used = {*taken, new, *(partition.index for partition in partitions)}
        name = work_name(f"{table}_{change.column}", seed, schema=schema, taken=used)
        partitions.append(Partition(table=leaf.table, index=name))
    return _Names(stable, new, tuple(partitions))


def _taken(parts: IndexParts, catalog: TableCatalog, before: DatabaseState) -> set[str]:
    """Return the names that new indexes must not have: all but those of leftovers that are taken over."""
    wanted = {catalog.definition(parts), *(catalog.definition(parts, leaf) for leaf in catalog.leaves)}
    free = {
        one.index
        for one in _leftovers(catalog)
        if one.definition in wanted and one.index not in before.indexes
    }
    return {*catalog.taken, *(one.index for one in catalog.indexes)} - free


def _leftovers(catalog: TableCatalog) -> list[FoundIndex]:
    return [one for one in catalog.indexes if is_leftover(one.index, parent=one.parent)]


def _with_old(names: _Names, old: FoundIndex, catalog: TableCatalog, *, seed: str) -> _Names:
    taken = {*catalog.taken, *(one.index for one in catalog.indexes)}
    kept = kept_name(names.stable.split(".")[1], seed, schema=catalog.schema_name, taken=taken)
    leaves = tuple(sorted(leaf.index for leaf in catalog.leaves_of(old) if leaf.is_valid))
    return names._replace(old=old, kept=kept, old_leaves=leaves)


# --- steps -----------------------------------------------------------------------------------------


def _actions(change: IndexChange, parts: IndexParts, catalog: TableCatalog, names: _Names) -> list[_Planned]:
    planned: list[_Planned] = [
        (
            f"Build {partition.index} on {partition.table}",
            BuildIndex(partition=partition, parts=parts, definition=catalog.definition(parts, leaf)),
            RemoveIndex(index=partition.index, table=partition.table),
        )
        for partition, leaf in zip(names.partitions, catalog.leaves, strict=True)
    ]
    if catalog.is_partitioned:
        planned.append(_attach(parts, catalog, names))
    judge = JudgeIndex(
        table=change.table,
        new=names.new,
        new_leaves=names.new_leaves,
        old=names.stable if names.is_comparable else None,
        old_leaves=names.old_leaves if names.is_comparable else (),
        parts=parts,
        gate=change.gate,
    )
    verify = VerifyIndex(
        table=change.table,
        index=names.stable,
        leaves=names.new_leaves if catalog.is_partitioned else (names.stable,),
        parts=parts,
        gate=change.gate,
    )
    return [
        *planned,
        (f"Judge {names.new}", judge, None),
        _swap(catalog, names),
        (f"Verify that {names.stable} is used", verify, None),
    ]


def _attach(parts: IndexParts, catalog: TableCatalog, names: _Names) -> _Planned:
    attach = AttachIndexes(
        table=catalog.table,
        index=names.new,
        partitions=names.partitions,
        parts=parts,
        definition=catalog.definition(parts),
    )
    undo = RemoveIndex(index=names.new, table=catalog.table, is_partitioned=True)
    return (f"Attach {len(names.partitions)} indexes to {names.new}", attach, undo)


def _swap(catalog: TableCatalog, names: _Names) -> _Planned:
    """Return the swap. Of a partitioned index its leaves are hidden: the planner never scans the parent."""
    schema, stable = catalog.schema_name, names.stable.split(".")[1]
    new = names.new.split(".")[1]
    title = f"Swap {names.new} in as {names.stable}"
    renames = [Rename(schema_name=schema, old=new, new=stable)]
    back = [Rename(schema_name=schema, old=stable, new=new)]
    hidden = names.old_leaves
    if names.kept:
        title += f"; the old one is kept as {names.kept}, hidden"
        kept = names.kept.split(".")[1]
        renames.insert(0, Rename(schema_name=schema, old=stable, new=kept))
        back.append(Rename(schema_name=schema, old=kept, new=stable))
        if hidden and not catalog.is_partitioned:  # it is its own leaf, and has its kept name by then
            hidden = (names.kept,)
    swap = SwapIndex(renames=tuple(renames), hidden=hidden)
    return (title, swap, RestoreIndexNames(renames=tuple(back), shown=names.old_leaves))


def _finish(names: _Names, catalog: TableCatalog, before: DatabaseState) -> tuple[DropOldIndex, ...]:
    """Return what is dropped at the end: the old index, and what earlier tries have left."""
    dropped = [(names.kept, catalog.table)] if names.kept else []
    built = {names.new, *names.new_leaves}
    dropped += [
        (one.index, one.table)
        for one in _leftovers(catalog)
        if one.parent is None and one.index in before.indexes and one.index not in built
    ]
    return tuple(
        DropOldIndex(
            index=index, table=table, is_partitioned=catalog.is_partitioned and table == catalog.table
        )
        for index, table in dropped
    )


# --- notes -----------------------------------------------------------------------------------------


def _settings(parts: IndexParts) -> str:
    return "queries set " + ", ".join(f"{name} = {value}" for name, value in parts.query_settings.items())


def _notes(parts: IndexParts, catalog: TableCatalog, names: _Names) -> tuple[str, ...]:
    notes = [f"the index is judged as if {_settings(parts)}: those who ask have to set it too"]
    if (key := catalog.key(parts)) != catalog.column_written:
        notes.append(
            f"{parts.dimensions} dimensions are more than pgvector indexes as vector: it is indexed as "
            f"halfvec, and queries have to order by {key} {parts.operator} $1::halfvec({parts.dimensions})"
        )
    if names.old and not names.is_comparable:
        notes.append(f"{names.stable} is not valid everywhere: the new index is not compared with it")
    for leaf in catalog.leaves:
        memory = build_memory(leaf.rows, parts, catalog.memory)
        if not memory.fits:
            notes.append(
                f"building on {leaf.table} needs about {memory.needed_bytes // _MIB:,} MB and gets "
                f"{memory.maintenance_work_mem_bytes // _MIB:,}: "
                + ("it will take long" if isinstance(parts.how, Hnsw) else "it may be refused")
            )
        if isinstance(parts.how, IvfFlat) and leaf.rows < parts.how.lists * _ROWS_FOR_A_LIST:
            notes.append(
                f"{leaf.table} has about {leaf.rows:,} rows for {parts.how.lists} lists, which are made from "
                "the rows that are there now: with more of them, build it anew"
            )
    return tuple(notes)
