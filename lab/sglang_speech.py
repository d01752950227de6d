"""What a tiny Llama of `lab.model` says, worked out with nothing but the standard library.

The simulator's answers are thus the real server's for the same weights, token by token: attention and MLP
of these models add nothing that could be heard, so they are left out. Any other model says what its bytes
hash to.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import math
import operator
import re
import sys
from pathlib import Path

from lab.model_weights import Tensors

_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
#: How GPT-2 cuts text before pairs are merged, as far as `re` can say it.
_PIECES = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


class Tokenizer:
    """A byte-level BPE tokenizer, from a tokenizer.json.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON.
        KeyError: it is no byte-level BPE tokenizer.
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self._ids: dict[str, int] = content["model"]["vocab"]
        pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"]["merges"])
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
        self._letters = _letters()
        self._bytes = {letter: byte for byte, letter in self._letters.items()}
        self._special = {one["content"]: int(one["id"]) for one in content["added_tokens"]}
        self._texts = {number: text for text, number in self._ids.items()}
        self._specials = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        tokens, at = [], 0
        for found in self._specials.finditer(text):
            tokens += self._encode_plain(text[at : found.start()])
            tokens.append(self._special[found.group()])
            at = found.end()
        return tokens + self._encode_plain(text[at:])

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, without the special ones."""
        special = set(self._special.values())
        letters = "".join(self._texts.get(token, "") for token in tokens if token not in special)
        return bytes(self._bytes[letter] for letter in letters).decode(errors="replace")

    def _encode_plain(self, text: str) -> list[int]:
        tokens = []
        for piece in _PIECES.findall(text):
            parts = [self._letters[byte] for byte in piece.encode()]
            while len(parts) > 1:
                pairs = list(itertools.pairwise(parts))
                best = min(range(len(pairs)), key=lambda at: self._ranks.get(pairs[at], math.inf))
                if pairs[best] not in self._ranks:
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            tokens += [self._ids[part] for part in parts if part in self._ids]
        return tokens


class Speaker:
    """Which token follows which, by the weights."""

    def __init__(self, tensors: Tensors) -> None:
        self._follows: dict[int, int] = {}
        embedding, head, norm = (tensors.get(name) for name in (_EMBEDDING, _HEAD, _NORM))
        self._width = embedding[1][-1] if embedding else 0
        # a model with tied embeddings has no head of its own
        self._embedding, self._head, self._norm = (
            _floats(one[2]) if one and one[0] == "BF16" else None
            for one in (embedding, head or embedding, norm)
        )
        self._hash = b"" if self._embedding else _hash(tensors)

    def after(self, token: int) -> int:
        """Return the token that the model says after this one."""
        if token not in self._follows:
            self._follows[token] = self._best_after(token)
        return self._follows[token]

    def _best_after(self, token: int) -> int:
        if not (self._embedding and self._head and self._norm):
            return hashlib.sha256(self._hash + str(token).encode()).digest()[0]
        width = self._width
        embedded = self._embedding[token * width : (token + 1) * width]
        scale = math.sqrt(sum(x * x for x in embedded) / width) or 1.0
        normed = [x / scale * weight for x, weight in zip(embedded, self._norm, strict=True)]
        rows = (self._head[at : at + width] for at in range(0, len(self._head), width))
        logits = [sum(map(operator.mul, row, normed)) for row in rows]
        return max(range(len(logits)), key=logits.__getitem__)


def _floats(bf16: bytes) -> array.array[float]:
    """Widen bfloat16, which is the upper half of float32."""
    wide = bytearray(2 * len(bf16))
    wide[2::4], wide[3::4] = bf16[0::2], bf16[1::2]
    numbers = array.array("f", bytes(wide))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _hash(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name][2])
    return digest.digest()


def _letters() -> dict[int, str]:
    """Return GPT-2's printable letter for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + at) for at, byte in enumerate(others)}
