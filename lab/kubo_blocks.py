"""Blocks of a Kubo repository as files: what is there, and what lies below what."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

#: The directory with nothing in it, which each repository holds from its start.
EMPTY_DIRECTORY = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_V0_LENGTH = 34
_RAW, _DAG_PB = 0x55, 0x70
_DIRECTORY, _SHARD = 1, 5
_VARINT, _BYTES = 0, 2


@dataclasses.dataclass(frozen=True)
class Link:
    """From a block to one below it; `size_bytes` counts all that lies there."""

    name: str
    cid: str
    size_bytes: int


class Blocks:
    """The blocks in the directory of a repository, whether its node runs or not.

    Args:
        directory: `blocks` of the repository, laid out as flatfs with `next-to-last/2`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, cid: str) -> bool:
        """Return whether this one block is there."""
        return self._path(_key(cid)).is_file()

    def has_all(self, cid: str) -> bool:
        """Return whether the block and all below it are there."""
        try:
            return bool(list(self._walk(cid)))
        except FileNotFoundError:
            return False

    def read(self, cid: str) -> bytes:
        """Return a block. Raises FileNotFoundError when it is not there."""
        return self._path(_key(cid)).read_bytes()

    def below(self, cid: str) -> tuple[str, ...]:
        """Return a CID and all that lies below it, as far as it is there."""
        return tuple(self._walk(cid, even_missing=True))

    def links(self, cid: str) -> tuple[Link, ...]:
        """Return where a block leads; nowhere when it is raw."""
        if not _has_links(cid):
            return ()
        return tuple(_link(value) for field, value in _fields(self.read(cid)) if field == 2)  # noqa: PLR2004

    def is_directory(self, cid: str) -> bool:
        """Return whether a block begins a directory."""
        return _has_links(cid) and _unixfs_type(self.read(cid)) in {_DIRECTORY, _SHARD}

    def entries(self, cid: str) -> tuple[Link, ...]:
        """Return what is in a directory, also in one that is spread over several blocks."""
        if _unixfs_type(self.read(cid)) != _SHARD:
            return self.links(cid)
        found: list[Link] = []
        for link in self.links(cid):
            # a shard's names begin with two digits; those with nothing more lead to another shard
            name = link.name[2:]
            found += [dataclasses.replace(link, name=name)] if name else self.entries(link.cid)
        return tuple(found)

    def size_bytes(self, cid: str) -> int:
        """Return how much all of it takes, each block counted as often as something leads to it."""
        return len(self.read(cid)) + sum(link.size_bytes for link in self.links(cid))

    def count(self) -> int:
        """Return how many there are."""
        return sum(1 for _ in self._files())

    def remove_all_but(self, cids: Iterable[str]) -> tuple[str, ...]:
        """Remove what is neither one of `cids` nor below one; return that as CIDs of version 1.

        Not while the node runs: it remembers what it has. What is not there is not missed.
        """
        kept = {_key(EMPTY_DIRECTORY)}
        for cid in cids:
            kept.update(_key(below) for below in self.below(cid))
        removed = []
        for file in list(self._files()):
            if file.stem not in kept:
                file.unlink()
                multihash = base64.b32decode(_padded(file.stem))
                removed.append(_text(bytes((1, _RAW)) + multihash))
        return tuple(sorted(removed))

    def _walk(self, top: str, *, even_missing: bool = False) -> Iterator[str]:
        waiting, seen = [top], set[str]()
        while waiting:
            cid = waiting.pop()
            if cid in seen:
                continue
            seen.add(cid)
            if self.has(cid):
                waiting += [link.cid for link in self.links(cid)]
            elif not even_missing:
                raise FileNotFoundError(cid)
            yield cid

    def _files(self) -> Iterator[Path]:
        return self._directory.glob("??/*.data")

    def _path(self, key: str) -> Path:
        return self._directory / key[-3:-1] / f"{key}.data"


def is_cid(text: str) -> bool:
    """Return whether a text is a CID of version 0, or of version 1 in base32."""
    try:
        return _parsed(text)[0] in {0, 1}
    except (ValueError, IndexError):
        return False


def _parsed(cid: str) -> tuple[int, int, bytes]:
    """Return version, codec and multihash."""
    if cid.startswith("Qm"):
        number = 0
        for letter in cid:
            number = number * 58 + _ALPHABET.index(letter)
        data = number.to_bytes(_V0_LENGTH, "big")
        if len(cid) != 46 or data[:2] != b"\x12\x20":  # noqa: PLR2004 - of a SHA-256 in base58
            raise ValueError(f"{cid} is no CID")
        return 0, _DAG_PB, data
    if not cid.startswith("b"):
        raise ValueError(f"{cid} is no CID")
    data = base64.b32decode(_padded(cid[1:].upper()))
    version, rest = _varint(data)
    codec, multihash = _varint(rest)
    return version, codec, multihash


def _key(cid: str) -> str:
    return base64.b32encode(_parsed(cid)[2]).decode().rstrip("=")


def _has_links(cid: str) -> bool:
    return _parsed(cid)[1] == _DAG_PB


def _text(cid: bytes) -> str:
    if len(cid) != _V0_LENGTH or cid[:2] != b"\x12\x20":
        return "b" + base64.b32encode(cid).decode().rstrip("=").lower()
    number, letters = int.from_bytes(cid, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        letters = _ALPHABET[digit] + letters
    return letters


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 8)


def _varint(data: bytes) -> tuple[int, bytes]:
    value = shift = used = 0
    while True:
        byte = data[used]
        value |= (byte & 0x7F) << shift
        shift, used = shift + 7, used + 1
        if byte < 0x80:  # noqa: PLR2004 - the last one
            return value, data[used:]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, value) of a protobuf message; numbers as eight bytes, little end first."""
    while message:
        tag, message = _varint(message)
        value, message = _varint(message)
        if tag & 7 == _VARINT:
            yield tag >> 3, value.to_bytes(8, "little")
        elif tag & 7 == _BYTES:
            yield tag >> 3, message[:value]
            message = message[value:]
        else:
            raise ValueError(f"field of wire type {tag & 7} in a block")


def _link(message: bytes) -> Link:
    fields = dict(_fields(message))
    size = int.from_bytes(fields.get(3, b""), "little")
    return Link(name=fields.get(2, b"").decode(), cid=_text(fields[1]), size_bytes=size)


def _unixfs_type(block: bytes) -> int:
    data = next((value for field, value in _fields(block) if field == 1), b"")
    return next((int.from_bytes(value, "little") for field, value in _fields(data) if field == 1), -1)
