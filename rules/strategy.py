"""How a change reaches its users: in place, blue-green, canary or rolling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rules.frozen import Frozen, Name, PositiveSeconds, Ratio, Seconds

Percent = Annotated[float, Field(gt=0, le=100)]


class CanaryLimits(Frozen):
    """How far a side under watch may stray, and how sure we want to be. The guide's defaults."""

    success_error_ratio: Ratio = Field(default=0.05, description="passes only when shown to be below this")
    failure_error_ratio: Ratio = Field(default=0.10, description="fails above this, with enough requests")
    min_requests: Annotated[int, Field(ge=1)] = Field(
        default=50, description="requests that the failure limit needs before it speaks"
    )
    false_alarm: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.01, description="share of good deployments that may be failed, over their whole length"
    )
    min_observation_s: Seconds = Field(default=5.0, description="a step is not passed before this")
    no_data_after_s: PositiveSeconds = Field(default=30.0, description="without a request this long: no data")

    @model_validator(mode="after")
    def _success_is_below_failure(self) -> Self:
        if self.success_error_ratio > self.failure_error_ratio:
            raise ValueError(
                f"success_error_ratio {self.success_error_ratio} is above "
                f"failure_error_ratio {self.failure_error_ratio}"
            )
        return self


class Watching(Frozen):
    """How a side is watched: how often, how long at most, by which limits."""

    tick_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    deadline_s: PositiveSeconds = Field(
        default=300.0, description="not passed by then: inconclusive, rolled back"
    )
    limits: CanaryLimits = CanaryLimits()


class InPlace(Frozen):
    """Update one instance where it is; users notice the restart unless a balancer has others."""

    strategy: Literal["in_place"] = "in_place"
    instance: Name | None = Field(default=None, description="which one; may be empty when there is only one")


class BlueGreen(Frozen):
    """Update the idle side, test it, switch all traffic at once, watch; the way back is one switch."""

    strategy: Literal["blue_green"] = "blue_green"
    watch: Watching = Watching()
    bake_s: Seconds = Field(
        default=0.0, description="watched this long beyond a pass, the old side untouched"
    )


class Canary(Frozen):
    """Update the idle side and move traffic to it in steps, each of which must pass."""

    strategy: Literal["canary"] = "canary"
    steps_percent: Annotated[tuple[Percent, ...], Field(min_length=1)] = (10, 25, 50, 100)
    watch: Watching = Watching()
    bake_s: Seconds = 0.0

    @model_validator(mode="after")
    def _steps_rise_to_all(self) -> Self:
        steps = self.steps_percent
        if list(steps) != sorted(set(steps)) or steps[-1] != 100:  # noqa: PLR2004 - percent
            raise ValueError(f"canary steps must rise and end at 100, not {list(steps)}")
        return self


class Rolling(Frozen):
    """Update the live side's instances in batches, each drained before and rejoined after."""

    strategy: Literal["rolling"] = "rolling"
    batch_size: Annotated[int, Field(ge=1)] = 1
    max_unavailable: Annotated[int, Field(ge=1)] = 1
    drain_s: PositiveSeconds = Field(default=30.0, description="open requests are waited for this long")
    observe_s: Seconds = Field(default=2.0, description="each batch is watched this long before the next")
    limits: CanaryLimits = CanaryLimits()

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch_size > self.max_unavailable:
            raise ValueError(
                f"a batch of {self.batch_size} takes out more than max_unavailable={self.max_unavailable}"
            )
        return self


Strategy = InPlace | BlueGreen | Canary | Rolling
