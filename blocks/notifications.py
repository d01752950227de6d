"""Services that people are told by."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class Notifications(Block):
    """Services that people are told by: Slack, mail, ntfy, Matrix and all others that Apprise knows."""

    _block_type_name = "Sovereign Notifications"
    _block_type_slug = "sovereign-notifications"
    _description = "Services that people are told by: Slack, mail, ntfy, Matrix, webhooks and more."

    urls: list[SecretStr] = Field(
        default_factory=list,
        description="Apprise URLs, such as slack://TokenA/TokenB/TokenC/#ops, mailtos://user:password@host, "
        "ntfys://host/topic, matrixs://user:password@host/#room or jsons://host/path. All are told.",
    )
    timeout_s: float = Field(
        default=10.0, gt=0, le=300, description="Seconds that telling all of them may take together."
    )
