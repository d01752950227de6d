"""Words for a terminal: on one line, short enough, and without what a terminal would obey."""

from __future__ import annotations

import re
import unicodedata

# the end of a command's output, a checklist's evidence: whatever was quoted may hold escape sequences
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_MINUTE_S, _HOUR_S = 60, 3600


def clean(text: str) -> str:
    """Return `text` on one line, without control characters and what turns the direction of writing."""
    return " ".join(harmless(text).split())


def harmless(line: str) -> str:
    """Return `line` with its spaces, without what `clean` takes away."""
    return "".join(
        " " if unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} else letter
        for letter in _SEQUENCES.sub("", line)
        if unicodedata.category(letter) != "Cf"
    )


def unmarked(markdown: str) -> str:
    """Return a sentence of a Markdown page without its marks for bold, on one line."""
    return clean(markdown.replace("**", ""))


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` characters."""
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"[:width]


def clock(seconds: float) -> str:
    """Return a length of time as people read it: `0.4 s`, `0:42`, `1:02:03`; one below zero is zero."""
    seconds = max(seconds, 0.0)
    if seconds < 10:  # noqa: PLR2004 - below that a tenth matters
        return f"{seconds:.1f} s"
    hours, rest = divmod(int(seconds), _HOUR_S)
    minutes, left = divmod(rest, _MINUTE_S)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def percent(ratio: float) -> str:
    """Return a ratio as a percentage with no more digits than it needs."""
    return f"{100 * ratio:.3g} %"
