"""Judge a side under watch: is it worse than stable, above the failure limit, or shown to be good?

Anytime-valid (rules/evalue.py): looking after every tick costs nothing, and traffic may change its split
between ticks. Figures and choices: docs/decisions/0003-canary-statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import takewhile

from rules.evalue import (
    OPENING_BETS,
    after_tick,
    log_below,
    log_mean,
    most_doubtful,
    requests_to_show_below,
)
from rules.frozen import Count, Frozen, Ratio
from rules.strategy import CanaryLimits
from rules.traffic import Counts

__all__ = ["CanaryEvidence", "CanaryLimits", "Counts", "Outcome", "Tick", "Verdict"]

_RECENT_TICKS = 30
#: A side that is not below the success limit is passed with at most this probability.
_WRONG_PASS = 0.01
_PASS_NEEDS_LOG_E = -math.log(_WRONG_PASS)
#: Log odds for twice the success limit from which on the newest ticks hold back a pass.
_DOUBT_LOG_ODDS = 1.0


class Outcome(StrEnum):
    """What a look at the evidence says. Only PASS lets a side go on, and no data is never a PASS."""

    PASS = "PASS"  # noqa: S105 - a verdict, no password
    FAIL = "FAIL"
    HOLD = "HOLD"
    NO_DATA = "NO_DATA"
    PROVIDER_ERROR = "PROVIDER_ERROR"


class Verdict(Frozen):
    """An outcome with its arithmetic: in words for people, in numbers for tables and plots.

    Requests and error ratios count from the beginning of the step. The log e-values are natural logarithms;
    each speaks when it reaches its `..._needed`. `below_log_e` is None where no traffic can tell.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    canary_requests: Count
    stable_requests: Count
    canary_error_ratio: Ratio | None
    stable_error_ratio: Ratio | None
    worse_log_e: float
    worse_log_e_needed: float
    below_log_e: float | None
    below_log_e_needed: float


class Tick(Frozen):
    """What both sides answered between two looks."""

    canary: Counts
    stable: Counts


class CanaryEvidence(Frozen):
    """All that a watch needs to remember: bounded in size, and the same after a trip through JSON.

    It keeps bets and counts, never decisions, for the limits are known only when a verdict is asked for.
    The false-alarm budget holds for a caller who asks after each tick and stops at the first FAIL.
    """

    ticks: Count = 0
    silent_ticks: Count = 0
    unobserved_ticks: Count = 0
    provider_error: str = ""
    canary: Counts = Counts()
    stable: Counts = Counts()
    recent: tuple[Tick, ...] = ()
    ticks_with_errors: Count = 0
    log_worse: tuple[float, ...] = OPENING_BETS

    def observe(self, canary: Counts, stable: Counts) -> CanaryEvidence:
        """Return the evidence after one more tick.

        Args:
            canary: what the side under watch answered in this tick.
            stable: what its control answered in the same tick; `Counts()` when there is none.
        """
        canary, stable = _whole(canary), _whole(stable)
        known: dict[str, object] = {
            "ticks": self.ticks + 1,
            "silent_ticks": 0 if canary.requests else self.silent_ticks + 1,
            "unobserved_ticks": 0,
            "provider_error": "",
            "canary": self.canary + canary,
            "stable": self.stable + stable,
            "recent": (*self.recent, Tick(canary=canary, stable=stable))[-_RECENT_TICKS:],
        }
        if canary.requests and stable.requests and canary.errors + stable.errors:
            number = self.ticks_with_errors + 1
            known["ticks_with_errors"] = number
            known["log_worse"] = after_tick(self.log_worse, canary, stable, number=number)
        return self.model_copy(update=known)

    def unobserved(self, reason: str) -> CanaryEvidence:
        """Return the evidence after a tick in which the metrics provider did not answer."""
        missed = self.unobserved_ticks + 1
        return self.model_copy(
            update={"ticks": self.ticks + 1, "unobserved_ticks": missed, "provider_error": reason}
        )

    def next_step(self) -> CanaryEvidence:
        """Return what the next traffic step begins with: it must earn its own pass, but suspicion stays.

        Carried over all steps, the false-alarm budget holds for the whole deployment; begun anew, for each.
        """
        return CanaryEvidence(ticks_with_errors=self.ticks_with_errors, log_worse=self.log_worse)

    def verdict(self, limits: CanaryLimits, *, elapsed_s: float) -> Verdict:
        """Return what the evidence says now, `elapsed_s` seconds after this step began.

        A FAIL is not hidden by a metrics provider that goes down after it.
        """
        recent = _Recent.of(self.recent)
        needed = _worse_needed(recent, limits)
        outcome, reasons = self._judge(limits, recent, needed=needed, elapsed_s=elapsed_s)
        return Verdict(
            outcome=outcome,
            reasons=reasons,
            canary_requests=self.canary.requests,
            stable_requests=self.stable.requests,
            canary_error_ratio=self.canary.error_ratio,
            stable_error_ratio=self.stable.error_ratio,
            worse_log_e=log_mean(self.log_worse),
            worse_log_e_needed=needed,
            below_log_e=log_below(self.canary, limits.success_error_ratio),
            below_log_e_needed=_PASS_NEEDS_LOG_E,
        )

    def _judge(
        self, limits: CanaryLimits, recent: _Recent, *, needed: float, elapsed_s: float
    ) -> tuple[Outcome, tuple[str, ...]]:
        if failures := self._failures(limits, recent, needed=needed):
            return Outcome.FAIL, failures
        if self.unobserved_ticks:
            unanswered = f"no metrics for {self.unobserved_ticks} tick(s) in a row: {self.provider_error}"
            return Outcome.PROVIDER_ERROR, (unanswered,)
        silent_s = self._silent_s(elapsed_s)
        if silent_s >= limits.no_data_after_s:
            silence = f"no canary request for {silent_s:.3g} s (limit {limits.no_data_after_s:g} s)"
            return Outcome.NO_DATA, (silence,)
        if missing := (*self._early(limits, recent, elapsed_s=elapsed_s), *self._doubts(limits, recent)):
            return Outcome.HOLD, missing
        limit, wrong = limits.success_error_ratio, f"{_WRONG_PASS:.0%}"
        shown = f"shown to be below {limit:g} (a side that is not gets here in less than {wrong} of cases)"
        return Outcome.PASS, (f"{_in_words(self.canary)}: {shown}",)

    def _failures(self, limits: CanaryLimits, recent: _Recent, *, needed: float) -> tuple[str, ...]:
        """Return why the canary fails: above the limit with no control, or worse than its control."""
        over = f"above the failure limit {limits.failure_error_ratio:g}"
        if _is_over(recent.alone, limits):
            return (f"{_in_words(recent.alone)} in the newest ticks: {over}",)
        log_e = log_mean(self.log_worse)
        if log_e < needed:
            return ()
        worse = f"worse than stable: {recent.in_words()}; odds {_odds(log_e)} to 1, {_odds(needed)} needed"
        return (worse, over) if _is_over(recent.canary, limits) else (worse,)

    def _early(self, limits: CanaryLimits, recent: _Recent, *, elapsed_s: float) -> Iterator[str]:
        """Yield what a pass still lacks and time may bring."""
        if elapsed_s < limits.min_observation_s:
            yield f"watched for {elapsed_s:.3g} s of at least {limits.min_observation_s:g} s"
        if not recent.canary.requests:
            yield f"no canary request in the last {len(self.recent)} ticks"
        limit, seen = limits.success_error_ratio, _in_words(self.canary)
        log_e = log_below(self.canary, limit)
        if log_e is not None and log_e >= _PASS_NEEDS_LOG_E:
            return
        more = requests_to_show_below(self.canary, limit, log_needed=_PASS_NEEDS_LOG_E)
        if more:
            yield f"{seen}; about {more} more needed to show below {limit:g}"
        elif limit == 0:
            yield "no traffic can show an error ratio below 0: set success_error_ratio above it"
        else:
            yield f"{seen}: not below {limit:g}"

    def _doubts(self, limits: CanaryLimits, recent: _Recent) -> Iterator[str]:
        """Yield what speaks against a pass, but not loudly enough for a fail."""
        if _is_over(recent.canary, limits):
            limit = f"above the failure limit {limits.failure_error_ratio:g}"
            yield f"{limit}, but not shown worse than stable: {recent.in_words()}"
        log_e, fails = log_mean(self.log_worse), -math.log(limits.false_alarm)
        # half-way to a FAIL is no time for a PASS; at a budget of 1 %, under 10 % of good canaries get there
        if log_e >= fails / 2:
            yield f"looks worse than stable: {recent.in_words()}; odds {_odds(log_e)} to 1"
        newest = (tick.canary for tick in reversed(self.recent))
        log_odds, doubtful = most_doubtful(newest, limits.success_error_ratio)
        if log_odds >= _DOUBT_LOG_ODDS:
            yield f"the newest ticks look bad: {_in_words(doubtful)}"

    def _silent_s(self, elapsed_s: float) -> float:
        """Return for about how many seconds the canary had no request, were all ticks of one length."""
        if not self.canary.requests:
            return elapsed_s
        return elapsed_s * self.silent_ticks / self.ticks


