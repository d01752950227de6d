"""Long text as artifact metadata: of each value Prefect's server keeps 500 characters, and says nothing."""

from __future__ import annotations

from collections.abc import Mapping

_KEPT_CHARACTERS = 500


def in_pieces(text: str, *, prefix: str) -> dict[str, str]:
    """Return `text` cut into metadata values that the server keeps whole, under `prefix-00000` and so on."""
    starts = range(0, len(text), _KEPT_CHARACTERS)
    return {f"{prefix}-{n:05}": text[at : at + _KEPT_CHARACTERS] for n, at in enumerate(starts)}


def from_pieces(metadata: Mapping[str, str], *, prefix: str) -> str:
    """Return the text that `in_pieces` has cut; empty when there is none of that prefix."""
    return "".join(metadata[key] for key in sorted(metadata) if key.startswith(f"{prefix}-"))
