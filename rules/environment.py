"""Where a change is deployed to: how strict the gate is, who watches, what is backed up, who is told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.baseline import MetricQuery
from rules.frozen import Count, Frozen, Name, PositiveSeconds, Ratio, Seconds

#: `block-type-slug/block-name`, such as `sovereign-zfs-snapshots/web`.
BlockReference = Annotated[str, Field(pattern=r"^sovereign-[a-z-]+/[a-z0-9][a-z0-9-]*$")]


class Stage(StrEnum):
    """How much is at stake. Strictness rises in this order; `canary` is a subset of production."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    CANARY = "canary"
    PRODUCTION = "production"

    def is_at_least(self, other: Stage) -> bool:
        """Return whether this stage is as strict as `other` or stricter."""
        order = list(Stage)
        return order.index(self) >= order.index(other)


class GateLimits(Frozen):
    """What the checklist asks of the evidence. The guide's defaults."""

    min_passed_ratio: Ratio = Field(default=0.90, description="tests: more than this part must pass")
    min_coverage: Ratio = Field(default=0.80, description="coverage: more than this part of the lines")
    max_diagnostics: Count = Field(default=0, description="errors that linters and type checkers may report")
    max_security_findings: Count = Field(
        default=0, description="findings of level error in a scanner's SARIF"
    )
    required_approvals: Annotated[int, Field(ge=1)] = 1
    required_contexts: tuple[str, ...] = Field(
        default=(), description="status contexts that must have succeeded"
    )
    sops_recipients: tuple[str, ...] = Field(
        default=(), description="age recipients that secrets must be encrypted for"
    )
    max_cpu_ratio: Ratio = Field(default=0.80, description="CPU in use")
    min_memory_free_ratio: Ratio = 0.15
    min_disk_free_ratio: Ratio = 0.15
    min_gpu_memory_free_ratio: Ratio = 0.10
    min_bandwidth_bytes_per_s: Annotated[float, Field(ge=0)] = Field(
        default=1_000_000.0, description="from the worker to each host"
    )
    staging_bake_s: Seconds = Field(
        default=24 * 3600.0, description="a staging deployment counts once it was watched, and good this long"
    )
    required_dashboards: tuple[str, ...] = Field(default=(), description="uids of Grafana dashboards")
    required_alert_rules: tuple[str, ...] = Field(
        default=("HighErrorRate", "HighResponseTime"), description="names of loaded Prometheus alert rules"
    )


class Monitoring(Frozen):
    """How a deployment is watched after it was promoted, and what is done about what is seen."""

    every_s: PositiveSeconds = Field(
        default=900.0, description="a run begins this often, and watches as long"
    )
    for_s: PositiveSeconds = Field(default=24 * 3600.0, description="and this long after the promotion")
    probe_every_s: PositiveSeconds = Field(default=30.0, description="health is looked at this often")
    tolerated_probes: Count = Field(default=2, description="failed looks in a row that are let pass")
    immediate_error_ratio: Ratio = Field(default=0.10, description="above this: taken back at once")
    delayed_error_ratio: Ratio = Field(default=0.05, description="above this: a rollback is proposed")
    min_requests: Annotated[int, Field(ge=1)] = 50
    immediate: Literal["automatic", "proposal"] = "automatic"
    delayed: Literal["automatic", "proposal"] = "proposal"
    approval_timeout_s: PositiveSeconds = Field(
        default=3600.0, description="a proposal that nobody answers ends after this"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.probe_every_s > self.every_s or self.every_s > self.for_s:
            raise ValueError("probe_every_s <= every_s <= for_s must hold")
        if self.delayed_error_ratio > self.immediate_error_ratio:
            raise ValueError("delayed_error_ratio must not be above immediate_error_ratio")
        return self


class Environment(Frozen):
    """Everything that is true of one environment. It names blocks and holds no secret."""

    name: Name = "development"
    stage: Stage = Stage.DEVELOPMENT
    limits: GateLimits = GateLimits()
    monitoring: Monitoring = Monitoring()
    metrics: tuple[MetricQuery, ...] = Field(default=(), description="the users' own metrics")
    prometheus: Name | None = Field(default=None, description="name of a Sovereign Prometheus block")
    alertmanager: Name | None = Field(default=None, description="name of a Sovereign Alertmanager block")
    grafana: Name | None = Field(default=None, description="name of a Sovereign Grafana block")
    forgejo: Name | None = Field(default=None, description="name of a Sovereign Forgejo block")
    notifications: Name | None = Field(default=None, description="name of a Sovereign Notifications block")
    baseline_s: PositiveSeconds | None = Field(
        default=None,
        description="measured before and after; with Prometheus 60 s or more. None: the host's setting",
    )
    backups: tuple[BlockReference, ...] = Field(
        default=(), description="taken in this order, before a rollout"
    )
    backup_keep_s: PositiveSeconds = Field(default=7 * 24 * 3600.0, description="how long backups are kept")
    approval: bool | None = Field(default=None, description="a person must approve; None: in production")
    approval_timeout_s: PositiveSeconds = 3600.0
    provider_patience_s: PositiveSeconds = Field(
        default=120.0, description="a rollout is held this long while the metrics provider is away"
    )
    on_provider_error: Literal["roll_back", "go_on"] = Field(
        default="roll_back", description="what then: take it back, or judge by the balancer's counters alone"
    )

    @property
    def needs_approval(self) -> bool:
        """Whether a person must approve before anything is changed."""
        return self.stage is Stage.PRODUCTION if self.approval is None else self.approval
