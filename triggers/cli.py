"""The command line: `sovereign deploy web.yaml` and what belongs to it.

Only typer is imported here, so that help and completion come at once; what a command does is in
`triggers/cli_commands.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from triggers.cli_help import HELP, IN_SHORT

# ruff: noqa: PLC0415 - the commands' own module takes seconds to import: it brings Prefect

app = typer.Typer(
    name="sovereign",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=HELP["sovereign"],
)

File = Annotated[str, typer.Argument(metavar="FILE", help="the request as YAML or JSON; - is standard input")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="a deployment's id, its flow run's id, or the beginning of one")
]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="set a value of the file, such as change.release=2.0.0"),
]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="KEY",
        help="idempotency key: the same key again starts nothing, and watches that run",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask first")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="watch it to its end, or return once it is started")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.0, help="stop waiting after this; exit 7"),
]
Plain = Annotated[bool, typer.Option("--plain", help="a line for each event, as in a pipe")]
Json = Annotated[
    bool, typer.Option("--json", help="one JSON document on standard output; other words on standard error")
]
By = Annotated[
    str, typer.Option("--by", metavar="NAME", envvar="SOVEREIGN_PERSON", help="who says so, for the record")
]
Reason = Annotated[str, typer.Option("--reason", metavar="WHY", help="why, for the record")]
State = Literal[
    "running",
    "promoted",
    "rolling_back",
    "completed",
    "superseded",
    "rolled_back",
    "rollback_failed",
    "blocked",
    "aborted",
]


@app.command(help=HELP["plan"], short_help=IN_SHORT["plan"])
def plan(
    file: File,
    settings: Settings = [],  # noqa: B006 - typer's default of a list
    *,
    key: Key = "",
    timeout: Timeout = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Show what a deployment would do: each step, its way back, and the checklist. Nothing is changed."""
    from triggers import cli_commands

    how = cli_commands.Waiting(timeout_s=timeout, plain=plain, as_json=as_json)
    cli_commands.plan(file, settings, key=key, how=how)


@app.command(help=HELP["deploy"], short_help=IN_SHORT["deploy"])
def deploy(
    file: File,
    settings: Settings = [],  # noqa: B006 - typer's default of a list
    *,
    key: Key = "",
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Start a deployment and watch it: it ends promoted, or rolled back and verified."""
    from triggers import cli_commands

    how = cli_commands.Waiting(wait=wait, timeout_s=timeout, plain=plain, as_json=as_json)
    cli_commands.deploy(file, settings, key=key, yes=yes, how=how)


@app.command(help=HELP["watch"], short_help=IN_SHORT["watch"])
def watch(name: Name, *, timeout: Timeout = None, plain: Plain = False, as_json: Json = False) -> None:
    """Watch a deployment until it is promoted or has ended; the exit code says how."""
    from triggers import cli_commands

    cli_commands.watch(name, how=cli_commands.Waiting(timeout_s=timeout, plain=plain, as_json=as_json))


@app.command(help=HELP["approve"], short_help=IN_SHORT["approve"])
def approve(
    name: Name,
    *,
    by: By,
    refuse: Annotated[bool, typer.Option("--refuse", help="say no: nothing is changed")] = False,
    words: Annotated[str, typer.Option("--words", help="why, for the record")] = "",
    as_json: Json = False,
) -> None:
    """Answer a deployment that waits for approval."""
    from triggers import cli_commands

    cli_commands.approve(name, approved=not refuse, by=by, words=words, as_json=as_json)


@app.command(help=HELP["abort"], short_help=IN_SHORT["abort"])
def abort(
    name: Name, *, by: By, reason: Reason, wait: Wait = True, timeout: Timeout = None, as_json: Json = False
) -> None:
    """Have a deployment that runs take back what it has done."""
    _control("abort", name, by=by, reason=reason, wait=wait, timeout=timeout, as_json=as_json)


@app.command(help=HELP["pause"], short_help=IN_SHORT["pause"])
def pause(
    name: Name, *, by: By, reason: Reason, wait: Wait = True, timeout: Timeout = None, as_json: Json = False
) -> None:
    """Hold a deployment that runs: traffic stays as it is; a bad side is taken back all the same."""
    _control("pause", name, by=by, reason=reason, wait=wait, timeout=timeout, as_json=as_json)


@app.command(help=HELP["resume"], short_help=IN_SHORT["resume"])
def resume(
    name: Name, *, by: By, reason: Reason, wait: Wait = True, timeout: Timeout = None, as_json: Json = False
) -> None:
    """Let a paused deployment go on."""
    _control("resume", name, by=by, reason=reason, wait=wait, timeout=timeout, as_json=as_json)


@app.command(help=HELP["rollback"], short_help=IN_SHORT["rollback"])
def rollback(
    name: Name,
    *,
    reason: Reason,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="also where the way back loses more data than its plan allows"),
    ] = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Take a deployment back at once: one that is promoted, left open, or could not be taken back before."""
    from triggers import cli_commands

    how = cli_commands.Waiting(wait=wait, timeout_s=timeout, plain=plain, as_json=as_json)
    cli_commands.rollback(name, reason=reason, accept_loss=accept_loss, yes=yes, how=how)


@app.command(help=HELP["recover"], short_help=IN_SHORT["recover"])
def recover(*, wait: Wait = True, timeout: Timeout = None, as_json: Json = False) -> None:
    """Bring every deployment whose process is gone to a known good state; safe at any time."""
    from triggers import cli_commands

    cli_commands.recover(how=cli_commands.Waiting(wait=wait, timeout_s=timeout, plain=True, as_json=as_json))


@app.command(help=HELP["history"], short_help=IN_SHORT["history"])
def history(
    *,
    component: Annotated[str | None, typer.Option(help="only of this component, such as application")] = None,
    environment: Annotated[str | None, typer.Option(help="only in this environment")] = None,
    state: Annotated[State | None, typer.Option(help="only in this state")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="so many at most, the newest")] = 20,
    as_json: Json = False,
) -> None:
    """List deployments, newest first: what, where, how they ended and why."""
    from triggers import cli_commands

    cli_commands.history(
        component=component, environment=environment, state=state, limit=limit, as_json=as_json
    )


@app.command(help=HELP["show"], short_help=IN_SHORT["show"])
def show(
    name: Name,
    *,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="each entry of its journal, with its time")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a deployment as it is now, or as it ended: steps, verdict, checklist, and what to do next."""
    from triggers import cli_commands

    cli_commands.show(name, timeline=timeline, as_json=as_json)


def _control(
    word: str, name: str, *, by: str, reason: str, wait: bool, timeout: float | None, as_json: bool
) -> None:
    from triggers import cli_commands

    how = cli_commands.Waiting(wait=wait, timeout_s=timeout, as_json=as_json)
    cli_commands.control(name, cast("cli_commands.Word", word), by=by, reason=reason, how=how)


if __name__ == "__main__":
    app()
