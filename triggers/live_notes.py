"""What is told of a deployment beside its steps: what must not be overlooked, and its timeline's notes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rules.entries import Held, Moved, Noted
from rules.frozen import Frozen
from rules.journal import JournalView
from triggers.live_text import clean
from triggers.live_words import COMPONENT_ASKS, Tone, newest_note, not_heard


class Look(Frozen):
    """One look at a deployment's run, as the API gives it.

    `steps_done` counts the plan's steps that are known to be over, where more is known than the journal says:
    its copy in the API is renewed before each effect, not after it. `asked_run` is the run of a release's
    component that waits for an answer. `since` is when the looking began; `away_s`, for how many seconds the
    API has not answered.
    """

    flow_run_id: str
    run_state: str = "RUNNING"
    run_message: str = ""
    journal: JournalView | None = None
    steps_done: int = 0
    since: datetime | None = None
    away_s: float = 0.0
    asked_run: str = ""


class Banner(Frozen):
    """What must not be overlooked: a pause, a hold, a question to a person."""

    tone: Tone
    words: str


class Note(Frozen):
    """A line of the timeline that belongs to no step."""

    at: datetime
    words: str


def banners_of(look: Look) -> Iterator[Banner]:
    """Yield what must not be overlooked now."""
    if look.away_s:
        yield Banner(tone="waiting", words=not_heard(look.away_s))
    journal = look.journal
    if journal is None or journal.state != "running":
        return
    if look.run_state == "PAUSED":
        yield Banner(tone="waiting", words="A person is asked to approve it; nothing was changed yet.")
    if look.asked_run:
        yield Banner(tone="waiting", words=COMPONENT_ASKS)
    for begins, ends in (("paused", "resumed"), ("held", "released")):
        newest = newest_note(journal, begins, ends)
        if newest and newest.about == begins:
            by = f" by {clean(newest.by)}" if begins == "paused" else ""
            words = f"{begins.capitalize()}{by}: {clean(newest.words)}. Traffic stays as it is."
            yield Banner(tone="waiting", words=words)


def notes_of(journal: JournalView) -> Iterator[Note]:
    """Yield the lines of the timeline that belong to no step."""
    for entry in journal.entries:
        match entry:
            case Noted():
                yield Note(at=entry.at, words=clean(f"{entry.about.replace('_', ' ')}: {entry.words}"))
            case Held():
                yield Note(
                    at=entry.at, words=clean(f"step {entry.number + 1} not taken back: {entry.reason}")
                )
            case Moved(state="rolling_back"):
                yield Note(at=entry.at, words=clean(f"taken back by {entry.by}: {entry.reason}"))
            case _:
                pass
