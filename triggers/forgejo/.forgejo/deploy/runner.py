"""How a step talks to the runner and to `sovereign`: by environment, files and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def env(name: str) -> str:
    """Return a variable's value; empty when it is not set."""
    return os.environ.get(name, "").strip()


def say(words: str) -> None:
    """Write a line to the job's log."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def only_words() -> Iterator[None]:
    """Have the runner take lines as words: what comes from outside must not command it."""
    token = secrets.token_hex(16)
    say(f"::stop-commands::{token}")
    try:
        yield
    finally:
        say(f"::{token}::")


def escaped(words: str) -> str:
    """Return words that stay one command's argument."""
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def masked(*values: str) -> None:
    """Have the runner hide these values from here on; it must not be told to hide nothing."""
    for value in values:
        if value:
            say(f"::add-mask::{escaped(value)}")


def output(**values: str) -> None:
    """Hand values over to other steps and jobs."""
    path = env("GITHUB_OUTPUT")
    if not path:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        for name, value in values.items():
            # a value that knew the end mark could write other outputs
            end = f"end-{secrets.token_hex(16)}"
            file.write(f"{name}<<{end}\n{value}\n{end}\n")


def place(name: str) -> Path:
    """Return where this run of the workflow keeps something for its next steps."""
    directory = (
        Path(env("RUNNER_TEMP") or ".") / f"sovereign-{env('GITHUB_RUN_ID')}-{env('GITHUB_RUN_ATTEMPT')}"
    )
    directory.mkdir(parents=True, exist_ok=True)
    return directory.absolute() / f"{name}.json"


def keep(name: str, value: dict[str, Any]) -> Path:
    """Keep something for the next steps; return where."""
    path = place(name)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    return path


def kept(name: str) -> dict[str, Any]:
    """Return what a step before has kept; empty when it has not."""
    try:
        found = json.loads(place(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def sovereign(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `sovereign`; return its exit code, and the document that it writes (empty when there is none)."""
    with only_words():
        done = subprocess.run(
            ("sovereign", *arguments),
            stdin=subprocess.DEVNULL,  # a runner may give its steps a terminal, and nobody sits at it
            stdout=subprocess.PIPE,
            stderr=sys.stdout,
            text=True,
            check=False,
        )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {}
    return done.returncode, document if isinstance(document, dict) else {}
