"""Many things in a few words."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 3


def listed(words: Iterable[str], *, shown: int = _SHOWN) -> str:
    """Return the first of `words` joined by commas, and how many more there are."""
    every = list(words)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
