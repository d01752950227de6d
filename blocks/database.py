"""A PostgreSQL database whose schema and vector indexes are deployed to."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field

from blocks.host import address_of
from rules.database import (
    Database,
    DatabaseAddress,
    DatabaseServer,
    DeclaredQuery,
    DeclaredTable,
    LockPolicy,
)
from rules.fleet import CommandService, SystemdService


class Server(BaseModel):
    """The server's process and files, with its host by the name of a Host block."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(default="", description="name of a Host block; empty: the worker's own host")
    service: SystemdService | CommandService = Field(description="how it is started and stopped")
    cluster: str = Field(description="its data directory, on its host")
    dataset: str = Field(
        default="", description="ZFS file system that holds the whole cluster; empty: no snapshots"
    )
    start_timeout_s: float = Field(default=120.0, description="how long a start may take")


class SovereignDatabase(Block):
    """A database, its server, and what must hold in it whatever is changed.

    It holds no password: a change must be taken back also when Prefect, which keeps the blocks, is down.
    The password is in `passfile` on the worker's host; without one the server must trust its peer.
    """

    _block_type_name: ClassVar[str] = "Sovereign Database"
    _block_type_slug: ClassVar[str] = "sovereign-database"
    _description: ClassVar[str] = "A PostgreSQL database whose schema and vector indexes are deployed to."

    address: DatabaseAddress = Field(
        description="where it answers; a socket directory or 127.0.0.1 means the worker's own machine"
    )
    server: Server | None = Field(default=None, description="none: its files are out of reach")
    programs: str = Field(
        default="", description="directory with pg_dump, pg_amcheck and the others; empty: on PATH"
    )
    rehearsal: Literal["zfs_clone", "base_backup", "schema_copy"] | None = Field(
        default=None, description="what migrations are rehearsed on; none: the best that can be had"
    )
    tables: list[DeclaredTable] = Field(
        default_factory=list, description="whose rows must survive: counted and summed up"
    )
    queries: list[DeclaredQuery] = Field(
        default_factory=list, description="that must work, and about as fast as before"
    )
    check_corruption: bool = Field(
        default=True, description="by pg_amcheck, where the extension amcheck is installed"
    )
    lock: LockPolicy = Field(default_factory=LockPolicy, description="how a change waits for its locks")
    statement_timeout_s: float = Field(default=600.0, description="one statement of a migration")

    def database(self, name: str) -> Database:
        """Return all that is needed to change this database, with the blocks it names resolved.

        Raises:
            ValueError: a block it names does not exist, or a field is not what PostgreSQL can take.
        """
        return Database(
            name=name,
            address=self.address,
            server=_server(self.server) if self.server else None,
            programs=self.programs or None,
            rehearsal=self.rehearsal,
            tables=tuple(self.tables),
            queries=tuple(self.queries),
            check_corruption=self.check_corruption,
            lock=self.lock,
            statement_timeout_s=self.statement_timeout_s,
        )


def load_database(name: str) -> Database:
    """Return the database that the Sovereign Database block of this name describes.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
    """
    return cast("SovereignDatabase", SovereignDatabase.load(name)).database(name)


def _server(server: Server) -> DatabaseServer:
    fields = server.model_dump(exclude={"host", "dataset"})
    return DatabaseServer(**fields, host=address_of(server.host), dataset=server.dataset or None)
