"""Errors that services log: read from systemd's journal export in JSON, and put in order."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

from rules.database import DatabaseServer
from rules.fleet import Instance, SystemdService
from rules.frozen import Count, Frozen
from rules.hosts import HostAddress

#: syslog's "err": this and what is worse (crit, alert, emerg) is an error.
ERROR_PRIORITY = 3

_LONGEST_MESSAGE = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Of microseconds since 1970, to the year 5138; a clock beyond that is no clock.
_MOST_DIGITS = 17
#: Fields that name the unit a message is about, the surest first: what systemd itself says about a unit
#: comes from init.scope or from the user's manager, and names the unit in a field of its own.
_UNIT_FIELDS = ("UNIT", "USER_UNIT", "COREDUMP_UNIT", "_SYSTEMD_USER_UNIT", "_SYSTEMD_UNIT")
#: All that is read of an entry; asking journalctl for no more keeps lines short.
JOURNAL_FIELDS = ("MESSAGE", "PRIORITY", "__REALTIME_TIMESTAMP", "__CURSOR", *_UNIT_FIELDS)


class JournalError(Frozen):
    """One message of priority err or worse; `at` is UTC by the clock of the host that logged it."""

    unit: str
    at: datetime
    message: str
    priority: Annotated[int, Field(ge=0, le=7)]


class ErrorGroup(Frozen):
    """One message that a unit logged several times."""

    unit: str
    message: str
    times: Count
    first_at: datetime
    last_at: datetime


class JournalLine(Frozen):
    """One line of `journalctl -o json`: where in the journal it is, and the error in it if it is one."""

    cursor: str | None
    error: JournalError | None


def parse_line(line: bytes | str) -> JournalLine | None:
    """Return what one line of `journalctl -o json` says; None when it is no journal entry at all.

    Fields may be text, an array of bytes (what is not UTF-8), an array of either (a field that was given
    several times), or null (too long to be shown). See systemd.journal-fields(7) and journalctl(1).
    """
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or "__REALTIME_TIMESTAMP" not in entry:
        return None
    cursor = _text(entry.get("__CURSOR"))
    return JournalLine(cursor=cursor or None, error=_error(entry))


def parse_errors(text: str) -> tuple[JournalError, ...]:
    """Return the errors in the output of `journalctl -o json`, in its order; other lines are passed over."""
    lines = (parse_line(line) for line in text.splitlines())
    return tuple(line.error for line in lines if line and line.error)


def group(errors: Iterable[JournalError]) -> tuple[ErrorGroup, ...]:
    """Return each unit's messages once, with how often they came; the most frequent first."""
    found: dict[tuple[str, str], list[datetime]] = {}
    for error in errors:
        found.setdefault((error.unit, error.message), []).append(error.at)
    groups = [
        ErrorGroup(unit=unit, message=message, times=len(at), first_at=min(at), last_at=max(at))
        for (unit, message), at in found.items()
    ]
    return tuple(sorted(groups, key=lambda one: (-one.times, one.first_at, one.unit, one.message)))


def units_by_host(
    instances: Iterable[Instance], server: DatabaseServer | None = None
) -> dict[HostAddress, tuple[str, ...]]:
    """Return for each host the systemd units that are concerned; other services log elsewhere."""
    units: dict[HostAddress, list[str]] = {}
    for one in (*instances, *([server] if server else ())):
        if isinstance(one.service, SystemdService):
            known = units.setdefault(one.host, [])
            if one.service.unit not in known:
                known.append(one.service.unit)
    return {host: tuple(known) for host, known in units.items()}


def _error(entry: dict[str, object]) -> JournalError | None:
    priority = _number(entry.get("PRIORITY"))
    microseconds = _number(entry.get("__REALTIME_TIMESTAMP"))
    if priority is None or microseconds is None or priority > ERROR_PRIORITY:
        return None
    message = _text(entry.get("MESSAGE", ""), null="(longer than journalctl shows)")
    return JournalError(
        unit=next((unit for name in _UNIT_FIELDS if (unit := _text(entry.get(name)))), "unknown"),
        at=_EPOCH + timedelta(microseconds=microseconds),
        message=message[:_LONGEST_MESSAGE],
        priority=priority,
    )


def _number(value: object) -> int | None:
    text = _text(value)
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= _MOST_DIGITS else None


def _text(value: object, *, null: str = "") -> str:
    """Return a field as text, whichever of its forms it has; `null` when it has no value."""
    match value:
        case None:
            return null
        case list() if value and all(isinstance(one, int) and 0 <= one <= 255 for one in value):  # noqa: PLR2004 - bytes
            return bytes(value).decode(errors="replace")
        case list():
            return _text(value[0]) if value else ""
        case _:
            return str(value)
