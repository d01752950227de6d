"""A PostgreSQL database: how it is reached, what is declared about it, and its observable state."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.backup import DatasetName, ZfsDataset
from rules.fleet import CommandService, SystemdService
from rules.frozen import AbsolutePath, Count, Frozen, Name, PositiveSeconds, Seconds
from rules.hosts import HostAddress

_NO_OPTION = r"^[^-\s][^\s]*$"
#: A table or index with its schema, such as `public.memories`, in the letters that need no quotes.
QualifiedName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}\.[a-z_][a-z0-9_]{0,62}$")]
#: A column or an index within its schema.
Identifier = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]


class DatabaseAddress(Frozen):
    """Where a database answers. It holds no secret: the way back must work without Prefect's blocks.

    The password comes from `passfile` on the worker's host, in libpq's format and readable by its owner
    alone; without one the server must trust its peer (a socket directory as `host`, or a certificate).
    """

    host: Annotated[str, Field(pattern=_NO_OPTION)] = "/run/postgresql"
    port: Annotated[int, Field(ge=1, le=65_535)] = 5432
    user: Annotated[str, Field(min_length=1)] = "postgres"
    database: Annotated[str, Field(min_length=1)]
    passfile: AbsolutePath | None = None


class DatabaseServer(Frozen):
    """The server's process and files: what a way back through a snapshot has to stop, restore and start."""

    host: HostAddress = HostAddress()
    service: SystemdService | CommandService = Field(discriminator="service")
    cluster: AbsolutePath = Field(description="its data directory, on its host")
    dataset: DatasetName | None = Field(
        default=None, description="ZFS file system that holds the whole cluster; None: no snapshots"
    )
    start_timeout_s: PositiveSeconds = 120.0

    @property
    def zfs(self) -> ZfsDataset | None:
        """The dataset on its host, if there is one."""
        return ZfsDataset(dataset=self.dataset, host=self.host) if self.dataset else None


class LockPolicy(Frozen):
    """How a change waits for its locks: in short, growing tries, so that nobody queues behind it for long."""

    first_ms: Annotated[int, Field(ge=10, le=500)] = 50
    longest_ms: Annotated[int, Field(ge=10, le=500)] = Field(
        default=400, description="lock_timeout of the longest try: readers queue behind it that long"
    )
    growth: Annotated[float, Field(ge=1, le=4)] = 1.5
    pause_s: PositiveSeconds = Field(default=0.5, description="between tries: readers get through")
    patience_s: PositiveSeconds = Field(default=120.0, description="all tries of one migration")

    @model_validator(mode="after")
    def _tries_grow(self) -> Self:
        if self.first_ms > self.longest_ms:
            raise ValueError(f"first_ms {self.first_ms} is above longest_ms {self.longest_ms}")
        return self


class DeclaredTable(Frozen):
    """A table whose rows must survive: counted and summed up before, after, and after a way back."""

    name: QualifiedName
    append_only_by: Identifier | None = Field(
        default=None,
        description="column that grows with each new row and never changes: rows beyond its largest value at "
        "the start are users' new ones and left out. None: nobody writes to it meanwhile",
    )


class DeclaredQuery(Frozen):
    """A query that users depend on: it must work, and about as fast as before."""

    name: Name
    sql: Annotated[str, Field(min_length=1)] = Field(description="one SELECT; run in a read-only transaction")
    max_latency_ratio: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="its median after the change, as a multiple of the one before"
    )
    grace_s: Seconds = Field(default=0.05, description="slower by no more than this is never a failure")


