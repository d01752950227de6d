"""An environment that changes are deployed to."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from prefect.blocks.core import Block
from pydantic import Field

from rules.baseline import MetricQuery
from rules.environment import Environment as EnvironmentData
from rules.environment import GateLimits, Monitoring, Stage

DEVELOPMENT = "development"


class Environment(Block):
    """How strict the gate is, who watches, what is backed up and who is told; it names other blocks."""

    _block_type_name: ClassVar[str] = "Sovereign Environment"
    _block_type_slug: ClassVar[str] = "sovereign-environment"
    _description: ClassVar[str] = "An environment that changes are deployed to."

    stage: Stage = Field(default=Stage.DEVELOPMENT, description="how strict the checklist is")
    limits: GateLimits = Field(default=GateLimits(), description="what the checklist asks of the evidence")
    monitoring: Monitoring = Field(default=Monitoring(), description="how it is watched after a promotion")
    metrics: list[MetricQuery] = Field(default_factory=list, description="your own metrics, in PromQL")
    prometheus: str | None = Field(default=None, description="name of a Sovereign Prometheus block")
    alertmanager: str | None = Field(default=None, description="name of a Sovereign Alertmanager block")
    grafana: str | None = Field(default=None, description="name of a Sovereign Grafana block")
    forgejo: str | None = Field(default=None, description="name of a Sovereign Forgejo block")
    notifications: str | None = Field(default=None, description="name of a Sovereign Notifications block")
    baseline_s: float | None = Field(
        default=None,
        description="seconds measured before and after a rollout; with Prometheus, four scrapes or more",
    )
    backups: list[str] = Field(
        default_factory=list,
        description="backup blocks, taken in this order, such as sovereign-zfs-snapshots/web",
    )
    backup_keep_s: float = Field(default=7 * 24 * 3600.0, description="how long backups are kept, in seconds")
    approval: bool | None = Field(default=None, description="a person must approve; empty: in production")
    approval_timeout_s: float = Field(default=3600.0, description="an approval is waited for this long")
    provider_patience_s: float = Field(
        default=120.0, description="a rollout is held this long while the metrics provider is away"
    )
    on_provider_error: Literal["roll_back", "go_on"] = Field(
        default="roll_back", description="what then: take it back, or judge by the balancer alone"
    )

    def data(self, name: str) -> EnvironmentData:
        """Return these fields as a value.

        Raises:
            pydantic.ValidationError: a field is not what it must be; names it.
        """
        fields = {field: getattr(self, field) for field in EnvironmentData.model_fields if field != "name"}
        return EnvironmentData.model_validate({**fields, "name": name})


def load_environment(name: str) -> EnvironmentData:
    """Return the environment of that name; `development` needs no block: it then has no providers.

    Raises:
        ValueError: there is no such block, or a field of it is wrong.
    """
    try:
        block = cast("Environment", Environment.load(name))
    except ValueError:
        if name == DEVELOPMENT:
            return EnvironmentData()
        raise
    return block.data(name)
