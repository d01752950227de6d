"""Watch a run at a terminal, or as lines, to its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from rules.errors import DeployError
from triggers.api_progress import Ended, Exit, Progress, ended_as
from triggers.cli_call import Call, Trouble
from triggers.live import REDRAWS_PER_S, LiveView
from triggers.live_lines import new_lines
from triggers.live_picture import Look, picture

_LOOK_EVERY_S = 1.0


def console_of(call: Call) -> Console:
    """Return where a command draws: standard output, or standard error where that is for JSON."""
    return Console(stderr=call.as_json, highlight=False, emoji=False, markup=False)


def is_drawn(console: Console, *, plain: bool) -> bool:
    """Whether a screen can be redrawn there; otherwise what happens is told line by line."""
    obeys = console.is_terminal and not console.is_dumb_terminal
    return obeys and not plain and not any(os.environ.get(name) for name in ("NO_COLOR", "CI"))


def watch_run(call: Call, flow_run_id: str, *, timeout_s: float | None, plain: bool) -> Ended:
    """Show a run until it is over; return how it ended.

    Raises:
        TimeoutError: it is not over, and goes on.
        KeyboardInterrupt: a person stopped watching; it goes on.
        ApiUnavailableError, UnknownError, NotAllowedError: see `DeployApi.watch`.
    """
    call.flow_run_id = flow_run_id
    console = console_of(call)
    seen = call.api.watch(flow_run_id, every_s=_LOOK_EVERY_S, timeout_s=timeout_s)
    show = _draw if is_drawn(console, plain=plain) else _tell
    return ended_as(show(call, console, seen))


def _tell(_call: Call, console: Console, seen: Iterator[Progress]) -> Progress:
    before: Look | None = None
    for progress in seen:
        now = look_of(progress)
        for words in new_lines(before, now, datetime.now(UTC)):
            console.print(words, soft_wrap=True, style=None)
        before, last = now, progress
    return last


def _draw(call: Call, console: Console, seen: Iterator[Progress]) -> Progress:
    """Draw on the terminal's other screen, which a change of its size does not spoil; then leave the end."""
    newest = Newest(next(seen))
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

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.percent_done = 0.0
        self._since = datetime.now(UTC)

    def look(self) -> Look:
        """Return it as what is drawn."""
        progress = self.progress
        done = round(self.percent_done * progress.steps / 100)
        return look_of(progress, steps_done=done).model_copy(update={"since": self._since})


def look_of(progress: Progress, *, steps_done: int = 0) -> Look:
    """Return a run's progress as what is drawn."""
    return Look(
        flow_run_id=progress.flow_run_id,
        run_state=progress.run_state,
        run_message=progress.run_message,
        journal=progress.journal,
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
        try:
            newest.percent_done = float(said or 0.0)
        except ValueError:
            continue


def report(call: Call, ended: Ended) -> None:
    """End a command with how a run has ended.

    Raises:
        typer.Exit: not as asked.
    """
    document = document_of(ended)
    name = ended.deployment or f"flow run {ended.flow_run_id}"
    if ended.exit_code == Exit.GOOD:
        words = f"{name} is {ended.state.replace('_', ' ')}. {ended.reason}".rstrip()
        call.finish(document, words)
        return
    progress = call.api.look(ended.flow_run_id)
    shown = picture(look_of(progress))
    trouble = Trouble(
        happened=f"{name} is {ended.state.replace('_', ' ')}. {ended.reason}",
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
