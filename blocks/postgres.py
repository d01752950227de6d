"""A PostgreSQL server that is backed up by base backups."""

from __future__ import annotations

from typing import Annotated, ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from rules.frozen import AbsolutePath, Frozen, PositiveSeconds

_NO_OPTION = r"^[^-\s][^\s]*$"


class PostgresAccess(Frozen):
    """All that is needed to take base backups. The password shows in no text that is made of it."""

    host: Annotated[str, Field(pattern=_NO_OPTION)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 5432
    user: Annotated[str, Field(min_length=1)] = "postgres"
    database: Annotated[str, Field(min_length=1)] = "postgres"
    password: SecretStr = SecretStr("")
    directory: AbsolutePath
    programs: AbsolutePath | None = None
    timeout_s: PositiveSeconds = 3600.0


class PostgresBaseBackup(Block):
    """Base backups of a whole PostgreSQL server, for where there are no snapshots."""

    _block_type_name: ClassVar[str] = "Sovereign PostgreSQL Base Backup"
    _block_type_slug: ClassVar[str] = "sovereign-postgres-base-backup"
    _description: ClassVar[str] = "A PostgreSQL server that is copied whole before each deployment."

    host: str = Field(
        default="127.0.0.1",
        description="Host name, IP address or socket directory of the server. Programs run on the worker.",
    )
    port: int = Field(default=5432, description="The server's port.")
    user: str = Field(
        default="postgres",
        description="User with the right to replicate.",
    )
    database: str = Field(default="postgres", description="Database to ask in; all of them are backed up.")
    password: SecretStr = Field(default=SecretStr(""), description="The user's password. Empty: none needed.")
    directory: str = Field(
        description="Absolute path, on the worker's host, of the directory that holds the backups of this "
        "server alone."
    )
    programs: str = Field(
        default="",
        description="Absolute path of the directory with pg_basebackup and pg_verifybackup, of the server's "
        "version Empty: they are on PATH.",
    )
    timeout_s: float = Field(
        default=3600.0, description="Seconds that a backup, or its verification, may take."
    )

    def data(self) -> PostgresAccess:
        """Return these fields as a value.

        Raises:
            pydantic.ValidationError: a field is not what PostgreSQL's programs can take.
        """
        fields = {field: getattr(self, field) for field in PostgresAccess.model_fields}
        return PostgresAccess(**{**fields, "programs": self.programs or None})
