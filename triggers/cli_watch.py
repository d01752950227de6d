"""Watch a run at a terminal, or as lines, to its end."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from rules.errors import DeployError
from triggers.api_progress import Ended, Exit, Progress, ended_as
from triggers.cli_call import Call, Trouble
from triggers.live import REDRAWS_PER_S, LiveView
from triggers.live_lines import event_line, new_lines
from triggers.live_notes import Look
from triggers.live_picture import picture
from triggers.live_words import not_heard

_LOOK_EVERY_S = 1.0
_TOLD_EVERY_S = 60.0


def console_of(call: Call) -> Console:
    """Return where a command draws: standard output, or standard error where that is for JSON."""
    return Console(stderr=call.as_json, highlight=False, emoji=False, markup=False)


def is_on_one_terminal(call: Call, *, plain: bool) -> bool:
    """Whether what is drawn and what is said of an end are read in the same place."""
    return is_drawn(console_of(call), plain=plain) and sys.stderr.isatty()


def is_drawn(console: Console, *, plain: bool) -> bool:
    """Whether a screen can be redrawn there; otherwise what happens is told line by line."""
    obeys = console.is_terminal and not console.is_dumb_terminal
    return obeys and not plain and not any(os.environ.get(name) for name in ("NO_COLOR", "CI"))


def watch_run(call: Call, name: str, *, timeout_s: float | None, plain: bool) -> Progress:
    """Show a run, or a deployment by its id, until it is over; return the last look at it.

    Raises:
        TimeoutError: it is not over, and goes on.
        KeyboardInterrupt: a person stopped watching; it goes on.
        ApiUnavailableError, UnknownError, NotAllowedError: see `DeployApi.watch`.
    """
    console = console_of(call)
    silence = Silence(lambda words: console.print(words, soft_wrap=True))
    seen = call.api.watch(name, every_s=_LOOK_EVERY_S, timeout_s=timeout_s, is_away=silence.hear)
    return _draw(call, console, seen, silence) if is_drawn(console, plain=plain) else _tell(console, seen)


def wait_for(call: Call, flow_run_id: str, *, timeout_s: float | None) -> Progress:
    """Return the last look at a run that is waited for and not shown; its raises are those of `watch_run`."""
    call.flow_run_id = flow_run_id
    silence = Silence(call.say)
    (last,) = deque(call.api.watch(flow_run_id, timeout_s=timeout_s, is_away=silence.hear), maxlen=1)
    return last


class Silence:
    """For how long Prefect's API has not answered; told at once, and then once a minute."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.since_s = 0.0
        self.is_drawn = False
        self._tell, self._told_s = tell, 0.0

    def hear(self, away_s: float) -> None:
        """Take note of how long the API has not answered; 0: it does."""
        self.since_s = away_s
        if self.is_drawn:
            return
        if away_s == 0.0:
            if self._told_s:
                self._tell(event_line(datetime.now(UTC), "Prefect's API answers again"))
            self._told_s = 0.0
        elif not self._told_s or away_s - self._told_s >= _TOLD_EVERY_S:
            self._tell(event_line(datetime.now(UTC), not_heard(away_s)))
            self._told_s = away_s


def _tell(console: Console, seen: Iterator[Progress]) -> Progress:
    before: Look | None = None
    for progress in seen:
        now = look_of(progress)
        for words in new_lines(before, now, datetime.now(UTC)):
            console.print(words, soft_wrap=True, style=None)
        before, last = now, progress
    return last


def _draw(call: Call, console: Console, seen: Iterator[Progress], silence: Silence) -> Progress:
    """Draw on the terminal's other screen, which a change of its size does not spoil; then leave the end."""
    newest = Newest(next(seen), silence)
    silence.is_drawn = True
    try:
        with (
            _counting(call, newest),
            Live(
                LiveView(newest.look),
                console=console,
                screen=True,
                refresh_per_second=REDRAWS_PER_S,
            ),
        ):
            for progress in seen:
                newest.progress = progress
    finally:
        console.print(LiveView(newest.look, is_whole=True))
    return newest.progress


class Newest:
    """What is known of a run at this moment; written by one thread, read by another."""

    def __init__(self, progress: Progress, silence: Silence) -> None:
        self.progress = progress
        self._silence = silence
        self.percent_done = 0.0
        self._since = datetime.now(UTC)

    def look(self) -> Look:
        """Return it as what is drawn."""
        progress = self.progress
        done = round(self.percent_done * progress.steps / 100)
        further = {"since": self._since, "away_s": self._silence.since_s}
        return look_of(progress, steps_done=done).model_copy(update=further)


def look_of(progress: Progress, *, steps_done: int = 0) -> Look:
    """Return a run's progress as what is drawn."""
    return Look(
        flow_run_id=progress.flow_run_id,
        run_state=progress.run_state,
        run_message=progress.run_message,
        journal=progress.journal,
        asked_run=progress.asked_run,
        steps_done=max(steps_done, progress.steps_done),
    )


@contextmanager
def _counting(call: Call, newest: Newest) -> Iterator[None]:
    """Keep reading how many steps are over: of steps that only read, the journal's copy says nothing."""
    ended = threading.Event()
    thread = threading.Thread(target=_count, args=(call, newest, ended.wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=2.0)


def _count(call: Call, newest: Newest, ended: Callable[[float], bool]) -> None:
    while not ended(_LOOK_EVERY_S):
        if newest.progress.state != "running":
            continue
        try:
            said = call.api.page(newest.progress.flow_run_id, "progress")
        except DeployError:  # the watch itself says so, and how long it waits
            continue
        except RuntimeError:  # the command has ended meanwhile, and closed the connection
            return
        try:
            newest.percent_done = float(said or 0.0)
        except ValueError:
            continue


def report(call: Call, progress: Progress, *, is_drawn: bool = False) -> None:
    """End a command with how a run has ended, by the last look at it: the API may be away now.

    Args:
        call: the command.
        progress: of a run that is over.
        is_drawn: the reason stands on the same terminal already.

    Raises:
        typer.Exit: not as asked.
    """
    ended = ended_as(progress)
    document = document_of(ended)
    name = ended.deployment or f"flow run {ended.flow_run_id}"
    if ended.exit_code == Exit.GOOD:
        words = f"{name} is {ended.state.replace('_', ' ')}. {ended.reason}".rstrip()
        call.finish(document, words)
        return
    shown = picture(look_of(progress))
    is_seen = is_drawn and bool(shown.why)
    trouble = Trouble(
        happened=f"{name} is {ended.state.replace('_', ' ')}. {'' if is_seen else ended.reason}".rstrip(),
        state=f"{shown.words[:1].upper()}{shown.words[1:]}."
        if progress.is_own
        else f"The flow run is {progress.run_state}.",
        next_step=shown.next_step or f"sovereign show {ended.deployment or ended.flow_run_id[:8]}",
        exit_code=ended.exit_code,
    )
    call.fail(trouble, document)


def document_of(ended: Ended) -> dict[str, object]:
    """Return how a run ended as JSON has it."""
    return ended.model_dump(mode="json", exclude={"exit_code"})
