"""What users and hosts had before a change, and whether they have it still: baselines, their comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from rules.frozen import Frozen, PositiveSeconds

Direction = Literal["lower_is_better", "higher_is_better"]
Result = Literal["better", "worse", "same", "no_data", "provider_error"]
#: `absent`: there is none of it here, such as no GPU. That is knowledge, unlike `no_data`.
Status = Literal["ok", "no_data", "provider_error", "absent"]


class Tolerance(Frozen):
    """How far a metric may move and still be the same: the larger of a part of it and an absolute floor."""

    relative: Annotated[float, Field(ge=0)]
    floor: Annotated[float, Field(ge=0, description="in the metric's unit: keeps 0.000 -> 0.001 the same")]

    def allowed(self, before: float) -> float:
        """Return by how much a metric that was `before` may move, in its unit."""
        return max(self.floor, self.relative * abs(before))


class MetricQuery(Frozen):
    """A metric of the users' own: a PromQL expression with one value. `$window` becomes e.g. `300s`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    query: Annotated[str, Field(min_length=1)]
    direction: Direction = "lower_is_better"
    tolerance: Tolerance = Tolerance(relative=0.25, floor=0.0)
    unit: str = ""
    rolls_back: bool = Field(default=False, description="worse than before takes the change back")


class Metric(Frozen):
    """A metric that is always measured, and how its movement is judged."""

    name: str
    unit: str
    direction: Direction
    tolerance: Tolerance
    rolls_back: bool = False


def _metric(
    name: str, unit: str, relative: float, floor: float, *, direction: Direction = "lower_is_better"
) -> Metric:
    tolerance = Tolerance(relative=relative, floor=floor)
    return Metric(
        name=name, unit=unit, direction=direction, tolerance=tolerance, rolls_back=name == "error_ratio"
    )


#: Measured always. Only the error ratio takes a change back by itself: the hosts' own work comes and goes
#: with what else runs there, and traffic follows the hour of the day, so that has the widest berth.
METRICS: tuple[Metric, ...] = (
    _metric("error_ratio", "ratio", 0.25, 0.005),
    _metric("latency_p50_s", "s", 0.25, 0.010),
    _metric("latency_p95_s", "s", 0.25, 0.020),
    _metric("mean_response_s", "s", 0.25, 0.010),
    _metric("requests_per_s", "1/s", 0.5, 1.0, direction="higher_is_better"),
    _metric("cpu_ratio", "ratio", 0.25, 0.10),
    _metric("memory_ratio", "ratio", 0.15, 0.05),
    _metric("disk_ratio", "ratio", 0.10, 0.03),
    _metric("network_bytes_per_s", "bytes/s", 1.0, 1_000_000.0),
    _metric("gpu_ratio", "ratio", 0.50, 0.20),
    _metric("gpu_memory_ratio", "ratio", 0.15, 0.05),
)
UNITS: Mapping[str, str] = {metric.name: metric.unit for metric in METRICS}


class Reading(Frozen):
    """One metric's value over a window, with where it is from.

    A value that is NaN or infinite, or none at all, is `no_data` and never 0: Prometheus answers NaN for a
    ratio without traffic.
    """

    name: str
    unit: str = ""
    value: float | None = None
    status: Status = "ok"
    source: str
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _unknown_is_no_data(cls, fields: object) -> object:
        if not isinstance(fields, Mapping):
            return fields
        value, status = fields.get("value"), fields.get("status", "ok")
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        return {**fields, "value": value, "status": "no_data" if value is None and status == "ok" else status}

    @model_validator(mode="after")
    def _only_ok_has_a_value(self) -> Self:
        if self.status != "ok" and self.value is not None:
            raise ValueError(f"{self.name} is {self.status}, so it cannot have the value {self.value}")
        return self

    @property
    def in_words(self) -> str:
        """The value with its unit, or why there is none."""
        if self.value is not None:
            return f"{self.value:.3g} {self.unit}".strip()
        said = {"no_data": "no data", "provider_error": "provider error", "absent": "none here", "ok": ""}
        return said[self.status] + (f" ({self.note})" if self.note else "")


