"""Response times of probes: how many are enough for a quantile, and which one it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rules.baseline import Reading

#: The fewest of which one is beyond the quantile: with fewer, the p95 would be the slowest and no more.
_LEAST_FOR = {"latency_p50_s": 3, "latency_p95_s": 20, "mean_response_s": 3}


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that `part` of all `values` do not exceed (nearest rank).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(part * len(values) - 1e-9) - 1)]


def probe_readings(took_s: Sequence[float], failed: int) -> tuple[Reading, ...]:
    """Return median, p95 and mean of the probes' response times.

    Args:
        took_s: of each that was answered, or waited for as long as its probe allows.
        failed: how many were refused or broke off; they took no time that means anything.
    """
    said = f"{len(took_s)} probes answered" + (f", {failed} failed" if failed else "")
    values: dict[str, Callable[[], float]] = {
        "latency_p50_s": lambda: quantile(took_s, 0.50),
        "latency_p95_s": lambda: quantile(took_s, 0.95),
        "mean_response_s": lambda: sum(took_s) / len(took_s),
    }

    def reading(name: str, value: Callable[[], float]) -> Reading:
        if len(took_s) < _LEAST_FOR[name]:
            return Reading(name=name, unit="s", source="probe", note=f"{said}, {_LEAST_FOR[name]} needed")
        return Reading(name=name, unit="s", value=value(), source="probe", note=said)

    return tuple(reading(name, value) for name, value in values.items())
