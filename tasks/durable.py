"""Files that survive a power cut: replaced whole, or grown by whole lines."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Make `path` a file of that `content`, atomically and durably; its directory is made when there is none.

    Raises:
        OSError: it could not; an old file is in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        with hidden.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync_directory(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Add `line`, which ends with a newline, to `path`; a line that a crash has torn is cut before."""
    is_new = not path.exists()
    with path.open("ab+") as file:
        file.seek(0)
        known = file.read()
        file.truncate(known.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Put the names in `directory` on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
