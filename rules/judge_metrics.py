"""Judge the users' own metrics at each look of a watch, against what they were before the change."""

from __future__ import annotations

from collections.abc import Sequence

from rules.baseline import Baseline, Comparison, MetricQuery, Reading, compare_readings


def judge_declared(
    readings: Sequence[Reading], before: Baseline, metrics: Sequence[MetricQuery]
) -> tuple[Comparison, ...]:
    """Return how each declared metric stands now; one without a reading in `readings` has no data.

    Args:
        readings: what this look saw, each over a window as long as that of `before`.
        before: the baseline of before the change.
        metrics: what the users declared, in the order of the answer.
    """
    now = {reading.name: reading for reading in readings}
    return tuple(
        compare_readings(
            before.reading(metric.name),
            now.get(metric.name, Reading(name=metric.name, unit=metric.unit, source="none")),
            metric,
        )
        for metric in metrics
    )


def unanswered(readings: Sequence[Reading]) -> str | None:
    """Return whose provider did not answer, and why; None: all were answered, with data or without."""
    for reading in readings:
        if reading.status == "provider_error":
            return f"{reading.name}: {reading.note}"
    return None