class Database(Frozen):
    """All that is needed to change a database and to take it back, in one value that holds no secret."""

    name: Name = Field(description="of its Sovereign Database block")
    address: DatabaseAddress
    server: DatabaseServer | None = Field(default=None, description="None: its files are out of reach")
    programs: AbsolutePath | None = Field(
        default=None, description="directory with pg_dump, pg_amcheck…; None: on PATH"
    )
    rehearsal: Literal["zfs_clone", "base_backup", "schema_copy"] | None = Field(
        default=None, description="what migrations are rehearsed on; None: the best of these that can be had"
    )
    version_tables: tuple[QualifiedName, ...] = ("public.alembic_version", "sovereign.schema_version")
    tables: tuple[DeclaredTable, ...] = ()
    queries: tuple[DeclaredQuery, ...] = ()
    check_corruption: bool = Field(default=True, description="by pg_amcheck, where its extension can be had")
    lock: LockPolicy = LockPolicy()
    statement_timeout_s: PositiveSeconds = Field(
        default=600.0, description="one statement of a migration; building an index has no such limit"
    )

    @property
    def is_local(self) -> bool:
        """Whether its address or its server's host means the very machine that a flow runs on."""
        name = self.address.host
        by_address = name.startswith(("/", "127.")) or name in {"localhost", "::1"}
        return by_address or (self.server is not None and self.server.host.address is None)

    @property
    def zfs(self) -> ZfsDataset | None:
        """The dataset that holds it, if it can be taken back through a snapshot."""
        return self.server.zfs if self.server else None


class TableDigest(Frozen):
    """A declared table's content: what is compared across a change and its way back."""

    rows: Count
    checksum: str = Field(description="of `columns`, over the rows up to `watermark`; whatever their order")
    columns: tuple[str, ...]
    watermark: str | None = Field(default=None, description="largest `append_only_by` value that counts")


class IndexFacts(Frozen):
    """One index as the catalog has it."""

    table: QualifiedName
    definition: str = Field(description="by pg_get_indexdef, without the index's own name")
    is_valid: bool
    parent: QualifiedName | None = Field(default=None, description="the partitioned index it is attached to")


class DatabaseState(Frozen):
    """The observable state of a database: what an undo restores and verification compares."""

    revisions: dict[QualifiedName, tuple[str, ...]] = Field(
        default_factory=dict, description="version table -> what it holds, sorted; absent: no such table"
    )
    schema_sha256: str | None = Field(description="of pg_dump --schema-only; None: not compared")
    tables: dict[QualifiedName, TableDigest] = Field(default_factory=dict)
    indexes: dict[QualifiedName, IndexFacts] = Field(
        default_factory=dict, description="of the tables whose indexes a change concerns"
    )
    queries: dict[Name, float] = Field(
        default_factory=dict, description="declared query -> median seconds, as measured; never compared here"
    )
    faults: tuple[str, ...] = Field(default=(), description="corruption, in words; empty: none found")

    def differences(self, expected: DatabaseState) -> tuple[str, ...]:
        """Say in words where this state is not the `expected` one; empty when they agree."""
        words = list(self.faults)
        for table in sorted({*self.revisions, *expected.revisions}):
            have, want = self.revisions.get(table, ()), expected.revisions.get(table, ())
            if have != want:
                words.append(
                    f"{table} holds {', '.join(have) or 'nothing'}, not {', '.join(want) or 'nothing'}"
                )
        if None not in {self.schema_sha256, expected.schema_sha256} and (
            self.schema_sha256 != expected.schema_sha256
        ):
            words.append("the schema is not the expected one (pg_dump --schema-only differs)")
        for name, want_rows in sorted(expected.tables.items()):
            words += _table_differences(name, self.tables.get(name), want_rows)
        for name in sorted({*self.indexes, *expected.indexes}):
            words += _index_differences(name, self.indexes.get(name), expected.indexes.get(name))
        return tuple(words)


def _table_differences(name: str, have: TableDigest | None, want: TableDigest) -> list[str]:
    if have is None:
        return [f"{name} is gone"]
    if have.checksum.endswith(" is gone"):  # a column that was summed up
        return [f"{name}: {have.checksum}"]
    if have.rows != want.rows:
        return [f"{name} has {have.rows} of the rows that count, not {want.rows}"]
    if have.checksum != want.checksum:
        return [f"{name} has the same number of rows, but not the same content"]
    return []


def _index_differences(name: str, have: IndexFacts | None, want: IndexFacts | None) -> list[str]:
    if have == want:
        return []
    if have is None:
        return [f"index {name} is gone"]
    if want is None:
        return [f"index {name} should not be there"]
    if have.is_valid != want.is_valid:
        return [f"index {name} is {'valid' if have.is_valid else 'not valid'}"]
    if have.parent != want.parent:
        return [f"index {name} is attached to {have.parent or 'nothing'}, not to {want.parent or 'nothing'}"]
    return [f"index {name} is {have.definition}, not {want.definition}"]
