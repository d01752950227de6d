"""A pgvector index: its parameters, and what is measured of it before it may serve."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.database import Identifier, QualifiedName
from rules.frozen import Count, Frozen, Ratio, Seconds

Distance = Literal["l2", "cosine", "inner_product", "l1"]
#: Above this, pgvector indexes no `vector`; up to the second, a `halfvec` of it.
MAX_VECTOR_DIMENSIONS = 2_000
MAX_HALFVEC_DIMENSIONS = 4_000


class Hnsw(Frozen):
    """A graph: no training, best recall for its speed, long to build."""

    method: Literal["hnsw"] = "hnsw"
    m: Annotated[int, Field(ge=2, le=100)] = 16
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64
    ef_search: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=40, description="hnsw.ef_search, a setting of queries: the gate measures with it"
    )

    @model_validator(mode="after")
    def _is_wide_enough(self) -> Self:
        if self.ef_construction < 2 * self.m:
            raise ValueError(
                f"ef_construction must be at least twice m: {self.ef_construction} < 2 · {self.m}"
            )
        return self


class IvfFlat(Frozen):
    """Lists around centres: quick to build, needs rows to learn from, worse recall."""

    method: Literal["ivfflat"] = "ivfflat"
    lists: Annotated[int, Field(ge=1, le=32_768)] = 100
    probes: Annotated[int, Field(ge=1, le=32_768)] = Field(
        default=10, description="ivfflat.probes, a setting of queries: the gate measures with it"
    )

    @model_validator(mode="after")
    def _probes_are_lists(self) -> Self:
        if self.probes > self.lists:
            raise ValueError(f"probes {self.probes} is above lists {self.lists}")
        return self


class IndexGate(Frozen):
    """What the new index must show before it may serve."""

    k: Annotated[int, Field(ge=1, le=1000)] = 10
    queries: Annotated[int, Field(ge=5, le=1000)] = Field(
        default=50, description="vectors of the table itself, drawn evenly over its rows"
    )
    min_recall: Ratio = Field(default=0.95, description="share of the k true neighbours that are found")
    max_latency_ratio: Annotated[float, Field(gt=0)] = Field(
        default=1.5, description="its p95 as a multiple of the old index's"
    )
    max_p95_s: Annotated[float, Field(gt=0)] | None = Field(default=None, description="and at most this")


class IndexParts(Frozen):
    """What an index is made of, whatever table or partition it is on."""

    column: Identifier
    dimensions: Annotated[int, Field(ge=1)]
    as_halfvec: bool = Field(default=False, description="indexed as halfvec: over 2,000 dimensions")
    distance: Distance
    how: Hnsw | IvfFlat = Field(discriminator="method")

    @property
    def operator_class(self) -> str:
        """Name of the operator class, such as `vector_cosine_ops`."""
        kind = "halfvec" if self.as_halfvec else "vector"
        words = {"l2": "l2", "cosine": "cosine", "inner_product": "ip", "l1": "l1"}
        return f"{kind}_{words[self.distance]}_ops"

    @property
    def operator(self) -> str:
        """The distance operator that queries order by."""
        return {"l2": "<->", "cosine": "<=>", "inner_product": "<#>", "l1": "<+>"}[self.distance]

    @property
    def options(self) -> dict[str, int]:
        """The index's own parameters, for WITH."""
        match self.how:
            case Hnsw():
                return {"m": self.how.m, "ef_construction": self.how.ef_construction}
            case IvfFlat():
                return {"lists": self.how.lists}

    @property
    def query_settings(self) -> dict[str, int]:
        """What queries set to use it as measured."""
        match self.how:
            case Hnsw():
                return {"hnsw.ef_search": self.how.ef_search}
            case IvfFlat():
                return {"ivfflat.probes": self.how.probes}


class Measurement(Frozen):
    """What one index did with the gate's queries."""

    index: str
    recall: Ratio
    p50_s: Seconds
    p95_s: Seconds
    queries: Count
    is_used: bool = Field(description="EXPLAIN shows that the planner took this index and no other")


class IndexMeasured(Frozen):
    """The new index beside exact search and the old index."""

    exact_p50_s: Seconds
    new: Measurement
    old: Measurement | None = Field(default=None, description="None: there was no index before")
    size_bytes: Count = 0
    old_size_bytes: Count | None = None

    @property
    def in_words(self) -> str:
        """What was measured, in one line."""
        words = f"{self.new.queries} queries; exact p50 {1000 * self.exact_p50_s:.2f} ms"
        sides = (("new", self.new, self.size_bytes), ("old", self.old, self.old_size_bytes))
        for side, one, size in sides:
            if one:
                words += (
                    f"; {side} {one.index}: recall {one.recall:.3f}, p50 {1000 * one.p50_s:.2f} ms, "
                    f"p95 {1000 * one.p95_s:.2f} ms, {(size or 0) / 1024**2:.1f} MB"
                )
        return words


class Partition(Frozen):
    """One leaf of the table, with its new index's name; a table without partitions is its own leaf."""

    table: QualifiedName
    index: QualifiedName


class Rename(Frozen):
    """An index gets another name within its schema."""

    schema_name: Identifier
    old: Identifier
    new: Identifier
