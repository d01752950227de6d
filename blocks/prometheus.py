"""A Prometheus that deployments read metrics from."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from rules.prometheus import Sources


class Prometheus(Block):
    """A Prometheus, or what speaks its API, and which of its series are the hosts' and the application's."""

    _block_type_name = "Sovereign Prometheus"
    _block_type_slug = "sovereign-prometheus"
    _description = "A Prometheus: baselines, the users' own metrics, and loaded alert rules are read from it."

    url: str = Field(
        default="http://127.0.0.1:9090",
        pattern=r"^https?://[^@\s]+$",
        description="Where it answers, with a path prefix if it has one. No password here: use the token.",
    )
    token: SecretStr | None = Field(default=None, description="Sent as bearer token. Empty: none.")
    timeout_s: float = Field(default=5.0, gt=0, description="Seconds that one question may take.")
    node_selector: str = Field(
        default='job="node"',
        description="Matchers of node-exporter's series of the hosts concerned; of several the worst counts. "
        "Where it has no such series, each host is read directly.",
    )
    selector: str = Field(
        default="",
        description='Matchers of the application\'s own series, such as `app="web"`. Empty: all series.',
    )
    request_metric: str = Field(
        default="http_requests_total", description="Counter of requests, with their status in a label."
    )
    status_label: str = Field(default="status", description="Label that holds the HTTP status, such as 503.")
    duration_metric: str = Field(
        default="http_request_duration_seconds_bucket",
        description="Histogram of response times in seconds; its _sum and _count are read beside it.",
    )

    @property
    def sources(self) -> Sources:
        """Which series to read, as a value."""
        return Sources(**{field: getattr(self, field) for field in Sources.model_fields})
