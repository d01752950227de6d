"""Judge what was measured of a vector index: recall, latency, and whether the planner takes it at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rules.vector_index import IndexGate, IndexMeasured

#: Slower by no more than this is never a failure: it is what one call over the network varies by.
GRACE_S = 0.001
#: Distances of equal vectors differ by rounding alone.
_TOLERANCE = 1e-6
#: As many queries at least; fewer are no data, and no data is never a pass.
FEWEST_QUERIES = 5


def recall(true: Sequence[float], found: Sequence[float]) -> float:
    """Return which share of the true nearest neighbours was found.

    Args:
        true: distances of the nearest rows, by exact search; not empty.
        found: distances of the rows that the index found. Whatever is no farther than the last true one
            counts: of several rows at one distance, any will do.
    """
    limit = max(true)
    limit += _TOLERANCE * max(1.0, abs(limit))
    return min(sum(distance <= limit for distance in found), len(true)) / len(true)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def refusals(measured: IndexMeasured, gate: IndexGate) -> tuple[str, ...]:
    """Say in words, with figures, why an index may not serve; empty: it passes."""
    new, old = measured.new, measured.old
    words = []
    if new.queries < min(gate.queries, FEWEST_QUERIES):
        words.append(f"only {new.queries} queries could be asked, {FEWEST_QUERIES} are needed")
    if not new.is_used:
        words.append("the planner did not take it, so that nothing was measured of it")
    if new.recall < gate.min_recall:
        words.append(f"its recall at {gate.k} is {new.recall:.3f}, below {gate.min_recall:g}")
    if gate.max_p95_s is not None and new.p95_s > gate.max_p95_s:
        words.append(f"its p95 is {_ms(new.p95_s)}, above {_ms(gate.max_p95_s)}")
    if old and not old.is_used:
        words.append("the planner did not take the old one, so that there is nothing to compare with")
    elif old and new.p95_s > max(old.p95_s * gate.max_latency_ratio, old.p95_s + GRACE_S):
        words.append(
            f"its p95 is {_ms(new.p95_s)}, {new.p95_s / old.p95_s:.1f} times the old one's {_ms(old.p95_s)}, "
            f"and {gate.max_latency_ratio:g} times is allowed"
        )
    return tuple(words)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
