"""Content that is added to a Kubo node: received, stored, and told row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.kubo_blocks import Blocks
from lab.kubo_library import Library
from lab.kubo_pins import Pins
from lab.kubo_upload import Readable, UploadError, receive

_PROGRESS_BYTES = 256 * 1024
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Content:
    """What was received: below `directory`, by names relative to it; "" is all of it, when it is wrapped."""

    directory: Path
    roots: tuple[str, ...]

    def path(self, name: str) -> Path:
        """Return where a name lies."""
        return self.directory / name if name else self.directory

    def names(self) -> Iterator[str]:
        """Yield each name after all that lie below it, the roots in the order they came."""
        for root in self.roots:
            yield from self._names(root)

    def progress(self) -> list[Row]:
        """Return the rows that say how far each file is, in bytes."""
        rows = []
        for name in self.names():
            if self.path(name).is_file():
                size = self.path(name).stat().st_size
                steps = [*range(_PROGRESS_BYTES, size, _PROGRESS_BYTES), size]
                rows += [{"Name": name, "Bytes": step} for step in steps]
        return rows

    def _names(self, name: str) -> Iterator[str]:
        path = self.path(name)
        if path.is_dir():
            for entry in sorted(path.iterdir()):
                yield from self._names(f"{name}/{entry.name}" if name else entry.name)
        yield name


class Adding:
    """Adds content to one node.

    Args:
        library: the node, which runs.
        blocks: of its repository.
        pins: its recursive pins.
    """

    def __init__(self, library: Library, blocks: Blocks, pins: Pins) -> None:
        self._library, self._blocks, self._pins = library, blocks, pins

    def receive(self, body: Readable, content_type: str, into: Path, *, wrap: bool) -> Content:
        """Write what is sent below `into`.

        Raises:
            UploadError: it cannot be read.
        """
        uploads = receive(body, content_type, into)
        if not uploads:
            raise UploadError("expected a file argument")
        roots = dict.fromkeys(upload.name.split("/")[0] or "unnamed" for upload in uploads)
        return Content(into, ("",) if wrap else tuple(roots))

    def hash_only(self, content: Content) -> list[Row]:
        """Return the rows with nothing stored; sizes are those of the files themselves."""
        rows = []
        for name in content.names():
            path = content.path(name)
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            cid = self._library.add(path, only_hash=True)
            rows.append(_row(name, cid, sum(file.stat().st_size for file in files)))
        return rows

    def add(self, content: Content, *, pin: bool) -> list[Row]:
        """Store the content and return its rows; its roots are pinned recursively, or nothing is."""
        rows: list[Row] = []
        for root in content.roots:
            cid = self._library.add(content.path(root), only_hash=False)
            if pin:
                self._pins.note_added(cid)
            rows += self._rows(root, cid)
            if not pin:
                self._pins.drop_added(cid)
        return rows

    def add_some(self, content: Content) -> list[Row]:
        """Store the first half of the files, pinned by nobody, and return their rows."""
        files = [name for name in content.names() if content.path(name).is_file()]
        half = Content(content.directory, tuple(files[: len(files) // 2]))
        return self.add(half, pin=False)

    def _rows(self, name: str, cid: str) -> list[Row]:
        rows: list[Row] = []
        if self._blocks.is_directory(cid):
            for entry in self._blocks.entries(cid):
                rows += self._rows(f"{name}/{entry.name}" if name else entry.name, entry.cid)
        return [*rows, _row(name, cid, self._blocks.size_bytes(cid))]


def _row(name: str, cid: str, size_bytes: int) -> Row:
    # a file without a name is called by its CID
    return {"Name": cid if name == "unnamed" else name, "Hash": cid, "Size": str(size_bytes)}
