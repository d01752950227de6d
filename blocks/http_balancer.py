"""A balancer with an HTTP API of its own that deployments move traffic with."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from rules.traffic import HttpBalancerAddress


class HttpBalancer(Block):
    """A balancer that is told by `POST /switch` and `POST /canary`, and says by GET what it does.

    It holds no token: traffic must be taken back also when Prefect, which keeps the blocks, is down. The
    token is in `token_file` on the worker's host.
    """

    _block_type_name: ClassVar[str] = "Sovereign HTTP Balancer"
    _block_type_slug: ClassVar[str] = "sovereign-http-balancer"
    _description: ClassVar[str] = "A balancer that deployments move traffic with, through its HTTP API."

    url: str = Field(
        description="Where its API answers the worker, such as http://127.0.0.1:8080; no user, no password."
    )
    sides: tuple[str, str] = Field(
        default=("blue", "green"), description="Its two environments, by the names that its API has for them."
    )
    token_file: str | None = Field(
        default=None,
        description="Bearer token, on the worker's host, for its owner alone. Empty: none is asked.",
    )
    status_path: str = Field(
        default="/status",
        description='GET says {"environment": "blue", "percentage": 0} of what is in force.',
    )
    switch_path: str = Field(
        default="/switch", description='POST {"environment": "green"} makes that environment the live one.'
    )
    canary_path: str = Field(
        default="/canary", description='POST {"percentage": 10} sends that much to the one that is not live.'
    )
    counts_path: str | None = Field(
        default=None,
        description='GET says {"blue": {"requests": 10, "errors": 0}, "green": …}, answers and 5xx since it '
        "began. Empty: nobody counts what the sides answer, so blue-green and canary are refused.",
    )
    switch_resets_canary: bool = Field(
        default=False,
        description="Whether a switch also sets the percentage to 0, in one act. Otherwise a canary is "
        "ended before a switch, and users are on the old side in between.",
    )
    timeout_s: float = Field(default=5.0, description="Seconds that one call may take, with a restart.")

    def data(self) -> HttpBalancerAddress:
        """Return these fields as a value.

        Raises:
            pydantic.ValidationError: a field is not what such a balancer can take.
        """
        fields = set(HttpBalancerAddress.model_fields) - {"balancer"}
        return HttpBalancerAddress.model_validate({name: getattr(self, name) for name in fields})
