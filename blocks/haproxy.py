"""A HAProxy that deployments move traffic with."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field

from rules.hosts import HostAddress
from rules.traffic import HaproxyAddress


class HAProxy(Block):
    """A HAProxy that is driven by its runtime API; it is never reloaded."""

    _block_type_name = "Sovereign HAProxy"
    _block_type_slug = "sovereign-haproxy"
    _description = "A HAProxy that deployments move traffic with, through its runtime API."

    socket: str = Field(
        description="Absolute path of the runtime API's socket: `stats socket PATH mode 600 level admin`."
    )
    route_map: str = Field(
        description="Absolute path of the map file, exactly as HAProxy's configuration names it. Each line "
        "is `route live:candidate:basis-points`. Deployments rewrite it: it must hold nothing else."
    )
    server_state: str | None = Field(
        default=None,
        description="Absolute path of HAProxy's `server-state-file`. Empty: a restart of HAProxy forgets "
        "which servers are drained.",
    )
    host: str | None = Field(
        default=None,
        description="Name of the Sovereign Host block of the machine it runs on. Empty: the worker's own. "
        "A remote machine needs socat.",
    )
    timeout_s: float = Field(default=5.0, description="Seconds that one command may take.")

    def data(self, host: HostAddress) -> HaproxyAddress:
        """Return these fields as a value, with `host` for the host block that they name.

        Raises:
            pydantic.ValidationError: a field is not what HAProxy can take.
        """
        return HaproxyAddress(
            socket=self.socket,
            route_map=self.route_map,
            server_state=self.server_state,
            host=host,
            timeout_s=self.timeout_s,
        )
