"""Fair bets against a claim about error ratios, and what they have made of a stake of 1: the e-value.

While the claim is true, an e-value averages at most 1, so it *ever* reaches 1/a with probability at most a
(Ville's inequality), however often one looks. All values are natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rules.traffic import Counts

#: How many times worse than stable the canary may be: the stake is spread over these.
_TIMES_WORSE = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
#: How far below the limit a side may be, as parts of the limit.
_PARTS_OF_LIMIT = (0.02, 0.2, 0.5, 0.75)

#: How many times above a limit a side may err.
_TIMES_ABOVE = (1.25, 1.6, 2.0, 3.0, 6.0, 20.0)
#: Limits below this are taken for this: "above 0" would be known by the first error ever.
_LEAST_LIMIT = 0.001

#: The bets on "worse than stable" before the first tick.
OPENING_BETS = (0.0,) * len(_TIMES_WORSE)
#: The bets on "above the limit" before the first look.
OPENING_BETS_ABOVE = (0.0,) * len(_TIMES_ABOVE)


def log_mean(logs: Sequence[float]) -> float:
    """Return the log of the mean of what `logs` are the logs of."""
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


def after_tick(
    log_bets: tuple[float, ...], canary: Counts, stable: Counts, *, number: int
) -> tuple[float, ...]:
    """Return the bets on "worse than stable" after a tick in which both sides had traffic.

    When the canary is no worse than stable, each error falls on it with at most its share of the traffic,
    and that stays so given how many errors there are: a blip that both sides share is no evidence.

    Args:
        log_bets: the bets before it.
        canary: the canary's answers in this tick.
        stable: its control's answers in this tick.
        number: 1 for the first tick that had errors, and so on; sets how much is staked.
    """
    share = canary.requests / (canary.requests + stable.requests)
    errors = canary.errors + stable.errors
    log_kept = math.log(_kept(number))
    after = []
    for times, log_bet in zip(_TIMES_WORSE, log_bets, strict=True):
        # the likelihood ratio of "an error is `times` as likely on the canary" to "as likely as on stable"
        gain = canary.errors * math.log(times) - errors * math.log(times * share + 1 - share)
        staked = log_bet + math.log1p(-math.exp(log_kept - log_bet))
        after.append(_log_add(log_kept, staked + gain))
    return tuple(after)


def _kept(number: int) -> float:
    """Return the part of the stake kept for a canary that turns bad only later.

    It must fall, and slowly: with the usual 1/(n + 1) a canary bad from tick 300 on is found a tick later.
    """
    return 1 / (2 + math.log(number))


def _log_add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def after_look(log_bets: tuple[float, ...], side: Counts, *, limit: float, number: int) -> tuple[float, ...]:
    """Return the bets on "errs in more than `limit` of its requests" after one more look.

    While it does not, whatever its ratio is at each look, no bet is expected to gain.

    Args:
        log_bets: the bets before it.
        side: the answers since the look before; without requests nothing is known, and nothing changes.
        limit: the error ratio that the side may have.
        number: 1 for the first look with requests, and so on; sets how much is staked.
    """
    if not side.requests or limit >= 1:
        return log_bets
    least = max(limit, _LEAST_LIMIT)
    log_kept = math.log(_kept(number))
    after = []
    for times, log_bet in zip(_TIMES_ABOVE, log_bets, strict=True):
        claim = min(times * least, (19 + least) / 20)
        per_error, per_success = math.log(claim / least), math.log((1 - claim) / (1 - least))
        staked = log_bet + math.log1p(-math.exp(log_kept - log_bet))
        gain = side.errors * per_error + (side.requests - side.errors) * per_success
        after.append(_log_add(log_kept, staked + gain))
    return tuple(after)


def log_below(side: Counts, limit: float) -> float | None:
    """Return the log e-value against "errs in `limit` of all requests or more"; None if nothing can tell."""
    ratio = side.error_ratio
    if ratio is None or limit == 0:
        return None
    return log_mean([side.requests * gain for gain in _below_gains(limit, ratio)])


def requests_to_show_below(side: Counts, limit: float, *, log_needed: float) -> int | None:
    """Return about how many requests more, erring as so far, bring `log_below` to `log_needed`.

    None: no number of them would.
    """
    best = max(_below_gains(limit, side.error_ratio or 0.0)) if limit > 0 else 0.0
    if best <= 0:
        return None
    return max(1, math.ceil((log_needed - (log_below(side, limit) or 0.0)) / best))


def _below_gains(limit: float, error_ratio: float) -> list[float]:
    """Return what each bet on "below `limit`" gains by one request, when this part of them are errors."""
    testable = _testable(limit)
    return [
        error_ratio * math.log(part) + (1 - error_ratio) * math.log((1 - part * testable) / (1 - testable))
        for part in _PARTS_OF_LIMIT
    ]


def most_doubtful(newest_first: Iterable[Counts], limit: float) -> tuple[float, Counts]:
    """Return the newest run of ticks that speaks most for twice `limit`, after its log odds against `limit`.

    Old merits weigh nothing here, so a side that has just turned bad stands out.
    """
    claim = _testable(limit)
    if claim == 0:
        return 0.0, Counts()
    doubled = min(2 * claim, (1 + claim) / 2)
    per_error, per_success = math.log(doubled / claim), math.log((1 - doubled) / (1 - claim))
    requests = errors = 0
    worst, found = 0.0, (0, 0)
    for tick in newest_first:
        requests, errors = requests + tick.requests, errors + tick.errors
        log_odds = errors * per_error + (requests - errors) * per_success
        if log_odds > worst:
            worst, found = log_odds, (requests, errors)
    return worst, Counts(requests=found[0], errors=found[1])


def _testable(limit: float) -> float:
    # nothing is above 1, so "below 1" would be known before any request: ask for a little more than that
    return min(limit, 0.999)
