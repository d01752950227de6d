"""Content sent to a Kubo node: read, hashed and sent piece by piece, and the rows that come back."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rules.ipfs import AddOptions, ContentFile
from tasks.content_files import ContentFilesError, content_digest, listed_files
from tasks.kubo_http import Exchange, KuboError

#: What the content is called while it is added; CIDs do not depend on it.
TOP = "content"
_PIECE_BYTES = 1 << 18


class Upload:
    """One directory or file on its way to a node.

    Args:
        source: where it lies.
        sha256: its digest, as `ContentFiles.sha256` has it; with another one it is never sent to its end, so
            that the node keeps nothing. None: whatever it is.
        progress: told after each piece how many bytes of the files were sent.
    """

    def __init__(
        self, source: str, *, sha256: str | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        self._source, self._sha256 = source, sha256
        self._files = listed_files(source)
        self._progress = progress or (lambda _: None)
        self._boundary = secrets.token_hex(16)
        self._sent_bytes = 0

    @property
    def headers(self) -> dict[str, str]:
        """Of the request."""
        return {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}

    @property
    def paths(self) -> frozenset[str]:
        """Every path of which the node has to say a CID: files, directories, and the whole."""
        files = [Path(path) for path, _ in self._files]
        return frozenset(_name(path) for file in files for path in (file, *file.parents)) | {""}

    def body(self, exchange: Exchange) -> Iterator[bytes]:
        """Yield the request's body, in the order that Kubo wants: a directory, then all that is in it.

        Raises:
            ContentFilesError: a file cannot be read, or the digest is another one; the request breaks off.
        """
        entered: set[str] = set()
        read: list[ContentFile] = []
        for path, file in self._files:
            for directory in _directories(path, entered):
                yield self._head(directory, "application/x-directory") + b"\r\n"
            yield self._head(path, "application/octet-stream")
            try:
                for piece in self._pieces(path, file, read):
                    if exchange.is_broken:  # it has answered already, or is gone
                        return
                    yield piece
            except OSError as error:
                raise ContentFilesError(f"{error}. It was not added to its end.") from error
            yield b"\r\n"
        self._refuse_other_content(read)
        yield f"--{self._boundary}--\r\n".encode()

    def _pieces(self, path: str, file: Path, read: list[ContentFile]) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                yield piece
                self._sent_bytes += len(piece)
                self._progress(self._sent_bytes)
        read.append(ContentFile(path=path, size_bytes=size, sha256=digest.hexdigest()))

    def _head(self, path: str, kind: str) -> bytes:
        # all of it is quoted: Kubo would take a plus for a space
        name = quote(f"{TOP}/{path}" if path else TOP, safe="")
        return (
            f'--{self._boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        ).encode()

    def _refuse_other_content(self, read: list[ContentFile]) -> None:
        found = content_digest(self._source, read)
        if self._sha256 is not None and found != self._sha256:
            raise ContentFilesError(
                f"{self._source} has the digest {found}, declared was {self._sha256}: it changed, or is not "
                "what was meant. It was not sent to its end, so the node keeps nothing of it pinned. Restore "
                "it, or declare what it is now."
            )


def parameters(options: AddOptions, *, only_hash: bool, pin: bool) -> list[tuple[str, str]]:
    """Return the parameters of `add`: all that decides on CIDs is said, whatever the node's defaults."""
    return [
        ("cid-version", str(options.cid_version)),
        ("raw-leaves", _word(options.raw_leaves)),
        ("chunker", options.chunker),
        ("hash", options.hash),
        ("only-hash", _word(only_hash)),
        ("pin", _word(pin and not only_hash)),
        ("progress", "false"),
    ]


def read_rows(exchange: Exchange, lines: Iterable[str], paths: frozenset[str]) -> dict[str, str]:
    """Return path -> CID from the rows of an answer, once they are all there; the whole comes last.

    Raises:
        KuboError: the node failed on the way, or what it says is not what was sent.
    """
    cids: dict[str, str] = {}
    last = ""
    for line in lines:
        row = _row(exchange, line)
        if row is None:
            continue
        name, cid = row
        last = name
        cids[name] = cid
    if exchange.late_error:
        raise _failed(exchange, exchange.late_error)
    wanted = {f"{TOP}/{path}" if path else TOP for path in paths}
    if last != TOP or set(cids) != wanted:
        odd = sorted(set(cids) ^ wanted)[:3]
        raise exchange.foreign(
            f"{len(cids)} rows, the last for {last!r}; at odds: {', '.join(odd) or 'none'}"
        )
    return {name.removeprefix(TOP).removeprefix("/"): cid for name, cid in cids.items()}


def _row(exchange: Exchange, line: str) -> tuple[str, str] | None:
    """Return name and CID; None where it only tells of progress."""
    if not line.strip():
        return None
    try:
        row: dict[str, Any] = json.loads(line)
        if row.get("Type") == "error":
            raise _failed(exchange, str(row.get("Message")))
        if "Hash" not in row:
            return None
        name, cid = row["Name"], row["Hash"]
    except (ValueError, KeyError, AttributeError) as error:
        raise exchange.foreign(line) from error
    if not isinstance(name, str) or not isinstance(cid, str):
        raise exchange.foreign(line)
    return name, cid


def _failed(exchange: Exchange, said: str) -> KuboError:
    node = exchange.node
    return KuboError(f"{node.name} at {node.api} failed in the middle of add: {said}.", said=said)


def _directories(path: str, entered: set[str]) -> Iterator[str]:
    """Yield the directories above a file that were not entered yet, outermost first; "": the whole."""
    if not path:  # one file, in none
        return
    for parent in reversed(Path(path).parents):
        if (name := _name(parent)) not in entered:
            entered.add(name)
            yield name


def _name(path: Path) -> str:
    return "" if path == Path() else path.as_posix()


def _word(value: bool) -> str:  # noqa: FBT001 - its only argument
    return "true" if value else "false"
