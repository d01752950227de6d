"""Files out of a multipart request, written to disk as they come: memory stays constant."""

from __future__ import annotations

import dataclasses
import email.message
import email.parser
import io
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

_PIECE_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 64 * 1024


class UploadError(ValueError):
    """What was sent is not what `add` wants."""


class NoFileError(Exception):
    """Nothing was sent that could hold files."""


class Readable(Protocol):
    """What gives up to so many bytes; none at its end."""

    def read(self, size: int, /) -> bytes:
        """Return at least one byte, unless it has ended."""


class Headers(Protocol):
    """What a request says about itself, by names in which case does not matter."""

    def get(self, name: str, /) -> str | None:
        """Return what is said, None when nothing is."""


class Body:
    """What follows a request's headers, whether its length is said first or it comes in chunks."""

    def __init__(self, headers: Headers, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._is_chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
        self._left = 0 if self._is_chunked else int(headers.get("Content-Length") or 0)
        self.has_ended = not self._is_chunked and self._left == 0

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end. Raises UploadError when it breaks off."""
        if self._is_chunked and not self._left and not self.has_ended:
            self._next_chunk()
        if self.has_ended:
            return b""
        piece = self._stream.read(min(size, self._left))
        if not piece:
            raise UploadError("unexpected EOF")
        self._left -= len(piece)
        if self._is_chunked and not self._left:
            self._stream.readline()
        self.has_ended = not self._is_chunked and not self._left
        return piece

    def _next_chunk(self) -> None:
        try:
            self._left = int(self._stream.readline().split(b";")[0], 16)
        except ValueError:
            raise UploadError("unexpected EOF") from None
        if not self._left:
            while self._stream.readline() not in {b"\r\n", b"\n", b""}:
                pass
            self.has_ended = True


@dataclasses.dataclass(frozen=True)
class Upload:
    """One part that was received: the path below the upload's directory, as the client named it."""

    name: str
    is_directory: bool


def receive(body: Readable, content_type: str, into: Path) -> tuple[Upload, ...]:
    """Write the parts of a multipart body below `into` and return them in the order they came.

    Raises:
        NoFileError: it is no multipart body.
        UploadError: it breaks off, names a path that leads out of `into`, or comes back to a directory
            after others: Kubo makes two of that one.
    """
    boundary = _boundary(content_type)
    reader = _Reader(body)
    reader.pass_by(b"--" + boundary)
    parts: list[Upload] = []
    open_directories, left_directories = set[PurePosixPath](), set[PurePosixPath]()
    while not reader.starts_with(b"--"):
        reader.expect(b"\r\n")
        headers = email.parser.BytesHeaderParser().parsebytes(reader.take_until(b"\r\n\r\n"))
        part = _receive_part(reader, headers, b"\r\n--" + boundary, into)
        within = {PurePosixPath(part.name), *PurePosixPath(part.name).parents} - {PurePosixPath()}
        left_directories |= open_directories - within
        if within & left_directories:
            raise UploadError(f"{part.name}: its directory was left already")
        open_directories = within
        parts.append(part)
    while body.read(_PIECE_BYTES):
        pass
    return tuple(parts)


def _receive_part(reader: _Reader, headers: email.message.Message, end: bytes, into: Path) -> Upload:
    # as Kubo reads it: with the rules of a query, where a plus stands for a blank
    name = urllib.parse.unquote_plus(_file_name(headers)).strip("/")
    kind = headers.get_content_type()
    path = into / name if name else into / "unnamed"
    if any(part in {"..", "."} for part in PurePosixPath(name).parts) or "\0" in name:
        raise UploadError(f"{name} leads out of the upload")
    if kind == "application/symlink":
        raise UploadError("the lab's Kubo takes no symbolic links")
    is_directory = kind == "application/x-directory"
    (path if is_directory else path.parent).mkdir(parents=True, exist_ok=True)
    if is_directory:
        reader.pass_by(end)
    else:
        with path.open("wb") as file:
            reader.copy_until(end, file)
    return Upload(name, is_directory)


def _file_name(headers: email.message.Message) -> str:
    name = headers.get_param("filename", header="content-disposition") or ""
    return name if isinstance(name, str) else name[2]


def _boundary(content_type: str) -> bytes:
    header = email.message.Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not header.get_content_type().startswith("multipart/") or not isinstance(boundary, str):
        raise NoFileError("file argument 'path' is required")
    return boundary.encode()


class _Reader:
    """Looks for a text in what comes, and holds no more than one piece of it."""

    def __init__(self, body: Readable) -> None:
        self._body, self._held = body, b""

    def starts_with(self, text: bytes) -> bool:
        self._hold(len(text))
        return self._held.startswith(text)

    def expect(self, text: bytes) -> None:
        if not self.starts_with(text):
            raise UploadError("malformed MIME header")
        self._held = self._held[len(text) :]

    def pass_by(self, end: bytes) -> None:
        self.copy_until(end, None)

    def take_until(self, end: bytes) -> bytes:
        while end not in self._held:
            if len(self._held) > _MAX_HEADER_BYTES:
                raise UploadError("malformed MIME header")
            self._more()
        taken, _, self._held = self._held.partition(end)
        return taken

    def copy_until(self, end: bytes, to: BinaryIO | None) -> None:
        while (at := self._held.find(end)) < 0:
            # its beginning may stand at the end of what is held
            safe = max(0, len(self._held) - len(end) + 1)
            if to:
                to.write(self._held[:safe])
            self._held = self._held[safe:]
            self._more()
        if to:
            to.write(self._held[:at])
        self._held = self._held[at + len(end) :]

    def _hold(self, size: int) -> None:
        while len(self._held) < size:
            self._more()

    def _more(self) -> None:
        piece = self._body.read(_PIECE_BYTES)
        if not piece:
            raise UploadError("unexpected EOF")
        self._held += piece
