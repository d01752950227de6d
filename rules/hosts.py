"""Where commands run: this machine, or one reached by ssh."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rules.frozen import AbsolutePath, Frozen, Name

_NoDash = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\[\]][A-Za-z0-9_.:\[\]-]*$")]


class HostAddress(Frozen):
    """A machine that commands run on. Without `address` it is the machine the flow runs on."""

    name: Name = "local"
    address: _NoDash | None = Field(default=None, description="ssh destination; empty: this machine")
    user: _NoDash | None = None
    port: Annotated[int, Field(ge=1, le=65_535)] = 22
    identity_file: AbsolutePath | None = Field(default=None, description="private key on the worker")
    known_hosts_file: AbsolutePath | None = None
    connect_timeout_s: Annotated[int, Field(ge=1, le=300)] = 10
