"""The same content under several spellings: a CID can be written in another version and in other bases.

By https://github.com/multiformats/cid: version 0 is the base58 of a SHA-256 multihash and means dag-pb;
version 1 has a base's letter, then 0x01, the codec and the multihash.
"""

from __future__ import annotations

import base64
import binascii

from rules.ipfs import Cid, cid_version

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_V1_DAG_PB = b"\x01\x70"
_SHA256 = b"\x12\x20"  # the multihash of 32 bytes
_MULTIHASH_BYTES = 34


def spellings(cid: Cid) -> tuple[str, ...]:
    """Return `cid` and the other ways in which a row may write it: version 0, base32 and base58 of version 1.

    What is no well-formed CID has no other spelling.
    """
    known = _version_1(cid)
    if known is None:
        return (cid,)
    base32 = "b" + base64.b32encode(known).decode().lower().rstrip("=")
    spelt = [cid, base32, "z" + _to_base58(known)]
    multihash = known[len(_V1_DAG_PB) :]
    if known.startswith(_V1_DAG_PB + _SHA256) and len(multihash) == _MULTIHASH_BYTES:
        spelt.append(_to_base58(multihash))
    return tuple(dict.fromkeys(spelt))


def _version_1(cid: Cid) -> bytes | None:
    """Return the bytes of `cid` as version 1; None: it is not well formed."""
    if cid_version(cid) == 0:
        multihash = _from_base58(cid)
        is_whole = len(multihash) == _MULTIHASH_BYTES and multihash.startswith(_SHA256)
        return _V1_DAG_PB + multihash if is_whole else None
    text = cid[1:].upper()
    try:
        decoded = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        return None
    return decoded if decoded.startswith(b"\x01") else None


def _from_base58(text: str) -> bytes:
    value = 0
    for letter in text:
        value = value * 58 + _BASE58.index(letter)
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _to_base58(data: bytes) -> str:
    """Return `data`, which begins with no zero byte, in base58."""
    value, letters = int.from_bytes(data, "big"), ""
    while value:
        value, place = divmod(value, 58)
        letters = _BASE58[place] + letters
    return letters
