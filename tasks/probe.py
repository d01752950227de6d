"""Time the instances' probes over a window, where no histogram tells how long users wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import httpx

from rules.fleet import Probe
from rules.frozen import Count, Frozen
from tasks.http_client import http

_PROBES = 40
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_ASK_EVERY_S = 1.0


class Probed(Frozen):
    """How long each answered probe took, and how many were refused or broke off."""

    took_s: tuple[float, ...] = ()
    failed: Count = 0


def probe_until(
    probes: Sequence[Probe],
    deadline_s: float,
    *,
    pause_s: float,
    still_wanted: Callable[[], object] = lambda: None,
) -> Probed:
    """Ask the probes in turn until `deadline_s`, and return how long they took; any status is an answer.

    One that takes as long as its timeout counts with that; one that the deadline cuts off does not count.

    Args:
        probes: whom to ask; without any, this only waits.
        deadline_s: on `time.monotonic`'s clock; this returns then and not later.
        pause_s: from one question to the next, when the answer is not slower.
        still_wanted: called about each second; may raise to give up.
    """
    waiting = _Waiting(still_wanted)
    took_s: list[float] = []
    failed = 0
    for probe in itertools.cycle(probes):
        began_s = time.monotonic()
        if began_s >= deadline_s:
            break
        timeout_s = min(probe.timeout_s, deadline_s - began_s)
        try:
            took_s.append(_time_of(probe.url, timeout_s))
        except httpx.TimeoutException:
            if timeout_s == probe.timeout_s:
                took_s.append(timeout_s)
        except httpx.HTTPError:
            failed += 1
        waiting.until(min(began_s + pause_s, deadline_s))
    waiting.until(deadline_s)
    return Probed(took_s=tuple(took_s), failed=failed)


def pause_between(window_s: float) -> float:
    """Return the seconds from one probe to the next: about 40 in a window, and one a second in a long one."""
    return min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, window_s / _PROBES))


def _time_of(url: str, timeout_s: float) -> float:
    began_s = time.monotonic()
    http().get(url, timeout=timeout_s)
    return time.monotonic() - began_s


class _Waiting:
    """Waits, and asks about each second whether that is still wanted."""

    def __init__(self, still_wanted: Callable[[], object]) -> None:
        self._still_wanted = still_wanted
        self._ask_at_s = time.monotonic() + _ASK_EVERY_S

    def until(self, moment_s: float) -> None:
        """Return at that moment of `time.monotonic`, or raise what `still_wanted` does."""
        while True:
            now_s = time.monotonic()
            if now_s >= self._ask_at_s:
                self._ask_at_s = now_s + _ASK_EVERY_S
                self._still_wanted()
            if now_s >= moment_s:
                return
            time.sleep(max(0.0, min(moment_s, self._ask_at_s) - time.monotonic()))
