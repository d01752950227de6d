"""What the watch after a promotion decides: fine, a warning, a rollback at once, or one to be proposed.

It looks thousands of times, so error ratios are judged by bets (rules/evalue.py) that may be looked at each
time: an application that keeps its limits is accused in at most 1 % of all watches, however long they last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal, NamedTuple, Self

from pydantic import Field

from rules.alerts import Alert
from rules.baseline import Comparison
from rules.environment import Monitoring
from rules.evalue import OPENING_BETS_ABOVE, after_look, log_mean
from rules.frozen import Count, Frozen
from rules.traffic import Counts

Action = Literal["fine", "warn", "delayed", "immediate"]

#: A watch of good traffic is accused with at most this probability; each of the two limits has half of it.
_FALSE_ALARM = 0.01
_LOG_ODDS_NEEDED = -math.log(_FALSE_ALARM / 2)
#: Looks whose counts are kept, so that sparse traffic adds up to `min_requests`.
_RECENT_LOOKS = 120
#: Looks in a row in which a metric that may roll back must be worse.
_LOOKS_WORSE = 2
#: Looks without a request that are worth a warning.
_SILENT_LOOKS = 10


class Look(Frozen):
    """What was seen at one look.

    Args:
        at: when.
        probes: instance of the live side -> whether it answered its probe; empty: none was asked.
        requests: answered by the live side since the look before.
        errors: of these.
        comparisons: with the baseline, where they were made at this look.
        alerts: that began since the rollout did.
        journal_errors: lines of errors that the units concerned wrote since the look before.
        provider_error: why metrics could not be read; empty: they could.
        short: what there is less of than there should be, and going back would not mend; empty: nothing.
        is_counted: whether anybody counts the requests; without a balancer nobody does.
    """

    at: datetime
    probes: dict[str, bool] = Field(default_factory=dict)
    requests: Count = 0
    errors: Count = 0
    comparisons: tuple[Comparison, ...] = ()
    alerts: tuple[Alert, ...] = ()
    journal_errors: Count = 0
    provider_error: str = ""
    short: str = ""
    is_counted: bool = True

    @property
    def counts(self) -> Counts:
        """Its answers; an error may be counted a look before its request."""
        return Counts(max(self.requests, self.errors), self.errors)

    @property
    def is_mostly_down(self) -> bool:
        """Whether more than half of the instances, or the only one, did not answer."""
        return 2 * sum(not answers for answers in self.probes.values()) > len(self.probes)


class Watch(Frozen):
    """All that a watch needs to remember: bounded in size, and the same after a trip through JSON.

    `recent` are the answers of the newest looks that could count, newest last.
    """

    looks: Count = 0
    looks_with_requests: Count = 0
    recent: tuple[Counts, ...] = ()
    log_above_immediate: tuple[float, ...] = OPENING_BETS_ABOVE
    log_above_delayed: tuple[float, ...] = OPENING_BETS_ABOVE
    failed_probes: dict[str, int] = Field(default_factory=dict)
    looks_mostly_down: Count = 0
    looks_worse: dict[str, int] = Field(default_factory=dict)
    newest: Look | None = None

    def after(self, look: Look, policy: Monitoring) -> Self:
        """Return what is known after one more look."""
        known: dict[str, object] = {
            "looks": self.looks + 1,
            "looks_worse": _looks_worse(self.looks_worse, look.comparisons),
            "newest": look,
        }
        if look.probes:
            known["failed_probes"] = {
                name: self.failed_probes.get(name, 0) + 1
                for name, answers in look.probes.items()
                if not answers
            }
            known["looks_mostly_down"] = self.looks_mostly_down + 1 if look.is_mostly_down else 0
        counts = look.counts
        if counts.requests or not look.provider_error:
            known["recent"] = (*self.recent, counts)[-_RECENT_LOOKS:]
        if counts.requests:
            number = self.looks_with_requests + 1
            known["looks_with_requests"] = number
            known["log_above_immediate"] = after_look(
                self.log_above_immediate, counts, limit=policy.immediate_error_ratio, number=number
            )
            known["log_above_delayed"] = after_look(
                self.log_above_delayed, counts, limit=policy.delayed_error_ratio, number=number
            )
        return self.model_copy(update=known)


def _looks_worse(before: dict[str, int], comparisons: Iterable[Comparison]) -> dict[str, int]:
    """Return how often in a row each metric that may roll back was worse; no data tells nothing."""
    now = dict(before)
    for comparison in comparisons:
        if comparison.takes_back:
            now[comparison.name] = now.get(comparison.name, 0) + 1
        elif comparison.result in {"better", "same"}:
            now.pop(comparison.name, None)
    return now


class MonitoringVerdict(Frozen):
    """What is to be done: `reasons` for that, and what else was seen that asks for less."""

    action: Action
    reasons: tuple[str, ...]
    also: tuple[str, ...] = ()


def decide(watch: Watch, policy: Monitoring) -> MonitoringVerdict:
    """Return what the newest look, with all before it, asks for.

    A metrics provider that is away is a warning and never more, and no data is never fine.
    """
    found: dict[Action, tuple[str, ...]] = {
        "immediate": tuple(_immediate(watch, policy)),
        "delayed": tuple(_delayed(watch, policy)),
        "warn": tuple(_warnings(watch)),
    }
    for action, reasons in found.items():
        if reasons:
            rest = (said for other, more in found.items() if other != action for said in more)
            return MonitoringVerdict(action=action, reasons=reasons, also=tuple(rest))
    return MonitoringVerdict(action="fine", reasons=(f"{watch.looks} looks, all well: {_recently(watch)}",))


def _immediate(watch: Watch, policy: Monitoring) -> Iterator[str]:
    limit = policy.immediate_error_ratio
    yield from _above(watch, watch.log_above_immediate, "immediate_error_ratio", limit, policy=policy)
    if watch.looks_mostly_down > policy.tolerated_probes:
        down, looks = ", ".join(sorted(watch.failed_probes)), watch.looks_mostly_down
        yield f"{down}: most of the live side failed {looks} probes in a row{_tolerated(policy)}"
    yield from (alert.in_words for alert in _alerts(watch, "critical"))


def _delayed(watch: Watch, policy: Monitoring) -> Iterator[str]:
    limit = policy.delayed_error_ratio
    yield from _above(watch, watch.log_above_delayed, "delayed_error_ratio", limit, policy=policy)
    for name, failed in sorted(watch.failed_probes.items()):
        if failed > policy.tolerated_probes:
            yield f"{name} failed {failed} probes in a row{_tolerated(policy)}"
    for name, looks in sorted(watch.looks_worse.items()):
        if looks >= _LOOKS_WORSE:
            yield f"{name} is worse than the baseline in {looks} comparisons in a row{_moved(watch, name)}"


def _warnings(watch: Watch) -> Iterator[str]:
    look = watch.newest
    if look is None:
        yield "nothing was looked at yet"
        return
    if look.provider_error:
        yield f"metrics cannot be read: {look.provider_error}"
    elif look.is_counted and not any(counts.requests for counts in watch.recent[-_SILENT_LOOKS:]):
        yield f"no request in the last {len(watch.recent[-_SILENT_LOOKS:])} looks"
    if look.short:
        yield look.short
    yield from (alert.in_words for alert in _alerts(watch, "warning"))
    if look.journal_errors:
        yield f"{look.journal_errors} errors in the units' journal"
    yield from (f"{one.name} is worse: {one.change}" for one in look.comparisons if one.result == "worse")


def _above(
    watch: Watch, log_bets: tuple[float, ...], name: str, limit: float, *, policy: Monitoring
) -> Iterator[str]:
    """Yield why the error ratio is above `limit`: it is shown to be, and it still is."""
    log_e = log_mean(log_bets)
    if log_e < _LOG_ODDS_NEEDED:
        return
    last, before = _newest(watch, policy.min_requests)
    # both: a blip that is over within one look is no reason to go back
    if not all(limit < (counts.error_ratio or 0.0) for counts in (last, before)):
        return
    newest = last + before
    odds = f"{math.exp(log_e):,.0f}" if log_e < math.log(1e6) else "over a million"
    seen = f"{newest.errors} errors in the newest {newest.requests} requests ({newest.error_ratio:.3g})"
    yield f"{seen}: above {name} {limit:g}; odds {odds} to 1, {math.exp(_LOG_ODDS_NEEDED):.0f} needed"


def _newest(watch: Watch, min_requests: int) -> tuple[Counts, Counts]:
    """Return the answers of the newest look with requests, and of as many before it as make them enough.

    Both are empty where all that is kept is not enough.
    """
    with_requests = (counts for counts in reversed(watch.recent) if counts.requests)
    last, before = next(with_requests, Counts()), Counts()
    for counts in with_requests:
        before += counts
        if last.requests + before.requests >= min_requests:
            return last, before
    return Counts(), Counts()


def _alerts(watch: Watch, severity: str) -> tuple[Alert, ...]:
    return tuple(a for a in watch.newest.alerts if a.severity == severity) if watch.newest else ()


def _tolerated(policy: Monitoring) -> str:
    return f", {policy.tolerated_probes} are tolerated"


def _moved(watch: Watch, name: str) -> str:
    comparisons = watch.newest.comparisons if watch.newest else ()
    return next((f": {one.change}" for one in comparisons if one.name == name), "")


def _recently(watch: Watch) -> str:
    requests, errors = sum(c.requests for c in watch.recent), sum(c.errors for c in watch.recent)
    return f"{errors} errors in the newest {requests} requests"


class MonitorTime(NamedTuple):
    """One run's window: it watches from `start` until `end`; numbers begin at 0."""

    number: int
    start: datetime
    end: datetime


def monitor_times(promoted_at: datetime, policy: Monitoring) -> tuple[MonitorTime, ...]:
    """Return the windows that cover the monitoring time without a gap or an overlap.

    What is left at the end and is shorter than the interval of probes belongs to the window before.
    """
    every, whole = timedelta(seconds=policy.every_s), timedelta(seconds=policy.for_s)
    least = timedelta(seconds=policy.probe_every_s)
    offsets = tuple(takewhile(lambda offset: offset < whole, _multiples(every)))
    if len(offsets) > 1 and whole - offsets[-1] < least:
        offsets = offsets[:-1]
    ends = (*offsets[1:], whole)
    return tuple(
        MonitorTime(number, promoted_at + start, promoted_at + end)
        for number, (start, end) in enumerate(zip(offsets, ends, strict=True))
    )


def _multiples(step: timedelta) -> Iterator[timedelta]:
    """Yield 0, `step`, twice `step` and so on; steps too short for the clock are as short as it can tell."""
    offset = timedelta()
    while True:
        yield offset
        offset += max(step, timedelta.resolution)
