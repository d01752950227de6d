"""A real btrfs in a file, mounted by a loop device, where root may do that."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.processes import LabError
from rules.backup import BtrfsSubvolume

_SIZE_BYTES = 256 << 20
_BUSY_PATIENCE_S = 15.0
_PAUSE_S = 0.2
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


@functools.cache
def why_not() -> str:
    """Say why no btrfs can be mounted here; empty: it can."""
    if not all(shutil.which(program, path=_PATH) for program in ("btrfs", "mkfs.btrfs")):
        return "no btrfs, mkfs.btrfs: install the Debian package btrfs-progs"
    if os.geteuid() != 0:
        return "mounting a btrfs needs root"
    with tempfile.TemporaryDirectory(prefix="sovereign-btrfs-") as directory:
        try:
            with LabBtrfs(Path(directory)):
                return ""
        except LabError as error:
            return f"no btrfs can be mounted by a loop device: {error}"


class LabBtrfs:
    """A btrfs mounted at `directory/btrfs`, by `with`; nothing of it is left behind.

    Args:
        directory: holds its file and its mountpoint.
    """

    def __init__(self, directory: Path) -> None:
        self.image, self.mountpoint = directory / "btrfs.img", directory / "btrfs"

    def __enter__(self) -> Self:
        self.mountpoint.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        try:
            done("mkfs.btrfs", "-q", str(self.image))
            done("mount", "-t", "btrfs", "-o", "loop", str(self.image), str(self.mountpoint))
        except LabError:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + _BUSY_PATIENCE_S
        while True:
            try:
                done("umount", str(self.mountpoint))
                break
            except LabError as failed:
                if "busy" not in str(failed) or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_S)
        self._remove()

    def create(self, name: str) -> BtrfsSubvolume:
        """Make a subvolume and return it, with a directory of its own for its snapshots."""
        path = self.mountpoint / name
        done("btrfs", "subvolume", "create", str(path))
        return BtrfsSubvolume(subvolume=str(path), snapshots=str(self.mountpoint / f"{name}-snapshots"))

    def _remove(self) -> None:
        self.image.unlink()
        self.mountpoint.rmdir()


def done(*argv: str) -> str:
    """Run a program and return what it prints.

    Raises:
        LabError: it failed.
    """
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    finished = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise LabError(f"{argv} exited {finished.returncode}: {finished.stderr.strip()}")
    return finished.stdout
