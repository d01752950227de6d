"""The files of a model's directory, one at a time: headers of safetensors, JSON, links."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from rules.errors import InvalidRequestError

_INDEX = ".safetensors.index.json"


class ModelArtefactError(InvalidRequestError):
    """A model's directory cannot be deployed as it stands; nothing was touched."""


class Entry(NamedTuple):
    """A tensor in a file: where its bytes begin and end, from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file: the header against the file's size, no tensor is read.

    Raises:
        ModelArtefactError: it is truncated, or its header does not fit its content.
    """
    try:
        # the library compares shapes, offsets and size; what it leaves out is where the tensors begin
        with safe_open(path, framework="numpy") as opened:
            names = set(opened.keys())
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        raise ModelArtefactError(
            f"{path} is no whole safetensors file of {_size_of(path)} bytes: {error}. Nothing was touched. "
            "Copy it once more, and compare its size with its source's."
        ) from error
    base = 8 + length
    return {
        name: Entry(said["dtype"], tuple(said["shape"]), *(base + at for at in said["data_offsets"]))
        for name, said in header.items()
        if name in names
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; a file that is not there is empty.

    Raises:
        ModelArtefactError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelArtefactError(
            f"{path} is no JSON: {error}. Nothing was touched. Copy it once more."
        ) from error
    if not isinstance(content, dict):
        raise ModelArtefactError(
            f"{path} holds no JSON object but a {type(content).__name__}. Nothing was touched. Copy it once "
            "more."
        )
    return content


def read_index(directory: Path) -> dict[str, str] | None:
    """Return tensor -> file, as a directory's index of safetensors says; None: there is no index.

    Raises:
        ModelArtefactError: there are several, or it says something else.
    """
    files = sorted(directory.glob(f"*{_INDEX}"))
    if not files:
        return None
    held = read_json(files[0]).get("weight_map")
    if len(files) > 1 or not isinstance(held, dict) or not all(isinstance(one, str) for one in held.values()):
        raise ModelArtefactError(
            f"{', '.join(map(str, files))}: there must be one index, whose weight_map says for each tensor "
            "its file. Nothing was touched. Copy the model once more."
        )
    return held


def all_files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path below `directory` and the state of each file and link in it; no link is followed.

    Raises:
        ModelArtefactError: a directory cannot be read, or there is a pipe, a socket or a device.
    """

    def fail(error: OSError) -> None:
        raise ModelArtefactError(f"{error}. Nothing was touched. Let the worker read the model.") from error

    for where, directories, files in os.walk(directory, onerror=fail):
        links = [name for name in directories if Path(where, name).is_symlink()]
        for name in (*links, *files):
            path = Path(where, name)
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode) and not stat.S_ISLNK(state.st_mode):
                raise ModelArtefactError(f"{path} is no file. Nothing was touched. Remove it.")
            yield str(path.relative_to(directory)), state


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
