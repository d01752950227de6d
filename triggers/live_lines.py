"""A deployment as plain lines, one an event: for pipes, build logs and terminals that can do no more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rules.entries import Entry, Gated, Opened
from rules.record import in_words
from triggers.live_notes import Look
from triggers.live_text import clean, unmarked
from triggers.live_words import COMPONENT_ASKS, approve_words, state_in_words


def new_lines(before: Look | None, now: Look, at: datetime) -> tuple[str, ...]:
    """Return a line for each event that `now` shows and `before` did not, oldest first.

    Args:
        before: the look before; None: there was none.
        now: the newest look.
        at: when it was taken, for what has no time of its own.
    """
    return tuple(_new(before, now, at))


def event_line(at: datetime, words: str) -> str:
    """Return one event on one line, with its time in UTC."""
    return f"{at.astimezone(UTC):%FT%TZ}  {words}"


def _new(before: Look | None, now: Look, at: datetime) -> Iterator[str]:
    if now.journal is None:
        if before is None or (before.run_state, before.run_message) != (now.run_state, now.run_message):
            yield event_line(at, state_in_words(now.run_state, None, now=clean(now.run_message)))
        return
    seen = before.journal.entries if before and before.journal else ()
    for entry in now.journal.entries[len(seen) :]:
        yield from (event_line(entry.at, words) for words in _in_words(entry))
    if now.asked_run and not (before and before.asked_run):
        yield event_line(at, f"{COMPONENT_ASKS} {approve_words(now.asked_run)}")
    if before is not None and before.run_state != now.run_state:
        yield event_line(at, f"flow run {now.flow_run_id[:8]} is {now.run_state}")


def _in_words(entry: Entry) -> Iterator[str]:
    match entry:
        case Opened():
            yield clean(f"{entry.deployment}: {in_words(entry)}")
        case Gated():
            yield clean(in_words(entry))
            yield from (clean(f"blocks: {check.in_words}") for check in entry.report.blocking)
        case _:
            yield unmarked(in_words(entry))
