"""Our own metrics: what the journals of a host add up to, for Prometheus.

All of it is counted anew from the journals each time, so nothing is lost with a process, and counts fall
only when a journal is removed by hand. Labels are bounded: targets beyond the first 200 count as `other`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from rules.entries import DeploymentState, Moved
from rules.frozen import Frozen
from rules.journal import JournalView
from rules.record import record_of

MOST_TARGETS = 200
OTHER = "other"
#: Upper bounds of the histograms' buckets, in seconds: from a switch to a monitored afternoon.
BUCKETS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0)

#: What a deployment can come to. Promoted and later taken back, it counts for both: a count never falls.
_OUTCOMES: tuple[DeploymentState, ...] = ("promoted", "rolled_back", "rollback_failed", "blocked", "aborted")
_OPEN: tuple[DeploymentState, ...] = ("running", "promoted", "rolling_back")
#: Who may have taken a deployment back; a journal says more than a label should.
_ACTORS = ("flow", "hook", "recover", "person", "monitor", OTHER)

Labels = tuple[tuple[str, str], ...]


class Sample(Frozen):
    """One value with its labels."""

    labels: Labels
    value: float


class Family(Frozen):
    """A counter or gauge and all its samples."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    samples: tuple[Sample, ...]


class Observations(Frozen):
    """All durations, in seconds, that one set of labels has seen."""

    labels: Labels
    values_s: tuple[float, ...]

    @property
    def buckets(self) -> tuple[tuple[str, float], ...]:
        """How many were no longer than each bound, as a histogram counts; `+Inf` last."""
        bounds = [(f"{bound:g}", sum(v <= bound for v in self.values_s)) for bound in BUCKETS_S]
        return tuple((name, float(count)) for name, count in [*bounds, ("+Inf", len(self.values_s))])


class HistogramFamily(Frozen):
    """A histogram of durations."""

    name: str
    help: str
    observations: tuple[Observations, ...]


class Exposition(Frozen):
    """All our metrics at one moment."""

    families: tuple[Family, ...]
    histograms: tuple[HistogramFamily, ...]


def exposition_of(journals: Iterable[JournalView]) -> Exposition:
    """Return what the journals of a host add up to."""
    views = sorted(journals, key=lambda view: (view.opened.at, view.opened.deployment))
    # the oldest keep their own name: were it the newest, a count would fall when another target comes
    named = set(list(dict.fromkeys(view.opened.target for view in views))[:MOST_TARGETS])

    def target(view: JournalView) -> str:
        return view.opened.target if view.opened.target in named else OTHER

    return Exposition(
        families=(
            _deployments(views, target),
            _rollbacks(views, target),
            _open_states(views),
            _last(views, target),
        ),
        histograms=(
            HistogramFamily(
                name="sovereign_deployment_duration_seconds",
                help="From the beginning of a deployment to what it came to, by what it came to first.",
                observations=_observed((key, s) for view in views for key, s in _deployment_times(view)),
            ),
            HistogramFamily(
                name="sovereign_rollback_duration_seconds",
                help="From the decision to take a deployment back to its verified end.",
                observations=_observed((key, s) for view in views for key, s in _rollback_times(view)),
            ),
        ),
    )


def _deployments(views: list[JournalView], target: Callable[[JournalView], str]) -> Family:
    counts: Counter[Labels] = Counter()
    for view in views:
        record = record_of(view)
        for outcome in _OUTCOMES:
            labels = (
                ("component", record.component),
                ("target", target(view)),
                ("strategy", record.strategy or "none"),
                ("environment", view.opened.environment.name),
                ("outcome", outcome),
            )
            # 0 is said too: a counter that begins at 1 never rose, as far as Prometheus can tell
            counts[labels] += view.moved_at(outcome) is not None
    return Family(
        name="sovereign_deployments",
        help="Deployments by what they came to; one promoted and later taken back counts for both.",
        kind="counter",
        samples=_counted(counts),
    )


def _rollbacks(views: list[JournalView], target: Callable[[JournalView], str]) -> Family:
    counts: Counter[Labels] = Counter()
    for view in views:
        component = record_of(view).component
        began_by = [
            _actor(one.by) for one in view.entries if isinstance(one, Moved) and one.state == "rolling_back"
        ]
        for actor in _ACTORS:
            labels = (("component", component), ("target", target(view)), ("by", actor))
            counts[labels] += began_by.count(actor)
    return Family(
        name="sovereign_rollbacks",
        help="Rollbacks begun, by who began them.",
        kind="counter",
        samples=_counted(counts),
    )


def _open_states(views: list[JournalView]) -> Family:
    samples = tuple(
        Sample(
            labels=(("deployment", view.opened.deployment), ("state", state)),
            value=float(view.state == state),
        )
        for view in views
        if not view.is_terminal
        for state in _OPEN
    )
    return Family(
        name="sovereign_deployment_state",
        help="1 for the state that a deployment which has not ended is in.",
        kind="gauge",
        samples=samples,
    )


def _last(views: list[JournalView], target: Callable[[JournalView], str]) -> Family:
    newest: dict[Labels, float] = {}
    for view in views:  # oldest first
        labels = (
            ("component", record_of(view).component),
            ("target", target(view)),
            ("environment", view.opened.environment.name),
        )
        newest[labels] = view.opened.at.timestamp()
    return Family(
        name="sovereign_last_deployment_timestamp_seconds",
        help="When the newest deployment began, in seconds since 1970.",
        kind="gauge",
        samples=tuple(Sample(labels=labels, value=at) for labels, at in sorted(newest.items())),
    )


def _deployment_times(view: JournalView) -> Iterable[tuple[Labels, float]]:
    reached = [(at, outcome) for outcome in _OUTCOMES if (at := view.moved_at(outcome)) is not None]
    if reached:
        at, outcome = min(reached)
        labels = (("component", record_of(view).component), ("outcome", outcome))
        yield labels, max(0.0, (at - view.opened.at).total_seconds())


def _rollback_times(view: JournalView) -> Iterable[tuple[Labels, float]]:
    began, record = view.moved_at("rolling_back"), record_of(view)
    ended = view.moved_at("rolled_back") or view.moved_at("rollback_failed")
    if began and ended:
        yield (("component", record.component),), max(0.0, (ended - began).total_seconds())


def _observed(times: Iterable[tuple[Labels, float]]) -> tuple[Observations, ...]:
    seen: dict[Labels, list[float]] = {}
    for labels, seconds in times:
        seen.setdefault(labels, []).append(seconds)
    return tuple(Observations(labels=key, values_s=tuple(values)) for key, values in sorted(seen.items()))


def _counted(counts: Counter[Labels]) -> tuple[Sample, ...]:
    return tuple(Sample(labels=labels, value=float(count)) for labels, count in sorted(counts.items()))


def _actor(by: str) -> str:
    """Return who that is in one of a few words: `hook Crashed` is `hook`."""
    first = by.split(maxsplit=1)[0].lower() if by.strip() else ""
    return first if first in _ACTORS else OTHER
