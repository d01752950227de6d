"""What each command does, once its options are read; `triggers/cli.py` has their words."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Literal

import typer
from rich.markdown import Markdown

from rules.entries import DeploymentState
from rules.frozen import Frozen
from rules.history import history_rows
from rules.record import DeploymentRecord, in_words
from triggers.api_progress import Exit, Progress, Started
from triggers.cli_call import Call, calling
from triggers.cli_request import read_request
from triggers.cli_watch import console_of, is_drawn, look_of, report, watch_run
from triggers.live import LiveView
from triggers.live_lines import event_line
from triggers.live_text import clean, shortened, unmarked

Word = Literal["pause", "resume", "abort"]
#: How the page of a dry run begins its second part, see `rules.record.checklist_page`.
BLOCKED_PAGE = "# Checklist: blocked"
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
        ended = call.api.ended(started.flow_run_id, timeout_s=how.timeout_s)
        if ended.exit_code != Exit.GOOD:
            report(call, ended)
        page = call.api.page(started.flow_run_id, "dry-run")
        code = Exit.BLOCKED if BLOCKED_PAGE in page else Exit.GOOD
        document = {"flow_run_id": started.flow_run_id, "blocked": code == Exit.BLOCKED, "page": page}
        if not call.as_json:
            _print_page(call, page, plain=how.plain)
        call.finish(document, code=code)


def watch(name: str, *, how: Waiting) -> None:
    """Watch a run, or a deployment's run, to its end."""
    with calling(as_json=how.as_json) as call:
        report(
            call, watch_run(call, _found(call, name).flow_run_id, timeout_s=how.timeout_s, plain=how.plain)
        )


def approve(name: str, *, approved: bool, by: str, words: str, as_json: bool) -> None:
    """Answer a deployment that waits for approval."""
    with calling(as_json=as_json) as call:
        run = _found(call, name).flow_run_id
        call.api.approve(run, approved=approved, by=by, words=words)
        answer = "approved" if approved else "refused"
        call.finish(
            {"flow_run_id": run, "approved": approved, "by": by}, f"flow run {run} is {answer} by {by}."
        )


def control(name: str, word: Word, *, by: str, reason: str, how: Waiting) -> None:
    """Leave a word for a deployment that runs, and wait until it was left."""
    with calling(as_json=how.as_json) as call:
        found = _found(call, name)
        if not found.deployment and word == "abort":
            call.api.cancel(found.flow_run_id)
            words = f"flow run {found.flow_run_id} is cancelled; it had not begun to deploy."
            call.finish({"flow_run_id": found.flow_run_id, "deployment": "", "word": word}, words)
            return
        deployment = found.deployment
        started = call.api.control(deployment, word, by=by, reason=reason)
        if not how.wait:
            _told(call, started)
            return
        ended = call.api.ended(started.flow_run_id, timeout_s=how.timeout_s)
        if ended.exit_code != Exit.GOOD:
            report(call, ended)
        words = f"{deployment} is told to be {_DONE[word]}; it hears that within seconds, or after its step."
        call.finish({"flow_run_id": ended.flow_run_id, "deployment": deployment, "word": word}, words)


def rollback(name: str, *, reason: str, accept_loss: bool, yes: bool, how: Waiting) -> None:
    """Take a deployment back, and watch that."""
    with calling(as_json=how.as_json) as call:
        deployment = _found(call, name).deployment or name
        _ask_first(f"Take {deployment} back?", yes=yes)
        _start(call, lambda: call.api.roll_back(deployment, reason=reason, accept_loss=accept_loss), how)


def recover(*, how: Waiting) -> None:
    """Look after every deployment whose process is gone."""
    with calling(as_json=how.as_json) as call:
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
    report(call, watch_run(call, started.flow_run_id, timeout_s=how.timeout_s, plain=how.plain))


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


def _print_page(call: Call, page: str, *, plain: bool) -> None:
    console = console_of(call)
    lines = "\n".join(_line(text) for text in page.split("\n"))
    if is_drawn(console, plain=plain):
        console.print(Markdown(lines))
    else:
        console.print(lines, soft_wrap=True)


def _line(text: str) -> str:
    """Return a line of a page with its indent, without what a terminal would obey."""
    return text[: len(text) - len(text.lstrip(" "))] + clean(text)


def _history_lines(records: tuple[DeploymentRecord, ...], width: int) -> list[str]:
    """Return a table with one line a deployment; at a terminal the last column gives way."""
    rows = [[clean(row[name]) for name in _COLUMNS] for row in history_rows(records)]
    if not rows:
        return ["No deployments."]
    table = [list(_COLUMNS), *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return [shortened(line, width) for line in lines] if sys.stdout.isatty() else lines
