"""What each command does, once its options are read; `triggers/cli.py` has their words."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Literal

import typer

from rules.entries import DeploymentState
from rules.frozen import Frozen
from rules.history import history_rows
from rules.record import DeploymentRecord, in_words
from triggers.api_errors import BadRequestError
from triggers.api_progress import Exit, Progress, Started, ended_as
from triggers.cli_call import Call, Trouble, calling
from triggers.cli_page import blocking_rows, print_page
from triggers.cli_request import read_request
from triggers.cli_watch import (
    console_of,
    is_drawn,
    is_on_one_terminal,
    look_of,
    report,
    wait_for,
    watch_run,
)
from triggers.live import LiveView
from triggers.live_lines import event_line
from triggers.live_text import clean, shortened, unmarked

Word = Literal["pause", "resume", "abort"]
#: Of `rules.history.history_rows`, what matters most first: a narrow terminal cuts the end.
_COLUMNS = ("began (UTC)", "state", "deployment", "environment", "strategy", "took", "why")
_DONE = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


class Waiting(Frozen):
    """How a command waits for what it started, and where that is shown."""

    wait: bool = True
    timeout_s: float | None = None
    plain: bool = False
    as_json: bool = False


def deploy(file: str, settings: list[str], *, key: str, yes: bool, how: Waiting) -> None:
    """Start a deployment, and watch it to its end."""
    key = key or str(uuid.uuid4())
    with calling(as_json=how.as_json, key=key) as call:
        request = read_request(file, settings)
        _ask_first(f"Deploy {request.what}?", yes=yes)
        _start(call, lambda: call.api.start(request.flow, request.parameters, key=key), how)


def plan(file: str, settings: list[str], *, key: str, how: Waiting) -> None:
    """Start a dry run, and show what it found."""
    key = key or str(uuid.uuid4())
    with calling(as_json=how.as_json, key=key) as call:
        request = read_request(file, settings)
        started = call.api.start(request.flow, {**request.parameters, "dry_run": True}, key=key)
        call.flow_run_id = started.flow_run_id
        call.say(f"flow run {started.flow_run_id} makes the plan; nothing is changed")
        _wait_until_done(call, started, how)
        page = call.api.page(started.flow_run_id, "dry-run")
        blocking = blocking_rows(page)
        document = {
            "flow_run_id": started.flow_run_id,
            "blocked": bool(blocking),
            "blocking": blocking,
            "page": page,
        }
        if not page:
            call.fail(_no_page(started), document)
        if not call.as_json:
            console = console_of(call)
            print_page(console, page, is_drawn=is_drawn(console, plain=how.plain))
        if blocking:
            call.say(f"The checklist would block it: {', '.join(blocking)}.")
        call.finish(document, code=Exit.BLOCKED if blocking else Exit.GOOD)


def watch(name: str, *, how: Waiting) -> None:
    """Watch a run, or a deployment's run, to its end."""
    with calling(as_json=how.as_json) as call:
        found = _found(call, name)
        call.flow_run_id = found.flow_run_id
        is_deployment = bool(found.deployment) and found.deployment.startswith(name)
        _watch(call, found.deployment if is_deployment else found.flow_run_id, how)


def approve(name: str, *, approved: bool, by: str, words: str, as_json: bool) -> None:
    """Answer a deployment that waits for approval."""
    with calling(as_json=as_json, asks=True) as call:
        found = _found(call, name)
        run = found.asked_run or found.flow_run_id
        call.api.approve(run, approved=approved, by=by, words=words)
        answer = "approved" if approved else "refused"
        call.finish(
            {"flow_run_id": run, "approved": approved, "by": by}, f"flow run {run} is {answer} by {by}."
        )


def control(name: str, word: Word, *, by: str, reason: str, how: Waiting) -> None:
    """Leave a word for a deployment that runs, and wait until it was left."""
    with calling(as_json=how.as_json, asks=True) as call:
        found = _found(call, name)
        if not found.deployment:
            _cancel(call, found, word)
            return
        deployment = found.deployment
        started = call.api.control(deployment, word, by=by, reason=reason)
        if not how.wait:
            _told(call, started)
            return
        _wait_until_done(call, started, how)
        words = f"{deployment} is told to be {_DONE[word]}; it hears that within seconds, or after its step."
        call.finish({"flow_run_id": started.flow_run_id, "deployment": deployment, "word": word}, words)


