"""An Alertmanager: what it says of the system, and how a deployment calls people."""

from __future__ import annotations

from typing import Annotated

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

Matcher = Annotated[str, Field(pattern=r'^[a-zA-Z_][a-zA-Z0-9_]*(=|!=|=~|!~)"[^"\n]*"$')]


class Alertmanager(Block):
    """An Alertmanager with its API, version 2."""

    _block_type_name = "Sovereign Alertmanager"
    _block_type_slug = "sovereign-alertmanager"
    _description = "An Alertmanager: alerts since a deployment's start are read, a held rollout sends one."

    url: str = Field(
        default="http://127.0.0.1:9093",
        pattern=r"^https?://[^@\s]+$",
        description="Where it answers, with a path prefix if it has one. No password here: use the token.",
    )
    token: SecretStr | None = Field(default=None, description="Sent as bearer token. Empty: none.")
    timeout_s: float = Field(default=5.0, gt=0, description="Seconds that one question may take.")
    matchers: tuple[Matcher, ...] = Field(
        default=(),
        description='Which alerts concern a deployment, each as `name="value"`; all must match. Empty: all.',
    )
