"""Settings of the worker's host, from the environment, each as SOVEREIGN_ and its name."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Where the journal is, and how long things may take. Read afresh by each deployment."""

    model_config = SettingsConfigDict(env_prefix="SOVEREIGN_", frozen=True)

    journal_dir: Path = Field(
        default=Path("/var/lib/sovereign-deploy/journal"),
        description="on a disk that survives a reboot, the same for every worker process of this host",
    )
    host: str = Field(
        default_factory=socket.gethostname, description="this host's name in locks and journals"
    )
    only_host: bool = Field(
        default=False,
        description="no other host ever recovers these targets: undo here even when the lease has ended "
        "and Prefect's API is down",
    )
    lease_s: Positive = Field(default=60.0, description="a lock not renewed this long may be taken over")
    renew_every_s: Positive = 5.0
    cut_off_after_s: Positive = Field(
        default=20.0, description="without Prefect's API this long, a deployment is taken back"
    )
    api_timeout_s: Positive = Field(default=5.0, description="one request to Prefect's API")
    api_patience_s: Positive = Field(default=15.0, description="a request and all its repetitions")
    api_patience_undoing_s: Positive = Field(default=2.0, description="the same once things go wrong")
    rollback_deadline_s: Positive = Field(default=600.0, description="after this a rollback has failed")
    undo_attempts: Annotated[int, Field(ge=1)] = Field(default=3, description="tries of each undo step")
    takeover_patience_s: Positive = Field(
        default=10.0, description="waited for the step lock of a holder that was given up for dead"
    )
    immediate_rollback_s: Positive = Field(
        default=300.0, description="a rollback by a person or by monitoring has failed after this"
    )
    command_timeout_s: Positive = 120.0
    baseline_s: Positive = Field(
        default=5.0, description="window in which the live side is measured, before and after"
    )
    pause_deadline_s: Positive = Field(
        default=4 * 3600.0, description="a deployment that a person has paused is taken back after this"
    )
    metrics_file: Path | None = Field(
        default=None,
        description="written for node-exporter's textfile collector; its name must end in .prom",
    )
    records_dir: Path | None = Field(
        default=None, description="each deployment's record is exported there as Markdown"
    )
    staging_reserve_ratio: Annotated[float, Field(ge=1)] = Field(
        default=4.0, description="free disk wanted on a host, as a multiple of the release archive's size"
    )

    @model_validator(mode="after")
    def _lease_outlives_the_cut_off(self) -> Self:
        if not self.renew_every_s < self.cut_off_after_s < self.lease_s:
            raise ValueError(
                "renew_every_s < cut_off_after_s < lease_s must hold, so that a deployment which is cut off "
                f"still has time to undo: {self.renew_every_s}, {self.cut_off_after_s}, {self.lease_s}"
            )
        return self

    def immediate(self) -> Settings:
        """Return these settings with the deadline of a rollback that must be over soon."""
        return self.model_copy(
            update={"rollback_deadline_s": min(self.rollback_deadline_s, self.immediate_rollback_s)}
        )
