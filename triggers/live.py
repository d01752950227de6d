"""The live view: a picture of a deployment drawn for a terminal, in as many lines as it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rules.finding import Result
from rules.frozen import Frozen
from rules.verdict import Outcome
from triggers.live_notes import Look
from triggers.live_picture import Picture, Row, Status, picture
from triggers.live_text import clean, clock, percent
from triggers.live_traffic import Split
from triggers.live_words import Tone

_STYLES: dict[Tone, str] = {
    "quiet": "bold",
    "working": "bold cyan",
    "waiting": "bold yellow",
    "good": "bold green",
    "bad": "bold red",
    "alarm": "bold white on red",
}
_OF_STATUS: dict[Status, str] = {
    "done": "green",
    "now": "bold cyan",
    "to_come": "dim",
    "failed": "bold red",
    "taken_back": "yellow",
    "left": "red",
}
_OF_OUTCOME: dict[Outcome, str] = {
    Outcome.PASS: "bold green",
    Outcome.FAIL: "bold red",
    Outcome.HOLD: "bold yellow",
    Outcome.NO_DATA: "bold yellow",
    Outcome.PROVIDER_ERROR: "bold yellow",
}
_SIGNS: dict[Status, str] = {
    "done": "✓",
    "now": "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏",
    "to_come": "·",
    "failed": "✗",
    "taken_back": "↩",
    "left": "!",
}
#: One character for one character: what a terminal without Unicode shows instead.
_ASCII = str.maketrans("✓⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏·✗↩…█░", "+|/-\\|/-\\|/.x<~#.")
REDRAWS_PER_S = 4
_FEWEST_ROWS = 3
_SHOWN_NOTES = 3
_SHOWN_CHECKS = 3
_LONGEST_BAR = 40


class Frame(Frozen):
    """What a picture is drawn for: columns, lines (None: as many as it takes), and the moment.

    `is_full` also lists what is well known or of little weight: each warning of the checklist, each note.
    """

    width: int = 80
    height: int | None = None
    now: datetime
    is_ascii: bool = False
    is_full: bool = False

    @property
    def tick(self) -> int:
        """Which picture of the moving sign this moment has."""
        return int(self.now.timestamp() * REDRAWS_PER_S)


class LiveView:
    """Draws the newest look again and again: what rich.live asks for four times a second.

    Args:
        newest: returns the newest look.
        is_whole: draw all its steps, however many lines that takes.
        is_full: see `Frame`.
    """

    def __init__(self, newest: Callable[[], Look], *, is_whole: bool = False, is_full: bool = False) -> None:
        self._newest, self._is_whole, self._is_full = newest, is_whole or is_full, is_full

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        frame = Frame(
            width=options.max_width,
            height=None if self._is_whole else console.height,
            now=datetime.fromtimestamp(time.time(), UTC),
            is_ascii=options.ascii_only,
            is_full=self._is_full,
        )
        yield Text("\n").join(drawn(picture(self._newest()), frame))


def drawn(shown: Picture, frame: Frame) -> tuple[Text, ...]:
    """Return a picture as lines, none wider than `frame`, and no more of them than it has."""
    spare = frame.height
    head, tail = _head(shown, frame), _tail(shown, frame)
    if spare is None:
        lines = [*head, *_rows(shown, frame, None), *tail]
    else:
        wanted = min(len(shown.rows), _FEWEST_ROWS)
        while tail and len(head) + len(tail) + wanted > spare:
            tail = tail[:-1]
        room = spare - len(head) - len(tail)
        lines = [*head, *_rows(shown, frame, max(room, 0)), *tail][:spare]
    return tuple(_fitted(line, frame) for line in lines)


def _fitted(line: Text, frame: Frame) -> Text:
    line.no_wrap = True
    line.truncate(frame.width, overflow="ellipsis")
    if frame.is_ascii:
        line.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode()
    return line


# --- what stands above the steps -------------------------------------------------------------------


def _head(shown: Picture, frame: Frame) -> list[Text]:
    title = Text.assemble((clean(shown.title), "bold"), *(f" · {word}" for word in shown.details))
    state = Text(f" {shown.state.replace('_', ' ').upper()} ", style=_STYLES[shown.tone])
    lines = [
        _ends(title, Text.assemble(state, f"  {_elapsed(shown, frame)}"), frame.width),
        Text(" · ".join(shown.names), style="dim"),
    ]
    lines += _wrapped(shown.words, frame, most=2)
    if shown.why:
        lines += _wrapped(f"Why: {shown.why}", frame, most=3 if frame.height else 20, style="bold")
    for banner in shown.banners:
        lines += _wrapped(banner.words, frame, most=2, style=_STYLES[banner.tone])
    if shown.phases and not shown.is_way_back:
        lines.append(Text("  ").join(_signed(phase.status, phase.name, frame) for phase in shown.phases))
    if shown.traffic:
        lines.append(_bar(shown.traffic, frame))
    if shown.out:
        lines.append(Text(f"Out of the balancer: {', '.join(shown.out)}", style="yellow"))
    return [*lines, Text()] if shown.rows else lines


def _elapsed(shown: Picture, frame: Frame) -> str:
    if shown.began is None:
        return ""
    return clock(((shown.ended or frame.now) - shown.began).total_seconds())


def _signed(status: Status, words: str, frame: Frame) -> Text:
    signs = _SIGNS[status]
    return Text(f"{signs[frame.tick % len(signs)]} {words}", style=_OF_STATUS[status])


def _bar(split: Split, frame: Frame) -> Text:
    """Return who gets the traffic: sides keep their place, so that a switch is seen as one."""
    left = f"{split.left} {percent(1 - split.share)} "
    right = f" {percent(split.share)} {split.right}"
    length = max(min(frame.width - len("Traffic  ") - len(left) - len(right), _LONGEST_BAR), 4)
    to_right = round(split.share * length)
    if 0 < split.share < 1:
        to_right = min(max(to_right, 1), length - 1)  # the smallest share is seen
    return Text.assemble(
        ("Traffic  ", "dim"),
        (left, "bold blue"),
        ("█" * (length - to_right), "blue"),
        ("░" * to_right, "green"),
        (right, "bold green"),
    )


# --- the steps -------------------------------------------------------------------------------------


def _rows(shown: Picture, frame: Frame, room: int | None) -> list[Text]:
    """Return the steps in `room` lines: those around the present one, and how many there are beside them."""
    rows = shown.rows
    if room is None or len(rows) <= room:
        return [_row(row, frame) for row in rows]
    if room < _FEWEST_ROWS:
        return [_row(row, frame) for row in rows[_present(rows) :][:room]]
    first, last = _window(len(rows), _present(rows), room)
    seen = [_row(row, frame) for row in rows[first:last]]
    return [*_others(first, "above"), *seen, *_others(len(rows) - last, "below")]


def _window(count: int, present: int, room: int) -> tuple[int, int]:
    """Return which of `count` rows are seen, so that they and the words on the others fill `room` lines."""
    if present < room - 1:
        return 0, room - 1
    if present >= count - (room - 1):
        return count - (room - 1), count
    first = present - (room - 2) // 2
    return first, first + room - 2


def _present(rows: tuple[Row, ...]) -> int:
    """Return the place of the step that matters now: the one at work, or else the first not done."""
    for wanted in (("now",), ("failed",), ("to_come", "left")):
        for n, row in enumerate(rows):
            if row.status in wanted:
                return n
    return len(rows) - 1


def _others(count: int, where: str) -> list[Text]:
    return [Text(f"      {count} more {where}", style="dim")] if count else []


def _row(row: Row, frame: Frame) -> Text:
    left = _signed(row.status, f"{row.number + 1:>3}  {row.title}", frame)
    if row.took_s is not None:
        return _ends(left, Text(clock(row.took_s), style="dim"), frame.width)
    if row.status == "now" and row.began:
        return _ends(left, Text(clock((frame.now - row.began).total_seconds()), style="cyan"), frame.width)
    return left


# --- what stands below them ------------------------------------------------------------------------


def _tail(shown: Picture, frame: Frame) -> list[Text]:
    """Return what stands below the steps, most important first: the last lines go when there is no room."""
    lines = [Text()] if shown.rows else []
    lines += _wrapped(f"Next: {shown.next_step}", frame, most=2, style="bold") if shown.next_step else []
    lines += _verdict(shown, frame, most=2 if frame.height else 20)
    lines += _gate(shown, frame)
    for note in shown.notes if frame.is_full else shown.notes[-_SHOWN_NOTES:]:
        words = _wrapped(note.words, frame, most=20 if frame.is_full else 1, indent=10)
        words[0] = Text.assemble((f"{note.at:%H:%M:%S}", "dim"), words[0][8:])
        lines += words
    return lines


def _verdict(shown: Picture, frame: Frame, *, most: int) -> list[Text]:
    verdict = shown.verdict
    if verdict is None:
        return []
    sides = [
        f"{name} {percent(ratio)} of {requests:,} failed"
        for name, requests, ratio in (
            ("new:", verdict.canary_requests, verdict.canary_error_ratio),
            ("stable:", verdict.stable_requests, verdict.stable_error_ratio),
        )
        if ratio is not None
    ]
    head = Text.assemble(
        ("Verdict  ", "dim"),
        (str(verdict.outcome), _OF_OUTCOME[verdict.outcome]),
        f"  {clean(verdict.title)}",
    )
    counted = [Text(f"         {', '.join(sides)}")] if sides else []
    return [head, *counted, *_wrapped("; ".join(verdict.reasons), frame, most=most, indent=9)]


def _gate(shown: Picture, frame: Frame) -> list[Text]:
    if not shown.gate:
        return []
    rows = [c for c in shown.gate_rows if frame.is_full or c.blocks or c.result is Result.FAILED]
    room = len(rows) if frame.is_full or (shown.state == "blocked" and not frame.height) else _SHOWN_CHECKS
    lines = [Text.assemble(("Checklist  ", "dim"), shown.gate)]
    for check in rows[:room]:
        sign, style = ("✗", "bold red") if check.blocks else ("!", "yellow")
        words = clean(f"{check.id}: {check.result.replace('_', ' ')}, {check.evidence}")
        lines.append(Text.assemble((f"  {sign} ", style), words))
        if check.blocks and check.remedy and not frame.height:
            lines += _wrapped(check.remedy, frame, most=4, indent=4)
    hidden = len(rows) - len(rows[:room])
    return [*lines, Text(f"    and {hidden} more", style="dim")] if hidden else lines


# --- lines -----------------------------------------------------------------------------------------


def _ends(left: Text, right: Text, width: int) -> Text:
    """Return both on one line, the right one at its end; the left one gives way."""
    room = max(width - right.cell_len - 1, 0)
    left.truncate(room, overflow="ellipsis", pad=True)
    return Text.assemble(left, " ", right)


def _wrapped(words: str, frame: Frame, *, most: int, style: str = "", indent: int = 0) -> list[Text]:
    text = Text(clean(words), style=style)
    width = max(frame.width - indent, 8)
    lines: Iterable[Text] = text.wrap(Console(width=width), width)
    kept = list(lines)[:most]
    if len(list(lines)) > most:
        kept[-1] = Text(f"{kept[-1].plain.rstrip()} …", style=style)
    return [Text(" " * indent).append_text(line) for line in kept]
