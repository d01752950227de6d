"""A shell that keeps its variables and functions from one block of a page to the next."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_END = "--- end of the block: "


class Shell:
    """A bash that runs what it is given, in `directory`.

    Args:
        directory: where it works; `errors` there has what it writes to stderr.
        environment: its variables.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.errors = directory / "errors"
        self._stderr = self.errors.open("w")
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=directory,
            env=dict(environment),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bash.kill()
        self._bash.communicate()
        self._stderr.close()

    def run(self, block: str, *, fails: bool = False) -> str:
        """Run a block; return what it has said on stdout, without the last line's end."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{block}\nprintf '\\n%s%s\\n' '{_END}' $?\n")
        self._bash.stdin.flush()
        said: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(_END):
                failed = line.removeprefix(_END).strip() != "0"
                assert failed is fails, f"{block}\n{''.join(said)}\n{self.errors.read_text()}"
                return "".join(said).rstrip("\n")
            said.append(line)
        raise AssertionError(f"the shell ended: {block}\n{''.join(said)}\n{self.errors.read_text()}")
