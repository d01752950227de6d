"""Digests of a model: of its directory, and of each tensor as a server gives it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tasks.model_reading import Entry, ModelArtefactError, all_files, read_header, read_index

_UNNAMEABLE = re.compile(r"[\n\r\\]")  # sha256sum writes such a name otherwise than it is
_CHUNK_BYTES = 4 << 20
_CHECKSUM_DIGITS = 16
_READERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")
R = TypeVar("R")


def digest(directory: Path) -> str:
    """Return the digest of all files with their paths, as this prints it on any host.

    `(cd DIR && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)`

    Raises:
        ModelArtefactError: a file has a name that sha256sum would write otherwise, or is none (a pipe, a
            device), a link leads outside or nowhere, there is no file, or one cannot be read.
    """
    names = []
    for name, state in all_files(directory):
        if _UNNAMEABLE.search(name):
            raise ModelArtefactError(
                f"{directory} holds the name {name!r}, with a line break or a backslash in it. Nothing was "
                "touched. Rename it."
            )
        if stat.S_ISLNK(state.st_mode):
            _refuse_strange_link(directory, name)
        else:
            names.append(name)
    if not names:
        raise ModelArtefactError(f"{directory} holds no file. Nothing was touched.")
    paths = sorted(os.fsencode(f"./{name}") for name in names)
    sums = _in_threads(lambda path: file_digest(directory / os.fsdecode(path)), paths)
    lines = (one.encode() + b"  " + path + b"\n" for path, one in zip(paths, sums, strict=True))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _refuse_strange_link(directory: Path, name: str) -> None:
    """Refuse a link that means something else, or nothing, once the directory is copied to a host."""
    path = directory / name
    target = os.readlink(path)  # noqa: PTH115
    inside = path.resolve().is_relative_to(directory.resolve())
    if os.path.isabs(target) or not inside or not path.exists():  # noqa: PTH117
        raise ModelArtefactError(
            f"{path} is a link to {target}, which leads outside or nowhere: a copy would lack the file. "
            "Nothing was touched. Replace it with the file (cp -rL)."
        )


def tensor_checksums(directory: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Return tensor -> the first 16 digits of the SHA-256 of its bytes, as SGLang's /weights_checker does.

    That of a running server is the same for tensors that it keeps as they are: neither joined nor cut up,
    of the same type and not quantized.

    Args:
        directory: the model's, in safetensors.
        names: whose; None: all.

    Raises:
        ModelArtefactError: a file cannot be read, or holds none of a name.
    """
    index = read_index(directory)
    files = sorted(directory.glob("*.safetensors"))
    if index is not None:
        files = [file for file in files if file.name in index.values()]
    there = {name: (file, entry) for file in files for name, entry in read_header(file).items()}
    wanted = sorted(there if names is None else set(names))
    if missing := [name for name in wanted if name not in there]:
        raise ModelArtefactError(f"{directory} holds no tensor {', '.join(missing[:5])}.")
    sums = _in_threads(lambda name: _range_digest(*there[name]), wanted)
    return {name: one[:_CHECKSUM_DIGITS] for name, one in zip(wanted, sums, strict=True)}


def _in_threads(work: Callable[[T], R], items: Collection[T]) -> list[R]:
    """Return what each item comes to, in their order; hashing lets other threads run."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(work, items))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        ModelArtefactError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelArtefactError(f"{error}. Nothing was touched. Let the worker read the model.") from error


def _range_digest(path: Path, entry: Entry) -> str:
    summed, left = hashlib.sha256(), entry.end - entry.start
    try:
        with path.open("rb") as file:
            file.seek(entry.start)
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelArtefactError(f"{path} became shorter while it was read. Copy it once more.")
                summed.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise ModelArtefactError(f"{path} cannot be read: {error}.") from error
    return summed.hexdigest()
