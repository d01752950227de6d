"""A timer of systemd's, as `systemctl show` tells it."""

from __future__ import annotations

import re

from pydantic import Field

from rules.frozen import Frozen


class TimerSeen(Frozen):
    """What systemd says of a timer, or of the service that it starts."""

    load: str = "not-found"
    active: str = "inactive"
    state: str = "dead"
    total_s: float | None = Field(
        default=None, description="from its start until it elapses; None: it is not going to"
    )

    @property
    def waits(self) -> bool:
        """Whether it is loaded, started, and has yet to elapse."""
        return (self.load, self.active, self.state) == ("loaded", "active", "waiting")

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        time = "" if self.total_s is None else f", it elapses {self.total_s:g} s after its start"
        return f"{self.load}, {self.active} ({self.state}){time}"


#: The properties that `timer_seen` reads.
PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "NextElapseUSecMonotonic",
    "InactiveExitTimestampMonotonic",
)


def timer_seen(shown: str) -> TimerSeen:
    """Return what `systemctl show` said of a unit's PROPERTIES, one `Key=Value` a line."""
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    elapses_s = time_span_s(values.get("NextElapseUSecMonotonic", ""))
    began = values.get("InactiveExitTimestampMonotonic", "")
    total_s = elapses_s - int(began) / 1e6 if elapses_s is not None and began.isdigit() else None
    return TimerSeen(
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        state=values.get("SubState", ""),
        total_s=total_s,
    )


_UNIT_S = {
    "y": 31_557_600.0,
    "month": 2_629_800.0,
    "w": 604_800.0,
    "d": 86_400.0,
    "h": 3_600.0,
    "min": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(month|min|ms|us|[ywdhs])")


def time_span_s(text: str) -> float | None:
    """Return the seconds that systemd writes as `1h 2min 3.5s`; None: it is no span, such as `infinity`."""
    words = text.split()
    found = [_SPAN.fullmatch(word) for word in words]
    if not found or not all(found):
        return None
    return sum(float(match[1]) * _UNIT_S[match[2]] for match in found if match)
