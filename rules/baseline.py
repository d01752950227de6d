"""What users had before a change, and whether they have it still: baselines and their comparison."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rules.frozen import Count, Frozen, PositiveSeconds, Ratio, Seconds

Direction = Literal["lower_is_better", "higher_is_better"]
Result = Literal["better", "worse", "same", "no_data"]


def _known(value: object) -> object:
    # Prometheus answers NaN for a ratio without traffic: that is no data, and never 0
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Baseline(Frozen):
    """What the live side's users had over a window; NaN and None are no data."""

    window_s: PositiveSeconds
    requests: Count
    error_ratio: Annotated[Ratio | None, BeforeValidator(_known)] = None
    mean_response_s: Annotated[Seconds | None, BeforeValidator(_known)] = None

    @property
    def requests_per_s(self) -> float:
        """Requests for each second of the window; 0 is a finding here, not missing data."""
        return self.requests / self.window_s


class Tolerance(Frozen):
    """How far a metric may move and still be the same: the larger of a part of it and an absolute floor."""

    relative: Annotated[float, Field(ge=0)]
    floor: Annotated[float, Field(ge=0, description="in the metric's unit: keeps 0.000 -> 0.001 the same")]

    def allowed(self, before: float) -> float:
        """Return by how much a metric that was `before` may move, in its unit."""
        return max(self.floor, self.relative * before)


class Tolerances(Frozen):
    """How far each metric may move. Traffic follows the hour of the day, so it gets the widest berth."""

    error_ratio: Tolerance = Tolerance(relative=0.25, floor=0.005)
    mean_response_s: Tolerance = Tolerance(relative=0.25, floor=0.010)
    requests_per_s: Tolerance = Tolerance(relative=0.5, floor=1.0)


class Comparison(Frozen):
    """One metric before and after a change; `change` says it in words, `tolerance` what was let pass."""

    name: str
    before: float | None
    after: float | None
    change: str
    direction: Direction
    tolerance: Tolerance
    result: Result


def compare(
    before: Baseline, after: Baseline, tolerances: Tolerances | None = None
) -> tuple[Comparison, ...]:
    """Return how each metric moved from `before` to `after`: error ratio, mean response, request rate.

    Args:
        before: taken of the live side before anything was changed.
        after: taken of the side that is live now.
        tolerances: how far each metric may move; the defaults of `Tolerances` when None.
    """
    allowed = tolerances or Tolerances()
    errors = before.error_ratio, after.error_ratio
    response = before.mean_response_s, after.mean_response_s
    rate = before.requests_per_s, after.requests_per_s
    return (
        _compare("error_ratio", errors, "lower_is_better", tolerance=allowed.error_ratio),
        _compare("mean_response_s", response, "lower_is_better", tolerance=allowed.mean_response_s),
        _compare("requests_per_s", rate, "higher_is_better", tolerance=allowed.requests_per_s),
    )


def _compare(
    name: str, values: tuple[float | None, float | None], direction: Direction, *, tolerance: Tolerance
) -> Comparison:
    before, after = values
    return Comparison(
        name=name,
        before=before,
        after=after,
        change=_change(before, after),
        direction=direction,
        tolerance=tolerance,
        result=_result(before, after, direction, tolerance=tolerance),
    )


def _result(
    before: float | None, after: float | None, direction: Direction, *, tolerance: Tolerance
) -> Result:
    if before is None or after is None:
        return "no_data"
    moved = after - before
    # equal up to rounding is not beyond: 0.010 -> 0.015 with a floor of 0.005 is the same
    if abs(moved) <= tolerance.allowed(before) * (1 + 1e-9):
        return "same"
    return "better" if (moved < 0) == (direction == "lower_is_better") else "worse"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        missing = " and ".join(
            when for when, value in (("before", before), ("after", after)) if value is None
        )
        return f"no data {missing} the change"
    if before == after:
        return f"unchanged at {after:.3g}"
    relative = f" ({(after - before) / before:+.0%})" if before else ""
    return f"from {before:.3g} to {after:.3g}{relative}"
