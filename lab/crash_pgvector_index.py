"""What an index change brings to the crash tests: a partitioned table whose HNSW index is replaced."""

from __future__ import annotations

from pathlib import Path

from lab.crash_database import CrashDatabase
from lab.database import LabDatabase
from lab.database_content import COLUMN, INDEX, TABLE
from rules.change import IndexChange
from rules.vector_index import Hnsw, IndexGate

#: What is tested is the way back, not the verdict: on so small a table all indexes are good and quick.
_GATE = IndexGate(queries=10, min_recall=0.5, max_latency_ratio=100.0)


class CrashLab(CrashDatabase):
    """A small database with three monthly partitions, and a user who reads now and then.

    Args:
        directory: everything lives below it.
        strategy: `in_place` is all that there is.
    """

    def __init__(self, directory: Path, strategy: str = "in_place") -> None:
        if strategy != "in_place":
            raise ValueError(f"an index is replaced in_place, not {strategy}")
        database = LabDatabase(directory / "database")
        change = IndexChange(
            database=database.name,
            table=TABLE,
            column=COLUMN,
            index=INDEX,
            how=Hnsw(m=16, ef_construction=64),
            gate=_GATE,
        )
        super().__init__(directory, database, change)
