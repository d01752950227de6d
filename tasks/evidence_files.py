"""Read evidence from files on the worker's host: bounded in size, and with no secret in any error."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from rules.errors import DeployError
from rules.evidence.foreign import in_words
from rules.evidence.tree import parse_dotenv, parse_ini, parse_json, parse_toml

#: A test report of a hundred thousand tests is half of it.
MOST_BYTES = 32 << 20
#: Of keys and values: PyYAML takes five seconds for as much.
MOST_TREE_BYTES = 1 << 20


class BadEvidenceError(DeployError):
    """A piece of evidence cannot be read; says which and why. Nothing was changed."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}.")


def content(path: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        BadEvidenceError: it is missing, unreadable, no plain file, or larger than `most_bytes`.
    """
    try:
        # a pipe in its place would be waited for without end
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise BadEvidenceError(path, "is no plain file")
            # some plain files have no size and no end, such as those of /proc
            read = b"" if state.st_size > most_bytes else file.read(most_bytes + 1)
    except OSError as error:
        raise BadEvidenceError(path, f"cannot be read: {error.strerror}") from error
    if max(len(read), state.st_size) > most_bytes:
        raise BadEvidenceError(path, f"is larger than {most_bytes >> 20} MiB")
    return read


def text(path: str, *, most_bytes: int = MOST_BYTES) -> str:
    """Return a file as UTF-8 text.

    Raises:
        BadEvidenceError: it cannot be read, or is not UTF-8.
    """
    try:
        return content(path, most_bytes=most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadEvidenceError(path, "is not UTF-8 text") from None


def trees(path: str) -> list[Any]:
    """Return the documents in a file of keys and values, at least one, several only in YAML.

    Its name tells its format: `.yaml`, `.json`, `.toml`, `.ini`, `.env`.

    Raises:
        BadEvidenceError: it cannot be read or parsed, has a key twice, or its format is not known. No value
            is in its words or in what caused it.
    """
    written = text(path, most_bytes=MOST_TREE_BYTES)
    name = Path(path).name
    try:
        match Path(path).suffix.lower():
            case ".json":
                return [parse_json(written)]
            case ".yaml" | ".yml":
                return _yaml(written)
            case ".toml":
                return [parse_toml(written)]
            case ".ini" | ".cfg" | ".conf":
                return [parse_ini(written)]
            case suffix if suffix == ".env" or name == ".env" or name.startswith(".env."):
                return [parse_dotenv(written)]
    except (ValueError, RecursionError) as error:
        raise BadEvidenceError(path, f"cannot be parsed: {_why(error)}") from None
    raise BadEvidenceError(path, "is in no known format: YAML, JSON, TOML, INI or dotenv, by its name")


def unreadable(path: str, error: Exception) -> BadEvidenceError:
    """Return in our words that a file does not hold what it should."""
    return BadEvidenceError(path, f"does not hold what it should: {_why(error)}")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return in_words(error) if isinstance(error, ValueError) else type(error).__name__


class _Loader(yaml.SafeLoader):
    """YAML with plain data only, in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - as the parent has it
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            raise ValueError(f"key {twice} stands there twice, at line {node.start_mark.line + 1} and below")
        return super().construct_mapping(node, deep=deep)


def _yaml(written: str) -> list[Any]:
    try:
        documents = list(yaml.load_all(written, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        # its text quotes the lines around
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"no YAML: {error.problem} at line {line}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {type(error).__name__}") from None
    if not documents:
        raise ValueError("it is empty")
    return documents