def rollback(name: str, *, reason: str, accept_loss: bool, yes: bool, how: Waiting) -> None:
    """Take a deployment back, and watch that."""
    with calling(as_json=how.as_json, asks=True) as call:
        deployment = _found(call, name).deployment
        if not deployment:
            raise BadRequestError(f"{name} is a run without a deployment: there is nothing to take back.")
        _ask_first(f"Take {deployment} back?", yes=yes)
        _start(call, lambda: call.api.roll_back(deployment, reason=reason, accept_loss=accept_loss), how)


def recover(*, how: Waiting) -> None:
    """Look after every deployment whose process is gone."""
    with calling(as_json=how.as_json, asks=True) as call:
        _start(call, call.api.recover, how)


def history(
    *,
    component: str | None,
    environment: str | None,
    state: DeploymentState | None,
    limit: int,
    as_json: bool,
) -> None:
    """List deployments, newest first."""
    with calling(as_json=as_json) as call:
        found = call.api.history(component=component, environment=environment, state=state, limit=limit)
        document = {"deployments": [record.model_dump(mode="json") for record in found]}
        call.finish(document, "\n".join(_history_lines(found, console_of(call).width)))


def show(name: str, *, timeline: bool, as_json: bool) -> None:
    """Show a deployment as it is now."""
    with calling(as_json=as_json) as call:
        found = _found(call, name)
        entries = found.journal.entries if found.journal else ()
        document = {
            **found.model_dump(mode="json", exclude={"journal"}),
            "state": found.state,
            "record": found.record.model_dump(mode="json") if found.record else None,
            "journal": [entry.model_dump(mode="json") for entry in entries],
        }
        if not as_json:
            console_of(call).print(LiveView(lambda: look_of(found), is_full=True))
        lines = [event_line(entry.at, unmarked(in_words(entry))) for entry in entries] if timeline else []
        call.finish(document, "\n".join(["", *lines]) if lines else "")


def _found(call: Call, name: str) -> Progress:
    return call.api.find(name)


def _start(call: Call, start: Callable[[], Started], how: Waiting) -> None:
    started = start()
    call.flow_run_id = started.flow_run_id
    if not how.wait:
        _told(call, started)
        return
    again = "" if started.is_new else ", started before with this key"
    call.say(f"flow run {started.flow_run_id}{again}")
    _watch(call, started.flow_run_id, how)


def _watch(call: Call, name: str, how: Waiting) -> None:
    last = watch_run(call, name, timeout_s=how.timeout_s, plain=how.plain)
    report(call, last, is_drawn=is_on_one_terminal(call, plain=how.plain))


def _wait_until_done(call: Call, started: Started, how: Waiting) -> None:
    """Wait for a run that is not shown; when it does not end well, that ends the command."""
    last = wait_for(call, started.flow_run_id, timeout_s=how.timeout_s)
    if ended_as(last).exit_code != Exit.GOOD:
        report(call, last)


def _cancel(call: Call, found: Progress, word: Word) -> None:
    """Abort a run that has not opened its deployment; there is nothing yet that could be paused."""
    run = found.flow_run_id
    if word != "abort":
        raise BadRequestError(
            f"Flow run {run} has no deployment yet, and nothing in it can be {_DONE[word]}."
        )
    call.api.cancel(run)
    words = f"flow run {run} is cancelled; it had not begun to deploy, and would take back what it did since."
    call.finish({"flow_run_id": run, "deployment": "", "word": word}, words)


def _no_page(started: Started) -> Trouble:
    return Trouble(
        happened=f"Flow run {started.flow_run_id} has ended well and shows no page.",
        state="Nothing was changed. Whether the checklist would block it is not known.",
        next_step="Look at the run in Prefect; its artifacts may have been deleted. Then repeat the command.",
        exit_code=Exit.UNEXPECTED,
    )


def _told(call: Call, started: Started) -> None:
    document = {
        **started.model_dump(mode="json"),
        "deployment": "",
        "state": "",
        "reason": "",
        "record": None,
    }
    words = f"flow run {started.flow_run_id}\nwatch it: sovereign watch {started.flow_run_id[:8]}"
    call.finish(document, words)


def _ask_first(question: str, *, yes: bool) -> None:
    """Ask a person at a terminal; a script has nobody to ask, and has said what it wants."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, default=False, err=True):
        typer.echo("Nothing was started.", err=True)
        raise typer.Exit(Exit.NOTHING_CHANGED)


def _history_lines(records: tuple[DeploymentRecord, ...], width: int) -> list[str]:
    """Return a table with one line a deployment; at a terminal the last column gives way."""
    rows = [[clean(row[name]) for name in _COLUMNS] for row in history_rows(records)]
    if not rows:
        return ["No deployments."]
    table = [list(_COLUMNS), *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return [shortened(line, width) for line in lines] if sys.stdout.isatty() else lines
