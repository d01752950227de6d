"""Content as it lies on the worker's host: its files, their digests, and whether it can be added as it is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rules.errors import InvalidRequestError
from rules.ipfs import ContentFile

_READERS = min(4, os.cpu_count() or 1)
# sha256sum writes a line break or a backslash otherwise than it is
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f\\]")


class ContentFilesError(InvalidRequestError):
    """Content cannot be added as it stands; nothing was touched."""


def read_files(path: str) -> tuple[ContentFile, ...]:
    """Return the files of the content at `path`, a directory or one file, each with its SHA-256; sorted.

    Hidden files count like all others. Empty directories do not: no digest of files knows them.

    Raises:
        ContentFilesError: there is no file, one cannot be read, or something is not a file.
    """
    listed = listed_files(path)
    with ThreadPoolExecutor(_READERS) as pool:  # hashing lets other threads run
        return tuple(pool.map(lambda one: _read(*one), listed))


def listed_files(path: str) -> tuple[tuple[str, Path], ...]:
    """Return each file's path below the content at `path`, and where it lies; sorted by the former's bytes.

    The files of a directory follow each other in that order. For one file the former is empty.

    Raises:
        ContentFilesError: see `read_files`.
    """
    top = Path(path)
    try:
        state = top.stat()
    except OSError as error:
        raise _unreadable(error) from error
    if stat.S_ISREG(state.st_mode):
        return (("", top),)
    if not stat.S_ISDIR(state.st_mode):
        raise ContentFilesError(f"{path} is neither a file nor a directory. Nothing was touched.")
    found = sorted(_below(top), key=lambda one: os.fsencode(one[0]))
    if not found:
        raise ContentFilesError(f"{path} holds no file. Nothing was touched.")
    return tuple(found)


def content_digest(path: str, files: Iterable[ContentFile]) -> str:
    """Return the digest of the content at `path`, as `ContentFiles.sha256` says that any host prints it.

    Raises:
        ContentFilesError: there are no files.
    """
    known = tuple(files)
    if not known:
        raise ContentFilesError(f"{path} holds no file. Nothing was touched.")
    if known[0].path == "":
        return known[0].sha256
    ordered = sorted(known, key=lambda file: file.path.encode())
    return hashlib.sha256("".join(f"{file.sha256}  ./{file.path}\n" for file in ordered).encode()).hexdigest()


def _below(top: Path) -> list[tuple[str, Path]]:
    def fail(error: OSError) -> None:
        raise _unreadable(error) from error

    found = []
    for where, directories, names in os.walk(top, onerror=fail):
        links = [name for name in directories if Path(where, name).is_symlink()]
        for name in (*links, *names):
            file = Path(where, name)
            relative = str(file.relative_to(top))
            _refuse_strange(file, relative)
            found.append((relative, file))
    return found


def _refuse_strange(file: Path, relative: str) -> None:
    try:
        mode = file.lstat().st_mode
    except OSError as error:
        raise _unreadable(error) from error
    if stat.S_ISLNK(mode):
        raise ContentFilesError(
            f"{file} is a link: the digest of the files does not cover where it leads. Nothing was touched. "
            "Replace it with the file (cp -rL)."
        )
    if not stat.S_ISREG(mode):
        raise ContentFilesError(f"{file} is no file. Nothing was touched. Remove it.")
    if _UNNAMEABLE.search(relative) or relative.encode(errors="replace") != os.fsencode(relative):
        raise ContentFilesError(
            f"The name {relative!r} has a control character or a backslash, or is not UTF-8. "
            "Nothing was touched. Rename it."
        )


def _read(path: str, file: Path) -> ContentFile:
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return ContentFile(path=path, size_bytes=opened.tell(), sha256=digest)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> ContentFilesError:
    return ContentFilesError(f"{error}. Nothing was touched. Let the worker read the content.")
