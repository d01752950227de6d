"""What a content identifier says of itself: its version, how its first block is read, and its hash."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from rules.ipfs import AddOptions, cid_version

_DAG_PB, _RAW = 0x70, 0x55
_SHA2_256 = 0x12
# of the multicodec table, by the names that Kubo's `add` takes
_HASHES = {
    0x12: "sha2-256",
    0x13: "sha2-512",
    0x14: "sha3-512",
    0x16: "sha3-256",
    0x1B: "keccak-256",
    0x1E: "blake3",
    0xB220: "blake2b-256",
}


class Kind(NamedTuple):
    """What two CIDs have in common that were made with the same options."""

    version: int
    codec: int
    hash: int


def kind(cid: str) -> Kind | None:
    """Return the kind of a CID, version 0 or version 1 in base32; None: it is none.

    The source is the specification of CIDs: https://github.com/multiformats/cid
    """
    if cid_version(cid) == 0:
        return Kind(0, _DAG_PB, _SHA2_256)
    text = cid.removeprefix("b").upper()
    try:
        content = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    numbers: list[int] = []
    while len(numbers) < 3:  # noqa: PLR2004 - version, codec, hash
        number, content, whole = _varint(content)
        if not whole:
            return None
        numbers.append(number)
    return Kind(*numbers) if numbers[0] == 1 else None


def options_that_keep(old: str, new: str, options: AddOptions) -> AddOptions | None:
    """Return the options with which new content's CID would be of the `old` one's kind; None: it is already.

    A file of one block is a raw leaf or a node that has the bytes in it, a larger one a node in any case: so
    only a raw leaf tells, by itself, with which options it was made.

    Args:
        old: CID that is replaced.
        new: CID that replaces it.
        options: with which `new` was made.
    """
    was, now = kind(old), kind(new)
    if was is None or now is None:
        return None
    lost_leaf = was.codec == _RAW and not options.raw_leaves
    if (was.version, was.hash) == (now.version, now.hash) and not lost_leaf:
        return None
    return options.model_copy(
        update={
            "cid_version": was.version,
            "raw_leaves": was.codec == _RAW or (was.version == 1 and options.raw_leaves),
            "hash": _HASHES.get(was.hash, f"0x{was.hash:x}"),
        }
    )


def _varint(content: bytes) -> tuple[int, bytes, bool]:
    """Return the number that bytes begin with, what is left, and whether there was a whole one."""
    number = 0
    for at, byte in enumerate(content[:9]):
        number |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return number, content[at + 1 :], True
    return number, b"", False
