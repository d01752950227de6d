"""A host with a real systemd: a container over this machine's own files, reached by ssh like any other.

It needs root, systemd-nspawn and OpenSSH. What it writes goes with it, except below its own directory, and
two empty cgroups of nspawn's.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.identity import MARK
from lab.part import Part
from lab.ports import give_back, is_listening
from lab.processes import LabError, Process, start, wait_until
from lab.sshd import LabSshd
from lab.zfs import LET_GO
from rules.hosts import HostAddress

_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 30.0
#: SIGRTMIN+3, which systemd takes as "power off"; nspawn sends it when it gets SIGTERM itself.
_POWER_OFF = "SIGRTMIN+3"
#: Where the container's systemd looks for the units that tests write.
_UNITS = "/run/systemd/system"
#: This machine's own units, which would fail in it, or take what the machine has only once.
_MASKED = ("zfs-fuse.service",)
_BOOTED = ("running", "degraded")

# nspawn refuses to boot from / itself, and takes the same files under another name. It is mounted in a
# namespace of its own, as is the /run where nspawn keeps its notes: both go with it, however it ends.
_BOOT = LET_GO + '; mount --bind / "$1" && shift && mount -t tmpfs tmpfs /run && exec systemd-nspawn "$@"'


class LabSystemd(Part):
    """A booted systemd in `directory`, which the container sees too; the network is this machine's."""

    def __init__(self, directory: Path, *, name: str = "lab-systemd") -> None:
        self.directory, self.name = directory.absolute(), name
        self._process: Process | None = None
        self._sshd: LabSshd | None = None
        self._running = ExitStack()

    @property
    def host(self) -> HostAddress:
        """The address that deployments use."""
        if not self._sshd:
            raise LabError(f"{self.name} is not started")
        return self._sshd.host

    def start(self) -> None:
        """Boot it, and wait until it is up and lets us in.

        Raises:
            LabError: it does not come up; carries the end of its log.
        """
        root, units = self.directory / "root", self.directory / "units"
        for directory in (root, units):
            directory.mkdir(parents=True, exist_ok=True)
        for unit in _MASKED:
            (units / unit).unlink(missing_ok=True)
            (units / unit).symlink_to("/dev/null")
        try:
            self._running.enter_context(_alone())
            self._process = start(
                "systemd-nspawn",
                ["unshare", "--mount", "sh", "-c", _BOOT, "sh", str(root), *self._options(root, units)],
                log=self.directory / "systemd.log",
                env=os.environ,
            )
            self._running.callback(self._process.stop, timeout_s=_START_TIMEOUT_S)
            wait_until(self._is_up, timeout_s=_START_TIMEOUT_S, what="systemd", process=self._process)
            self._start_sshd()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Power it off; nothing of it is left running or mounted."""
        self._running.close()
        self._process = self._sshd = None

    def run(self, *argv: str) -> str:
        """Run a command in it, without ssh, and return what it said.

        Raises:
            LabError: it failed; carries what it said.
        """
        finished = self._finish(*argv)
        if finished.returncode != 0:
            raise LabError(f"{list(argv)} in {self.name} exited {finished.returncode}: {finished.stderr}")
        return finished.stdout

    def add_unit(self, unit: str, text: str) -> Callable[[], None]:
        """Make a unit known and return what removes it again, stopped."""
        file = self.directory / "units" / unit
        file.write_text(text)
        self.run("systemctl", "daemon-reload")

        def remove() -> None:
            self.run("systemctl", "stop", unit)
            file.unlink()
            self.run("systemctl", "daemon-reload")

        return remove

    def _start_sshd(self) -> None:
        self._sshd = LabSshd(self.directory / "sshd", name=self.name)
        self._running.callback(give_back, self._sshd.port)
        command, port = shlex.join(self._sshd.prepare()), self._sshd.port
        self.add_unit("lab-sshd.service", f"[Service]\nRuntimeDirectory=sshd\nExecStart={command}\n")
        self.run("systemctl", "start", "lab-sshd.service")
        wait_until(lambda: is_listening(port), timeout_s=_START_TIMEOUT_S, what="sshd in the container")

    def _options(self, root: Path, units: Path) -> tuple[str, ...]:
        return (
            *("--quiet", "--boot", f"--directory={root}", "--volatile=overlay", f"--machine={self.name}"),
            *("--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"),
            # its /tmp is its own: what must be seen there is named, without what is mounted below it
            *(f"--bind={self.directory}:{self.directory}:norbind", f"--bind={units}:{_UNITS}"),
            # whoever looks for what we left finds systemd by it, also when nspawn was killed
            *(f"--setenv={MARK}={self.directory}", f"--kill-signal={_POWER_OFF}"),
            "systemd.unit=basic.target",
        )

    def _is_up(self) -> bool:
        return bool(self._init()) and self._finish("systemctl", "is-system-running").stdout.strip() in _BOOTED

    def _init(self) -> str:
        """Return the pid, as this machine sees it, of the container's first process; empty: none yet."""
        if not self._process:
            raise LabError(f"{self.name} is not started")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return (children.read_text().split() or [""])[0]

    def _inside(self) -> tuple[str, ...]:
        namespaces = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
        return ("nsenter", f"--target={self._init()}", *namespaces)

    def _finish(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._inside(), "--", *argv],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other one runs: nspawn gives those that one session starts the same cgroup."""
    cgroups = os.open("/sys/fs/cgroup", os.O_RDONLY)
    try:
        fcntl.flock(cgroups, fcntl.LOCK_EX)
        yield
    finally:
        os.close(cgroups)


def forbidden() -> str | None:
    """Return why this process may not boot one, in words; None: it may."""
    if os.geteuid() != 0:
        return "systemd in a container needs root"
    tried = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    return None if tried.returncode == 0 else "this process may not mount: systemd in a container needs that"
