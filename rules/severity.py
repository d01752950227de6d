"""How bad an incident is, and what that asks of people: a table of scope and impact."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import Field

from rules.frozen import Frozen, PositiveSeconds, Seconds
from rules.impact import Impact, Scope


class Severity(StrEnum):
    """P0 wakes a person now; P3 is read in the morning."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"
    P3 = "P3"


class Response(Frozen):
    """What a severity asks of people. All times count from the opening of the incident."""

    in_words: str
    act_within_s: Seconds
    resolve_within_s: PositiveSeconds
    update_every_s: PositiveSeconds
    post_mortem_within_s: PositiveSeconds | None = Field(description="None: none is asked for")


_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 24 * 3600.0
_WORKING_DAYS = 5


def _response(
    words: str, act: float, resolve: float, update: float, *, post_mortem: float | None
) -> Response:
    return Response(
        in_words=words,
        act_within_s=act,
        resolve_within_s=resolve,
        update_every_s=update,
        post_mortem_within_s=post_mortem,
    )


#: What each severity asks for; P3 is due on the next working day, see `act_by`.
RESPONSES: Mapping[Severity, Response] = {
    Severity.P0: _response(
        "act at once, roll back within 5 minutes", 0, 5 * _MINUTE, 15 * _MINUTE, post_mortem=_DAY
    ),
    Severity.P1: _response(
        "act within 15 minutes, roll back within 15 more",
        15 * _MINUTE,
        30 * _MINUTE,
        30 * _MINUTE,
        post_mortem=2 * _DAY,
    ),
    Severity.P2: _response(
        "act within an hour, roll back within one more", _HOUR, 2 * _HOUR, 4 * _HOUR, post_mortem=5 * _DAY
    ),
    Severity.P3: _response("act on the next working day", _DAY, 5 * _DAY, _DAY, post_mortem=None),
}

#: Scope -> severity of an outage, of data at risk, of degraded service. Without any impact it is P3.
_BY_SCOPE: Mapping[Scope, tuple[Severity, Severity, Severity]] = {
    Scope.ALL_USERS: (Severity.P0, Severity.P0, Severity.P1),
    Scope.SOME_USERS: (Severity.P1, Severity.P1, Severity.P2),
    Scope.ONE_COMPONENT: (Severity.P2, Severity.P1, Severity.P3),
    Scope.NOBODY: (Severity.P3, Severity.P2, Severity.P3),
}
_GRADED = (Impact.OUTAGE, Impact.DATA_AT_RISK, Impact.DEGRADED)


def severity(scope: Scope, impact: Impact) -> Severity:
    """Return how bad it is that `scope` notices `impact` now."""
    return Severity.P3 if impact is Impact.NONE else _BY_SCOPE[scope][_GRADED.index(impact)]


def severity_once_taken_back(scope: Scope, impact: Impact) -> Severity:
    """Return how bad it is when that is over, because it was taken back and verified.

    One grade lower, but never below P2 where users had what was deployed: somebody has to find out why.
    """
    order = list(Severity)
    lower = order[min(order.index(severity(scope, impact)) + 1, len(order) - 1)]
    return min(lower, Severity.P2) if scope in {Scope.ALL_USERS, Scope.SOME_USERS} else lower


def act_by(how_bad: Severity, opened_at: datetime) -> datetime:
    """Return until when somebody must have acted; P3 waits over a weekend, in the clock's own time zone."""
    by = opened_at + timedelta(seconds=RESPONSES[how_bad].act_within_s)
    while how_bad is Severity.P3 and by.weekday() >= _WORKING_DAYS:
        by += timedelta(days=1)
    return by
