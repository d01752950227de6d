"""A real ZFS pool in a file, by zfs-fuse: one daemon a machine, shared in turn by all who want it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.identity import MARK, started_ticks
from lab.processes import LabError, Process, clean_environment, start, wait_until
from rules.backup import ZfsDataset

_SIZE_BYTES = 1 << 30
_START_TIMEOUT_S = 20.0
_TURN_TIMEOUT_S = 600.0
_BUSY_PATIENCE_S = 5.0
#: For a shell in a mount namespace of its own: a file system that is mounted there too stays busy here.
LET_GO = "umount -a -l -t fuse.zfs 2>/dev/null || true"
_PAUSE_S = 0.2
_KERNEL_STATISTICS = Path("/zfs-kstat")
#: What the daemon makes beside its pools.
_TRACES = (Path("/var/run/zfs"), Path("/var/lock/zfs"))
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def why_not() -> str:
    """Say why zfs-fuse cannot run here; empty: it can."""
    if not shutil.which("zfs-fuse", path=_PATH):
        return "no zfs-fuse: install the Debian package zfs-fuse"
    if os.geteuid() != 0:
        return "zfs-fuse needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"zfs-fuse needs /dev/fuse: {error.strerror}"
    if Path("/dev/zfs").exists():
        return "the kernel has a ZFS of its own, which zfs-fuse must not stand beside"
    return ""


class LabZfs:
    """A pool in `directory`, mounted there, by `with`; nothing of it is left behind.

    Who comes while another one has the machine's ZFS waits for its turn.

    Args:
        directory: holds the pool's file and its mountpoints.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.pool = f"lab{secrets.token_hex(4)}"
        self._turn = socket.socket(socket.AF_UNIX)
        self._daemon: Process | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        self._take_turn()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create(self, name: str, *, recursive: bool = False, options: tuple[str, ...] = ()) -> ZfsDataset:
        """Make a file system `<pool>/<name>` and return it.

        Args:
            name: its name in the pool.
            recursive: whether its snapshots are to hold those below it.
            options: such as `-o`, `recordsize=8K`.
        """
        self.zfs("create", *options, f"{self.pool}/{name}")
        return ZfsDataset(
            dataset=f"{self.pool}/{name}",
            recursive=recursive,
            read_directory=str(self.directory / "reading"),
        )

    def mountpoint(self, dataset: ZfsDataset) -> Path:
        """Return where a dataset is mounted."""
        return self.directory / dataset.dataset

    def zfs(self, *words: str) -> str:
        """Run `zfs` and return what it prints.

        Raises:
            LabError: it failed.
        """
        return _done(("zfs", *words))

    def stop(self) -> None:
        """Destroy the pool, end the daemon if it is ours, and let the next one take its turn."""
        try:
            self._destroy_pool()
        finally:
            self._stop_daemon()
            (self.directory / f"{self.pool}.img").unlink(missing_ok=True)
            self._turn.close()

    def _take_turn(self) -> None:
        # a name without a file, which the kernel gives back when its process ends however it ends
        deadline = time.monotonic() + _TURN_TIMEOUT_S
        while True:
            try:
                return self._turn.bind("\0sovereign-deploy-lab-zfs")
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"another lab has zfs-fuse for {_TURN_TIMEOUT_S:g} s already") from error
            time.sleep(_PAUSE_S)

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        _end_orphans()
        if _run(("zpool", "list")).returncode:
            self._made = [path for path in (*_TRACES, _KERNEL_STATISTICS) if not path.exists()]
            self._daemon = start(
                "zfs-fuse",
                [str(shutil.which("zfs-fuse", path=_PATH)), "-n"],
                log=self.directory / "zfs-fuse.log",
                env=clean_environment(self.directory, {"PATH": _PATH}),
                cwd=Path("/"),
            )
            wait_until(
                lambda: _run(("zpool", "list")).returncode == 0,
                timeout_s=_START_TIMEOUT_S,
                what="zfs-fuse",
                process=self._daemon,
            )
        image = self.directory / f"{self.pool}.img"
        with image.open("wb") as file:
            file.truncate(_SIZE_BYTES)
        place = str(self.directory / self.pool)
        _done(("zpool", "create", "-o", "cachefile=none", "-m", place, self.pool, str(image)))

    def _destroy_pool(self) -> None:
        deadline = time.monotonic() + _BUSY_PATIENCE_S
        while (destroyed := _run(("zpool", "destroy", "-f", self.pool))).returncode:
            if "no such pool" in destroyed.stderr or not self._daemon_answers():
                break
            if time.monotonic() > deadline:
                if not self._daemon:
                    raise LabError(f"pool {self.pool} cannot be destroyed: {destroyed.stderr.strip()}")
                break  # a container that was started meanwhile has our mounts too: it ends with the daemon
            time.sleep(_PAUSE_S)
        _unmount_pools(below=self.directory)
        shutil.rmtree(self.directory / self.pool, ignore_errors=True)

    def _daemon_answers(self) -> bool:
        return _run(("zpool", "list")).returncode == 0

    def _stop_daemon(self) -> None:
        if not self._daemon:
            return
        self._daemon.stop()
        self._daemon = None
        _unmount_statistics()
        for path in self._made:
            shutil.rmtree(path, ignore_errors=True)


def _end_orphans() -> None:
    """End a daemon that a killed lab left: we have the turn, and it bears a lab's mark."""
    for entry in Path("/proc").iterdir():
        try:
            is_ours = (
                entry.name.isdigit()
                and (entry / "comm").read_text().strip() == "zfs-fuse"
                and f"{MARK}=".encode() in (entry / "environ").read_bytes()
            )
        except OSError:
            continue
        if is_ours:
            Process("zfs-fuse", int(entry.name), started_ticks(int(entry.name)) or 0, "").stop()
            _unmount_pools(below=Path("/"))
            _unmount_statistics()


def _unmount_pools(*, below: Path) -> None:
    """Unmount what a daemon that has ended, or will, leaves mounted."""
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for row in reversed(rows):
        if row[2] == "fuse.zfs" and Path(row[1]).is_relative_to(below):
            _run(("umount", "-l", row[1]))


def _unmount_statistics() -> None:
    if os.path.ismount(_KERNEL_STATISTICS):
        _run(("umount", "-l", str(_KERNEL_STATISTICS)))


def _done(argv: tuple[str, ...]) -> str:
    finished = _run(argv)
    if finished.returncode:
        raise LabError(f"{argv} exited {finished.returncode}: {finished.stderr.strip()}")
    return finished.stdout


def _run(argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    return subprocess.run(argv, check=False, capture_output=True, text=True, env=environment, cwd="/")
