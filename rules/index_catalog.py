"""What the catalog says of a table with vectors, and whether a change of its index makes sense for it."""

from __future__ import annotations

import re

from pydantic import Field

from rules.change import IndexChange
from rules.database import QualifiedName
from rules.errors import InvalidRequestError
from rules.frozen import Count, Frozen
from rules.index_build import MemoryFacts
from rules.index_names import is_kept, is_leftover
from rules.vector_index import MAX_HALFVEC_DIMENSIONS, MAX_VECTOR_DIMENSIONS, IndexParts, IvfFlat

_TYPE = re.compile(r"^(?P<type>vector|halfvec)\((?P<dimensions>\d+)\)$")


class Leaf(Frozen):
    """One partition that holds rows; a table without partitions is its own leaf."""

    table: QualifiedName
    written: str = Field(description="its name as definitions have it: with quotes where it needs them")
    rows: Count = Field(description="by estimate")
    size_bytes: Count = Field(description="without its indexes")


class FoundIndex(Frozen):
    """A vector index that is there, on the table or a partition of it."""

    index: QualifiedName
    table: QualifiedName
    definition: str = Field(description="without its name")
    serves: str = Field(description="what it indexes and for which operator, as the catalog writes it")
    is_valid: bool
    parent: QualifiedName | None = None


class TableCatalog(Frozen):
    """What the catalog says about a table whose vector index is changed."""

    table: QualifiedName
    written: str
    is_partitioned: bool
    leaves: tuple[Leaf, ...]
    is_nested: bool = Field(default=False, description="a partition has partitions of its own")
    foreign: tuple[str, ...] = Field(default=(), description="partitions that live on other servers")
    column_type: str | None = Field(description="such as vector(1536); None: there is no such column")
    column_written: str
    indexes: tuple[FoundIndex, ...] = Field(default=(), description="HNSW and IVFFlat, of it and its leaves")
    taken: tuple[str, ...] = Field(default=(), description="names of relations that a new name may meet")
    is_superuser: bool
    memory: MemoryFacts

    @property
    def schema_name(self) -> str:
        """The table's schema, and its indexes'."""
        return self.table.split(".")[0]

    def key(self, parts: IndexParts) -> str:
        """Return what is indexed, as the catalog writes it."""
        if parts.as_halfvec and self.column_type != f"halfvec({parts.dimensions})":
            return f"(({self.column_written})::halfvec({parts.dimensions}))"
        return self.column_written

    def serves(self, parts: IndexParts) -> str:
        """Return what is indexed and for which operator; see `FoundIndex.serves`."""
        return f"{self.key(parts)} {parts.operator_class}"

    def definition(self, parts: IndexParts, leaf: Leaf | None = None) -> str:
        """Return the definition on a leaf, or on the table itself, as the catalog will have it."""
        # an operator class that is the default is left out there
        is_default = parts.how.method == "ivfflat" and parts.operator_class == "vector_l2_ops"
        what = self.key(parts) if is_default else self.serves(parts)
        options = ", ".join(f"{name}='{value}'" for name, value in parts.options.items())
        where = f"ONLY {self.written}" if self.is_partitioned else self.written
        return (
            f"CREATE INDEX ON {leaf.written if leaf else where} "
            f"USING {parts.how.method} ({what}) WITH ({options})"
        )

    def leaves_of(self, index: FoundIndex) -> tuple[FoundIndex, ...]:
        """Return an index's parts on the leaves; without partitions it is its own."""
        if not self.is_partitioned:
            return (index,)
        return tuple(one for one in self.indexes if one.parent == index.index)

    def is_as_wanted(self, index: FoundIndex, parts: IndexParts) -> bool:
        """Return whether the index is what `parts` say, and valid, on all leaves."""
        found = {one.table: one for one in self.leaves_of(index)}
        return (
            index.is_valid
            and index.definition == self.definition(parts)
            and all(
                (one := found.get(leaf.table)) is not None
                and one.is_valid
                and one.definition == self.definition(parts, leaf)
                for leaf in self.leaves
            )
        )


