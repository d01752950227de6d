"""A model's tokenizer, loaded for real where a library of ours can, and what is said of it beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models

from rules.model_facts import TokenizerFacts
from tasks.model_digest import file_digest
from tasks.model_reading import read_json

#: In the order in which a server prefers them.
_KINDS = ("tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json", "*.tiktoken", "vocab.txt")
_BELONGS = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|chat_template.*|vocab\.\w+|merges\.txt"
    r"|tekken\.json|.*\.tiktoken"
)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
_CONTROL = 3  # sentencepiece's type of the pieces that are no text


class Vocabulary(NamedTuple):
    """What a tokenizer knows: token -> id. `size` is the largest id + 1, of those that are only said too."""

    ids: Mapping[str, int]
    special: Mapping[str, int]
    size: int | None
    fault: str = ""


def read_tokenizer(directory: Path, ids: Collection[int]) -> TokenizerFacts | None:
    """Return what the model's tokenizer is; None: there is none.

    Args:
        directory: the model's.
        ids: those whose meaning is asked for.

    Raises:
        ModelArtefactError: a file about it cannot be read.
    """
    files = sorted(path for path in directory.iterdir() if path.is_file() and _BELONGS.fullmatch(path.name))
    kind = next((path for pattern in _KINDS for path in files if path.match(pattern)), None)
    if kind is None:
        return None
    said = read_json(directory / "tokenizer_config.json")
    mapped = read_json(directory / "special_tokens_map.json")
    eos, bos = (_content(said.get(key)) or _content(mapped.get(key)) for key in ("eos_token", "bos_token"))
    summed = _digest(files)
    return facts_of(kind.name, _vocabulary(kind, said), ids, (eos, bos), sha256=summed)


def facts_of(
    kind: str,
    vocabulary: Vocabulary,
    ids: Collection[int],
    markers: tuple[str | None, str | None],
    *,
    sha256: str,
) -> TokenizerFacts:
    """Return the facts; `markers` are what ends an answer and what begins a text."""
    tokens = {number: token for token, number in vocabulary.ids.items()}
    asked = {*ids, *(vocabulary.ids[token] for token in markers if token and token in vocabulary.ids)}
    return TokenizerFacts(
        kind=kind,
        vocab_size=vocabulary.size,
        special_ids=dict(vocabulary.special),
        meanings={number: tokens[number] for number in sorted(asked) if number in tokens},
        eos=markers[0],
        bos=markers[1],
        sha256=sha256,
        fault=vocabulary.fault,
    )


def _content(token: object) -> str | None:
    """Return a token that is written as text, or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _digest(files: Collection[Path]) -> str:
    lines = (f"{file_digest(path)}  {path.name}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# --- each kind -------------------------------------------------------------------------------------


def _vocabulary(path: Path, said: Mapping[str, Any]) -> Vocabulary:
    match path.name:
        case "tokenizer.json":
            return _loaded(path)
        case "vocab.json":
            return _byte_pairs(path, said)
        case "tokenizer.model":
            return _sentencepiece(path, said)
        case _:
            return Vocabulary({}, {}, None)


def _loaded(path: Path) -> Vocabulary:
    """Return what the library that servers use makes of tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  # the library raises no other
        return Vocabulary({}, {}, None, str(error))
    ids = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    special = {
        token.content: number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    declared = {one["content"]: one["id"] for one in read_json(path).get("added_tokens") or ()}
    # an added token whose id leaves a gap silently gets the next free one
    moved = [
        f"token {token!r} has id {number} in the file, and {added.get(token)} once it is loaded"
        for token, number in declared.items()
        if added.get(token) != number
    ]
    return Vocabulary(ids, special, _size({**ids, **declared}), "; ".join(moved[:3]))


def _byte_pairs(path: Path, said: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of vocab.json and merges.txt, and the tokens added to it."""
    merges = path.with_name("merges.txt")
    if not merges.exists():
        return Vocabulary({}, {}, None, "merges.txt is not there")
    try:
        models.BPE.from_file(str(path), str(merges))
    except Exception as error:  # noqa: BLE001  # the library raises no other
        return Vocabulary({}, {}, None, str(error))
    return _with_added(path.parent, said, read_json(path), {})


def _with_added(
    directory: Path, said: Mapping[str, Any], ids: Mapping[str, int], special: Mapping[str, int]
) -> Vocabulary:
    beside = read_json(directory / "added_tokens.json")
    added = {token: number for token, number in beside.items() if type(number) is int}
    decoder = said.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        numbered = {number: _content(one) for number, one in decoder.items() if number.isdecimal()}
        added |= {token: int(number) for number, token in numbered.items() if token}
    whole = {**ids, **added}
    return Vocabulary(whole, {**special, **added}, _size(whole))


def _size(ids: Mapping[str, int]) -> int:
    return max(ids.values(), default=-1) + 1


def _sentencepiece(path: Path, said: Mapping[str, Any]) -> Vocabulary:
    """Return the pieces of a sentencepiece model, by the few fields of it that matter here."""
    content = path.read_bytes()
    if _TIKTOKEN.match(content):
        return Vocabulary({}, {}, None)
    ids: dict[str, int] = {}
    special: dict[str, int] = {}
    try:
        pieces = [value for field, value in _fields(content) if field == 1 and isinstance(value, bytes)]
        for number, piece in enumerate(pieces):
            parts = dict(_fields(piece))
            token = bytes(parts[1]).decode()
            ids[token] = number
            if parts.get(3) == _CONTROL:
                special[token] = number
    except (IndexError, KeyError, TypeError, ValueError) as error:
        return Vocabulary({}, {}, None, f"it is no sentencepiece model ({error})")
    if not ids:
        return Vocabulary({}, {}, None, "it holds no pieces")
    return _with_added(path.parent, said, ids, special)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a protobuf message: its number, and a number or bytes.

    Raises:
        IndexError: it ends in the middle.
        ValueError: it is none.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case other:
                raise ValueError(f"wire type {other}")
        if at + length > len(message):
            raise IndexError("it ends in the middle of a field")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004  # the highest bit says that more follows
            return value, at
