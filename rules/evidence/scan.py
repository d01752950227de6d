"""What a linter, a type checker or a scanner found, whichever format it came in."""

from __future__ import annotations

from typing import Literal

from rules.frozen import Frozen

Level = Literal["error", "warning", "note", "none"]


class Problem(Frozen):
    """One thing that was found. `severity` is CVSS, 0 to 10; None: not rated."""

    level: Level
    rule: str
    where: str
    severity: float | None = None
    suppressed: bool = False


class Scan(Frozen):
    """What one file reports. `unfinished` says why it proves nothing: no run, or one that failed."""

    tools: tuple[str, ...]
    problems: tuple[Problem, ...]
    unfinished: str = ""
