"""One command: its connection to the API, where it speaks, and how it ends for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from rules.errors import ApiUnavailableError, DeployError
from rules.frozen import Frozen
from triggers.api import DeployApi
from triggers.api_errors import BadRequestError, NotAllowedError, UnknownError
from triggers.api_progress import Exit
from triggers.live_text import clean, harmless

_NOTHING = "Nothing was changed by this command."
_NOT_KNOWN = "It is not known whether the request arrived."


class Trouble(Frozen):
    """What a person is told when it did not go as asked: what happened, how things are, what to do."""

    happened: str
    state: str
    next_step: str
    exit_code: int


class Call:
    """A command at work.

    Args:
        as_json: one JSON document on standard output at the end, and all other words on standard error.
        key: the idempotency key of what it starts, for the words of an error.
        asks: whether it asks for something, so that an answer that is lost leaves a doubt.
    """

    def __init__(self, *, as_json: bool, key: str = "", asks: bool = False) -> None:
        self.as_json, self.key, self._asks = as_json, key, asks
        self.flow_run_id = ""
        self._api: DeployApi | None = None

    @property
    def api(self) -> DeployApi:
        """The connection, made when it is first wanted: a wrong request is told without it."""
        if self._api is None:
            self._api = DeployApi()
        return self._api

    @property
    def is_in_doubt(self) -> bool:
        """Whether Prefect may have been asked for something, and nobody heard the answer."""
        return (self._asks or bool(self.key)) and self._api is not None

    def close(self) -> None:
        """Close the connection."""
        if self._api is not None:
            self._api.close()

    def say(self, words: str) -> None:
        """Say something beside the result: on standard error, where no script reads it for data."""
        typer.echo(words, err=True)

    def finish(self, document: Mapping[str, Any], words: str = "", *, code: int = Exit.GOOD) -> None:
        """End the command with its result: as JSON, or in `words`.

        Raises:
            typer.Exit: when it did not go as asked; carries the exit code.
        """
        if self.as_json:
            typer.echo(json.dumps({**document, "exit_code": int(code)}, indent=2))
        elif words:
            typer.echo("\n".join(harmless(line) for line in words.split("\n")))
        if code:
            raise typer.Exit(int(code))

    def fail(self, trouble: Trouble, document: Mapping[str, Any] | None = None) -> None:
        """End the command in three parts on standard error, and as JSON where that was asked for.

        Raises:
            typer.Exit: always.
        """
        self.say(f"{clean(trouble.happened)}\n  State: {clean(trouble.state)}\n  Next:  {trouble.next_step}")
        told = {"flow_run_id": self.flow_run_id, "error": trouble.model_dump(exclude={"exit_code"})}
        self.finish({**told, **(document or {})}, code=trouble.exit_code)


@contextmanager
def calling(*, as_json: bool, key: str = "", asks: bool = False) -> Iterator[Call]:
    """Give a command its call, and turn what goes wrong into words and an exit code.

    Raises:
        typer.Exit: it did not go as asked.
    """
    call = Call(as_json=as_json, key=key, asks=asks)
    try:
        yield call
    except (DeployError, TimeoutError) as error:
        call.fail(_trouble(error, call))
    except KeyboardInterrupt:
        call.fail(_interrupted(call))
    finally:
        call.close()
        sys.stdout.flush()


def _trouble(error: DeployError | TimeoutError, call: Call) -> Trouble:
    happened = str(error)
    state, next_step = _how_things_are(call)
    match error:
        case TimeoutError():
            return Trouble(
                happened=happened, state=state, next_step=next_step, exit_code=Exit.GAVE_UP_WAITING
            )
        case BadRequestError() | UnknownError():
            wrong = "Correct what is named above, and repeat the command."
            return Trouble(happened=happened, state=state, next_step=wrong, exit_code=Exit.BAD_REQUEST)
        case NotAllowedError():
            who = "Set PREFECT_API_AUTH_STRING as the server wants it, and repeat the command."
            return Trouble(happened=happened, state=state, next_step=who, exit_code=Exit.API_AWAY)
        case ApiUnavailableError():
            return _away(happened, call)
        case _:
            return Trouble(happened=happened, state=state, next_step=next_step, exit_code=Exit.UNEXPECTED)


def _how_things_are(call: Call) -> tuple[str, str]:
    """Return which state things are in as far as this command knows, and what to do next."""
    if not call.flow_run_id:
        return _NOTHING, "Correct what is named above, and repeat the command."
    run = call.flow_run_id
    return f"Flow run {run} goes on by itself.", f"sovereign watch {run[:8]}"


def _away(happened: str, call: Call) -> Trouble:
    look = "See that PREFECT_API_URL names the server and that it is up"
    if call.flow_run_id:
        state, _ = _how_things_are(call)
        next_step = f"{look}, then: sovereign watch {call.flow_run_id[:8]}"
    elif call.is_in_doubt:
        state = _NOT_KNOWN
        next_step = f"{look}, then repeat the command{_with_key(call)}."
    else:
        state, next_step = _NOTHING, f"{look}, then repeat the command."
    return Trouble(happened=happened, state=state, next_step=next_step, exit_code=Exit.API_AWAY)


def _interrupted(call: Call) -> Trouble:
    if call.flow_run_id:
        run = call.flow_run_id[:8]
        return Trouble(
            happened="Stopped watching. The deployment goes on: it does not depend on this terminal.",
            state=f"Flow run {call.flow_run_id} goes on by itself.",
            next_step=f"sovereign watch {run} to watch again; sovereign abort {run} --by NAME --reason WHY "
            "to have it taken back",
            exit_code=Exit.GAVE_UP_WAITING,
        )
    return Trouble(
        happened="Interrupted.",
        state=_NOT_KNOWN if call.is_in_doubt else _NOTHING,
        next_step=f"Repeat the command{_with_key(call) if call.is_in_doubt else ''}.",
        exit_code=Exit.GAVE_UP_WAITING,
    )


def _with_key(call: Call) -> str:
    """Return how a request is repeated that may have arrived."""
    return f" with --key {call.key}: it starts at most one run" if call.key else ": asked twice is asked once"
