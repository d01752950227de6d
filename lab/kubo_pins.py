"""Which CIDs are pinned recursively: the library lists them together with what lies below them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from lab.kubo_blocks import Blocks
from lab.kubo_calls import Patience, bounded
from lab.kubo_library import Library

_PINNED, _PINNING, _UNPINNING = "pinned", "pinning", "unpinning"


class Pins:
    """Recursive pins of one node, which are written down before the library is told.

    Args:
        library: the node, which runs.
        blocks: of its repository.
        file: where they are written down.
    """

    def __init__(self, library: Library, blocks: Blocks, file: Path) -> None:
        self._library, self._blocks, self._file = library, blocks, file
        self._known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        self._lock = threading.RLock()
        self._finish_what_was_begun()

    def recursive(self) -> tuple[str, ...]:
        """Return the CIDs that are pinned recursively, sorted."""
        with self._lock:
            there = set(self._library.pins())
            return tuple(sorted(c for c, how in self._known.items() if how == _PINNED and c in there))

    def indirect(self) -> dict[str, str]:
        """Return the CIDs that are pinned because they lie below one that is -> such a one."""
        with self._lock:
            recursive = self.recursive()
            found = {below: cid for cid in recursive for below in self._blocks.below(cid)}
            return {cid: root for cid, root in sorted(found.items()) if cid not in recursive}

    def add(self, cid: str, patience: Patience) -> bool:
        """Pin recursively all of a CID; return whether that was possible.

        Raises:
            GivenUpError: its blocks could not be had in time; it is not pinned, nor will it be later.
        """
        with self._lock:
            if self._known.get(cid) == _PINNED:
                return True
            self._note(cid, _PINNING)
        pinned = False
        try:
            # one that the library sets too late is not written down, so nobody is told of it nor keeps it
            pinned = bounded(lambda: self._library.pin(cid), patience)
        finally:
            with self._lock:
                if pinned:
                    self._note(cid, _PINNED)
                elif self._known.get(cid) == _PINNING:
                    self._note(cid, None)
        return pinned

    def note_added(self, cid: str) -> None:
        """Write down what the library has pinned while it was added."""
        with self._lock:
            self._note(cid, _PINNED)

    def drop_added(self, cid: str) -> None:
        """Take away a pin that the library has set, unless it is one that was asked for."""
        with self._lock:
            if cid not in self._known:
                self._library.unpin(cid)

    def remove(self, cid: str) -> bool:
        """Take a recursive pin away; return whether there was one."""
        with self._lock:
            if cid not in self.recursive():
                return False
            self._note(cid, _UNPINNING)
            self._library.unpin(cid)
            self._note(cid, None)
            return True

    def _finish_what_was_begun(self) -> None:
        """After a kill: a pin whose blocks are all there is set, any other is not."""
        for cid, how in list(self._known.items()):
            if how == _UNPINNING:
                self._library.unpin(cid)
                self._note(cid, None)
            elif how == _PINNING:
                is_pinned = self._blocks.has_all(cid) and self._library.pin(cid)
                self._note(cid, _PINNED if is_pinned else None)

    def _note(self, cid: str, how: str | None) -> None:
        if how is None:
            self._known.pop(cid, None)
        else:
            self._known[cid] = how
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._known))
        new.replace(self._file)
