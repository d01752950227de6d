"""What `systemctl show` says of a timer, read back."""

from __future__ import annotations

import pytest

from rules.systemd_timer import time_span_s, timer_seen

# from systemd 252
WAITING = """\
NextElapseUSecMonotonic=4h 48min 11.396431s
LoadState=loaded
ActiveState=active
SubState=waiting
InactiveExitTimestampMonotonic=16991396465
"""
UNKNOWN = """\
NextElapseUSecMonotonic=infinity
LoadState=not-found
ActiveState=inactive
SubState=dead
InactiveExitTimestampMonotonic=0
"""


def test_a_timer_that_waits_says_how_long_after_its_start_it_elapses():
    timer = timer_seen(WAITING)
    assert timer.waits
    assert timer.total_s == pytest.approx(300, abs=0.001)
    assert timer.in_words == "loaded, active (waiting), it elapses 300 s after its start"


def test_a_timer_that_is_not_there_waits_for_nothing():
    timer = timer_seen(UNKNOWN)
    assert (timer.waits, timer.total_s) == (False, None)
    assert timer.in_words == "not-found, inactive (dead)"


@pytest.mark.parametrize(
    ("old", "new"), [("waiting", "elapsed"), ("=active", "=inactive"), ("=loaded", "=masked")]
)
def test_a_timer_that_has_elapsed_or_is_not_started_or_masked_does_not_wait(old, new):
    assert not timer_seen(WAITING.replace(old, new)).waits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", None),
        ("", None),
        ("infinity", None),
        ("5min 200ms", 300.2),
        ("1y 1month 1w 1d", 31_557_600 + 2_629_800 + 604_800 + 86_400),
        ("2us", 2e-6),
        ("3s nonsense", None),
    ],
)
def test_a_time_span_is_read_as_systemd_writes_it(text, seconds):
    assert time_span_s(text) == (seconds if seconds is None else pytest.approx(seconds))
