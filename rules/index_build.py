"""How an index is built: the memory and workers it gets, and how far it is."""

from __future__ import annotations

from pydantic import Field

from rules.frozen import Count, Frozen, Ratio
from rules.vector_index import Hnsw, IndexParts, IvfFlat

_MIB = 1024**2
#: PostgreSQL starts a worker only when each of them, and the leader, gets this much.
_PER_WORKER_BYTES = 32 * _MIB
_HOST_SHARE = 0.25
_MARGIN = 1.25
#: What PostgreSQL takes at most.
_MOST_BYTES = 2_000_000_000 * 1024
_PHASES = {
    "initializing": 0.0,
    "waiting for writers before build": 0.01,
    "building index": 0.02,
    "waiting for writers before validation": 0.92,
    "index validation: scanning index": 0.93,
    "index validation: sorting tuples": 0.95,
    "index validation: scanning table": 0.96,
    "waiting for old snapshots": 0.98,
    "waiting for readers before marking dead": 0.99,
}
_BUILDING = (0.02, 0.92)


class MemoryFacts(Frozen):
    """What the server has for building an index."""

    maintenance_work_mem_bytes: Count = Field(description="as configured: never less than this is used")
    max_workers: Count = Field(description="max_parallel_maintenance_workers")
    available_bytes: Count | None = Field(
        default=None, description="of its host's memory; None: not known, then nothing is raised"
    )


class BuildMemory(Frozen):
    """What one build gets."""

    maintenance_work_mem_bytes: Count
    workers: Count
    needed_bytes: Count = Field(description="by estimate, for the whole graph or all samples")

    @property
    def fits(self) -> bool:
        """Whether it is expected to fit, by estimate."""
        return self.maintenance_work_mem_bytes >= self.needed_bytes


class BuildProgress(Frozen):
    """How far a build is."""

    index: str
    phase: str
    done_ratio: Ratio | None = Field(default=None, description="of all phases, roughly; None: not known")
    blocks_done: Count = 0
    blocks_total: Count = 0
    waits_for: str | None = Field(default=None, description="the session whose end it waits for, in words")
    notices: tuple[str, ...] = Field(default=(), description="what the server had to say so far")


def build_memory(rows: int, parts: IndexParts, facts: MemoryFacts) -> BuildMemory:
    """Return the memory and workers for building an index on `rows` rows.

    The graph should fit: once it does not, each further row is inserted on disk, and that is slow, with
    workers even more so. At most a quarter of what the host has available is taken, unless the server is
    configured for more. Workers are only used when all fits and each gets what PostgreSQL wants for it.
    """
    needed = _needed_bytes(rows, parts)
    limit = facts.maintenance_work_mem_bytes
    if facts.available_bytes is not None:
        limit = max(limit, int(facts.available_bytes * _HOST_SHARE))
    limit = min(limit, _MOST_BYTES)
    wanted = max(needed, (facts.max_workers + 1) * _PER_WORKER_BYTES)
    memory = min(limit, max(facts.maintenance_work_mem_bytes, wanted))
    workers = min(facts.max_workers, max(0, memory // _PER_WORKER_BYTES - 1))
    return BuildMemory(
        maintenance_work_mem_bytes=memory, workers=workers if needed <= memory else 0, needed_bytes=needed
    )


def _needed_bytes(rows: int, parts: IndexParts) -> int:
    vector = parts.dimensions * (2 if parts.as_halfvec else 4) + 8
    match parts.how:
        case Hnsw():
            # measured with pgvector 0.8: 625, 831 and 1,450 bytes beside a vector at m 8, 16 and 32, and 1 MB
            needed = _MIB + rows * (vector + 200 + 32 * parts.how.m)
        case IvfFlat():
            lists, samples = parts.how.lists, max(50 * parts.how.lists, 10_000)
            # all samples, three sets of centres, and the bounds between samples and centres
            needed = _MIB + (samples + 3 * lists) * vector + 4 * samples * lists + 4 * lists * lists
    return int(needed * _MARGIN)


def done_ratio(phase: str, *, blocks_done: int, blocks_total: int) -> float | None:
    """Return how much of a concurrent build is done, roughly; None: in a phase that is not known."""
    for name, at in _PHASES.items():
        if not phase.startswith(name):
            continue
        # other parts of a build still tell the blocks of the part before
        if not phase.endswith("loading tuples") or not blocks_total:
            return at
        start, end = _BUILDING
        return start + (end - start) * min(1.0, blocks_done / blocks_total)
    return None