class Baseline(Frozen):
    """What the live side's users and its hosts had over the `window_s` seconds that ended at `at`."""

    window_s: PositiveSeconds
    at: AwareDatetime
    readings: tuple[Reading, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [reading.name for reading in self.readings]
        if len(set(names)) != len(names):
            raise ValueError(f"two readings have one name: {sorted(names)}")
        return self

    def reading(self, name: str) -> Reading:
        """Return the reading of that name; one that was not taken is `no_data`."""
        for reading in self.readings:
            if reading.name == name:
                return reading
        return Reading(name=name, unit=UNITS.get(name, ""), source="none", note="not measured")


class Comparison(Frozen):
    """One metric before and after a change; `change` says it in words, `tolerance` what was let pass.

    `rolls_back` says whether this metric may take a change back at all.
    """

    name: str
    before: float | None
    after: float | None
    change: str
    direction: Direction
    tolerance: Tolerance
    result: Result
    rolls_back: bool = False

    @property
    def takes_back(self) -> bool:
        """Whether the change must be taken back for this metric: it may, and it got worse."""
        return self.rolls_back and self.result == "worse"


def compare(before: Baseline, after: Baseline, metrics: Sequence[MetricQuery] = ()) -> tuple[Comparison, ...]:
    """Return how each of `METRICS` and of the users' own `metrics` moved from `before` to `after`.

    Args:
        before: taken of the live side before anything was changed.
        after: taken of the side that is live now, over a window of the same length.
        metrics: the users' own; one with the name of one of `METRICS` takes its place.

    Raises:
        ValueError: the windows differ in length: what they say cannot be compared.
    """
    if not math.isclose(before.window_s, after.window_s):
        raise ValueError(
            f"a window of {before.window_s:g} s cannot be compared with one of {after.window_s:g} s"
        )
    judged: dict[str, Metric | MetricQuery] = {metric.name: metric for metric in METRICS}
    judged |= {metric.name: metric for metric in metrics}
    return tuple(
        compare_readings(before.reading(name), after.reading(name), metric) for name, metric in judged.items()
    )


def compare_readings(before: Reading, after: Reading, metric: Metric | MetricQuery) -> Comparison:
    """Return how one metric moved from `before` to `after`.

    Values of different sources are no data: a probe's time says nothing of what a histogram's was.
    """
    return Comparison(
        name=metric.name,
        before=before.value,
        after=after.value,
        change=_change(before, after),
        direction=metric.direction,
        tolerance=metric.tolerance,
        result=_result(before, after, metric),
        rolls_back=metric.rolls_back,
    )


def _result(before: Reading, after: Reading, metric: Metric | MetricQuery) -> Result:
    statuses = before.status, after.status
    if "provider_error" in statuses:
        return "provider_error"
    if statuses == ("absent", "absent"):
        return "same"
    if statuses == ("ok", "absent"):
        return "worse"  # a GPU that has gone is found here first, whatever its load was
    if before.value is None or after.value is None or before.source != after.source:
        return "no_data"
    moved = after.value - before.value
    # equal up to rounding is not beyond: 0.010 -> 0.015 with a floor of 0.005 is the same
    if abs(moved) <= metric.tolerance.allowed(before.value) * (1 + 1e-9):
        return "same"
    return "better" if (moved < 0) == (metric.direction == "lower_is_better") else "worse"


def _change(before: Reading, after: Reading) -> str:
    if before.value is None or after.value is None:
        if before.in_words == after.in_words:
            return f"{before.in_words}, before and after"
        return f"before: {before.in_words}; after: {after.in_words}"
    if before.source != after.source:
        return f"by {before.source}: {before.in_words}; after by {after.source}: {after.in_words}"
    if before.value == after.value:
        return f"unchanged at {after.value:.3g}"
    relative = f" ({(after.value - before.value) / abs(before.value):+.0%})" if before.value else ""
    return f"from {before.value:.3g} to {after.value:.3g}{relative}"
