"""A Grafana that shows deployments."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class Grafana(Block):
    """A Grafana that deployments mark their beginning and end in, and whose dashboards the gate asks for."""

    _block_type_name = "Sovereign Grafana"
    _block_type_slug = "sovereign-grafana"
    _description = "A Grafana that deployments leave annotations in."

    url: str = Field(
        default="http://127.0.0.1:3000",
        pattern=r"^https?://[^\s@]+$",
        description="Where it answers, such as http://127.0.0.1:3000; without user and password.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Token of a service account with the role Editor. Empty: a Grafana that asks for none.",
    )
    timeout_s: float = Field(
        default=5.0, gt=0, le=60, description="Seconds that one call may take, with its repetition."
    )
    dashboard_uid: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="Annotations belong to this dashboard alone. Empty: to all that ask for their tags.",
    )
