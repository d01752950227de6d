"""The demo's changes of a database: what they are, what they end in, and what its users saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lab.database import LabDatabase
from lab.database_load import LoadFigures
from lab.database_migrations import good_expand
from rules.change import IndexChange, SchemaChange
from rules.vector_index import Hnsw, IndexGate

_TABLE = "public.episodic_memories"
_INDEX = "episodic_memories_embedding_idx"


@dataclasses.dataclass(frozen=True)
class DatabaseScene:
    """One change of the database, and what it is to end in; `change` gets a directory for its files."""

    title: str
    change: Callable[[LabDatabase, Path], SchemaChange | IndexChange]
    ends: str


def _expand(database: LabDatabase, directory: Path) -> SchemaChange:
    return good_expand(directory / "expand").change(database.name)


def _poor(database: LabDatabase, _directory: Path) -> IndexChange:
    return IndexChange(
        database=database.name,
        table=_TABLE,
        column="embedding",
        index=_INDEX,
        how=Hnsw(m=2, ef_construction=4, ef_search=1),
        gate=IndexGate(min_recall=0.99),
    )


DATABASE_SCENES = (
    DatabaseScene("A column and its index, beside readers and writers", _expand, "promoted"),
    DatabaseScene("A vector index with too little recall never serves", _poor, "rolled_back"),
)


def show_database(seen: LoadFigures, console: Console) -> None:
    """Print what the database's users saw of all of it."""
    console.print(
        f"The database's users: {seen.reads:,} reads, {seen.failed} failed, "
        f"longest {1000 * seen.longest_stall_s:.0f} ms (half took no longer than "
        f"{1000 * seen.p50_s:.1f} ms), {seen.commits:,} commits.",
        soft_wrap=True,
    )