def index_parts(change: IndexChange, catalog: TableCatalog) -> IndexParts:
    """Return what the index is made of: over 2,000 dimensions it is one of halfvec.

    Raises:
        InvalidRequestError: pgvector has no such index; says what would work.
    """
    where = f"{change.table}.{change.column}"
    if catalog.column_type is None:
        raise InvalidRequestError(f"{change.table} has no column {change.column}. Nothing was touched.")
    matched = _TYPE.match(catalog.column_type)
    if not matched:
        raise InvalidRequestError(
            f"{where} is a {catalog.column_type}: only columns of vector(n) and halfvec(n), their number of "
            "dimensions declared, can be indexed here. Nothing was touched."
        )
    dimensions = int(matched["dimensions"])
    if dimensions > MAX_HALFVEC_DIMENSIONS:
        raise InvalidRequestError(
            f"{where} has {dimensions} dimensions, and pgvector indexes {MAX_HALFVEC_DIMENSIONS} at most: "
            "store a shorter embedding (many models give one) in a column of its own. Nothing was touched."
        )
    if isinstance(change.how, IvfFlat) and change.distance == "l1":
        raise InvalidRequestError(
            "pgvector has no IVFFlat index for the distance l1: use hnsw, or another distance. "
            "Nothing was touched."
        )
    return IndexParts(
        column=change.column,
        dimensions=dimensions,
        as_halfvec=matched["type"] == "halfvec" or dimensions > MAX_VECTOR_DIMENSIONS,
        distance=change.distance,
        how=change.how,
    )


def refuse_table(catalog: TableCatalog) -> None:
    """Refuse a table whose index cannot be changed here.

    Raises:
        InvalidRequestError: says why, and what would work.
    """
    if catalog.is_nested:
        raise InvalidRequestError(
            f"{catalog.table} has partitions that are partitioned themselves, and its index can only be "
            "changed with one level of them: change the index of each partition that holds partitions. "
            "Nothing was touched."
        )
    if catalog.foreign:
        raise InvalidRequestError(
            f"{', '.join(catalog.foreign)} lives on another server, where no index can be made from here: "
            "detach it first. Nothing was touched."
        )
    if not any(leaf.size_bytes for leaf in catalog.leaves):
        raise InvalidRequestError(
            f"{catalog.table} has no rows, so that no index of it can be judged: create this one in a "
            "migration of the schema. Nothing was touched."
        )


def existing_index(stable: str, parts: IndexParts, catalog: TableCatalog) -> FoundIndex | None:
    """Return the index in whose place the new one comes, if there is one.

    Raises:
        InvalidRequestError: the name belongs to something else, or the old index cannot be kept.
    """
    found = next((i for i in catalog.indexes if i.index == stable and i.table == catalog.table), None)
    if found is None:
        if stable in catalog.taken:
            raise InvalidRequestError(
                f"{stable} is another relation, or an index of another table or kind: choose another index "
                "name. Nothing was touched."
            )
        return None
    if found.parent:
        raise InvalidRequestError(
            f"{stable} is a part of {found.parent}: change that one. Nothing was touched."
        )
    if found.serves != catalog.serves(parts):
        raise InvalidRequestError(
            f"{stable} is on {found.serves}, and this change is on {catalog.serves(parts)}: queries that use "
            "the old one would find no index any more. Deploy the new one under another name, change the "
            "queries, then drop the old one in a migration. Nothing was touched."
        )
    return found


def refuse_rivals(stable: str, parts: IndexParts, catalog: TableCatalog) -> None:
    """Refuse when the planner could take another index than the one changed, for the same queries.

    Raises:
        InvalidRequestError: names those.
    """
    rivals = [
        one.index
        for one in catalog.indexes
        if one.is_valid
        and one.serves == catalog.serves(parts)
        and stable not in (one.index, one.parent)
        and not is_leftover(one.index, parent=one.parent)
        and not is_kept(one.parent or one.index)
    ]
    if rivals:
        raise InvalidRequestError(
            f"{', '.join(rivals)} serves the same queries, so that the planner could take either: name that "
            "one as the index to be changed, or drop it. Nothing was touched."
        )


def refuse_ordinary_user(stable: str, catalog: TableCatalog) -> None:
    """Refuse to build as somebody who cannot hide an index from the planner.

    Raises:
        InvalidRequestError: says what is missing.
    """
    if not catalog.is_superuser:
        raise InvalidRequestError(
            f"only a superuser can hide an index from the planner, which is how {stable} serves nobody "
            "before it is judged, and how an old one is kept for the way back: let the Database block's user "
            "be a superuser. Nothing was touched."
        )
