"""A machine that deployments run commands on."""

from __future__ import annotations

from typing import cast

from prefect.blocks.core import Block
from pydantic import Field

from rules.hosts import HostAddress


class Host(Block):
    """A machine reached by ssh, or, without an address, the worker's own.

    It holds no secret: the private key stays a file on the worker's host.
    """

    _block_type_name = "Sovereign Host"
    _block_type_slug = "sovereign-host"
    _description = "A machine that deployments run commands on: the worker's own, or one reached by ssh."

    name: str = Field(
        default="local", description="Its name in journals and messages: lowercase letters, digits, dashes."
    )
    address: str | None = Field(
        default=None, description="Host name or IP address for ssh. Empty: the machine the worker runs on."
    )
    user: str | None = Field(default=None, description="User to log in as. Empty: the worker's own user.")
    port: int = Field(default=22, description="Port of its ssh server.")
    identity_file: str | None = Field(
        default=None, description="Absolute path, on the worker's host, of the private key to log in with."
    )
    known_hosts_file: str | None = Field(
        default=None,
        description="Absolute path, on the worker's host, of a known_hosts file that has this machine's key. "
        "Empty: the worker's own. A machine whose key is not known is refused.",
    )
    connect_timeout_s: int = Field(default=10, description="Seconds to wait for a connection.")

    def data(self) -> HostAddress:
        """Return these fields as a value.

        Raises:
            pydantic.ValidationError: a field is not what ssh or a journal can take.
        """
        return HostAddress(**{field: getattr(self, field) for field in HostAddress.model_fields})


def address_of(host: str | None) -> HostAddress:
    """Return the machine that the Sovereign Host block of this name describes; empty: the worker's own.

    Raises:
        ValueError: there is no such block.
    """
    return cast("Host", Host.load(host)).data() if host else HostAddress()
