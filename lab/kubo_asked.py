"""What is asked of a Kubo command, and what it answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.kubo_blocks import is_cid
from lab.kubo_calls import Patience
from lab.kubo_upload import Body, Headers

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


class CommandError(Exception):
    """What Kubo answers with 500 and JSON: a command could not be done."""


class WrongRequestError(Exception):
    """What Kubo answers with 400 and plain text: it does not understand what is asked."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request: its options, its body, and whether who asks is still there."""

    options: Mapping[str, list[str]]
    headers: Headers
    body: Body
    is_gone: Callable[[], bool]

    def text(self, name: str, default: str = "") -> str:
        """Return an option."""
        return self.options.get(name, [default])[-1]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return an option that is true or false."""
        said = self.text(name, "true" if default else "false")
        if said not in {"true", "false", "1", "0", ""}:
            wrong = f'parsing "{said}": invalid syntax'
            raise WrongRequestError(f'option "{name}": strconv.ParseBool: {wrong}')
        return said in {"true", "1", ""}

    @property
    def patience(self) -> Patience:
        """How long the command may take."""
        said = self.text("timeout")
        parts = _DURATION.findall(said)
        if said and "".join(number + unit for number, unit in parts) != said:
            raise WrongRequestError(f'time: invalid duration "{said}"')
        timeout_s = sum(float(number) * _UNITS_S[unit] for number, unit in parts) if said else None
        return Patience(timeout_s, self.is_gone)

    def paths(self, name: str = "ipfs-path") -> tuple[str, ...]:
        """Return the arguments, which are CIDs, or paths below one."""
        found = self.options.get("arg", [])
        if not found:
            raise WrongRequestError(f'argument "{name}" is required')
        paths = tuple(path.removeprefix("/ipfs/").rstrip("/") for path in found)
        for path in paths:
            if not is_cid(path.split("/")[0]):
                raise CommandError(f'invalid path "{path}": selected encoding not supported')
        return paths


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is sent with 200: rows of JSON, or a file, and perhaps an error when it is too late for 500."""

    rows: Iterable[Mapping[str, Any]] = ()
    file: Path | None = None
    offset: int = 0
    length: int | None = None
    late_error: str = ""