class _Recent(Frozen):
    """The newest ticks in sums: both sides, and the canary since stable last had traffic."""

    ticks: Count
    canary: Counts
    stable: Counts
    alone: Counts

    @classmethod
    def of(cls, ticks: tuple[Tick, ...]) -> _Recent:
        without_control = takewhile(lambda tick: not tick.stable.requests, reversed(ticks))
        return cls(
            ticks=len(ticks),
            canary=_total([tick.canary for tick in ticks]),
            stable=_total([tick.stable for tick in ticks]),
            alone=_total([tick.canary for tick in without_control]),
        )

    def in_words(self) -> str:
        sides = f"{_in_words(self.canary)} against {_in_words(self.stable)}"
        return f"{sides} in the last {self.ticks} ticks"


def _worse_needed(recent: _Recent, limits: CanaryLimits) -> float:
    """Return the log e-value that fails a canary as worse than stable.

    Above the failure limit the whole budget is open, below it half. A canary over the higher bar is over the
    lower one too, so both together fail a good one within the one budget.
    """
    whole = -math.log(limits.false_alarm)
    return whole if _is_over(recent.canary, limits) else whole + math.log(2)


def _whole(side: Counts) -> Counts:
    # counters are read one after the other: an error may show up a tick before its request
    return side if side.errors <= side.requests else Counts(requests=side.errors, errors=side.errors)


def _total(sides: Iterable[Counts]) -> Counts:
    sides = tuple(sides)
    return Counts(requests=sum(s.requests for s in sides), errors=sum(s.errors for s in sides))


def _is_over(canary: Counts, limits: CanaryLimits) -> bool:
    ratio = canary.error_ratio
    enough = canary.requests >= limits.min_requests
    return enough and ratio is not None and ratio > limits.failure_error_ratio


def _in_words(side: Counts) -> str:
    if side.error_ratio is None:
        return "no requests"
    return f"{side.errors} errors in {side.requests} requests ({side.error_ratio:.3g})"


def _odds(log_e: float) -> str:
    return f"{math.exp(log_e):.3g}" if log_e < math.log(1e6) else "over a million"
