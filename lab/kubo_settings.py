"""What the lab wants of one of its Kubo nodes: a file that the node reads at each request."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any

STORAGE_MAX = 10_000_000_000


class Full(enum.StrEnum):
    """How a node says that its disk is full: `MESSAGE` with 500, `TRAILER` when 200 was sent already."""

    MESSAGE = "message"
    TRAILER = "trailer"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is wanted of a node.

    Attributes:
        cut_off: it reaches no other node, nor do they reach it; read when it starts.
        hang: it accepts requests and answers none.
        full: how it says that nothing can be stored; None: there is room.
        lies: CID -> file that it answers instead of the content.
        storage_max: bytes, as it says in `repo/stat`.
    """

    cut_off: bool = False
    hang: bool = False
    full: Full | None = None
    lies: dict[str, str] = dataclasses.field(default_factory=dict)
    storage_max: int = STORAGE_MAX


class Settings:
    """What is wanted of one node, in a file.

    Args:
        file: where; while there is none, nothing special is wanted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Wanted:
        """Return what is wanted now."""
        try:
            known: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return Wanted()
        full = known.pop("full")
        return Wanted(**known, full=Full(full) if full else None)

    def change(self, **wanted: Any) -> None:
        """Want something else from the next request on."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(self.read(), **wanted))))
        new.replace(self._file)

    def clear(self) -> None:
        """Want nothing special any more."""
        self._file.unlink(missing_ok=True)
