"""Hosts for Ray on one machine, so that each node has its own network and processes.

Where Linux lets us (as root, or anyone in a user namespace) a host is a network, a PID, a mount and a UTS
namespace. They belong to no name and no file: each ends with its first process, and that ends when the lab's
process does, however it ends. The hosts' network is none of this machine's: no interface, route or rule is
added to it, so nothing can collide with it, and several labs may use the same addresses. What this machine
must reach is forwarded from a port on 127.0.0.1.

Elsewhere a host is no more than an address on the loopback network.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lab.identity import started_ticks
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import LabError, clean_environment, wait_until
from lab.zfs import LET_GO

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
_NETWORK = "10.77.0"
_COMMAND_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 20.0
_NAMESPACES = ("--fork", "--kill-child", "--pid", "--net", "--mount", "--uts", "--mount-proc")
_AS_ROOT_THERE = ("--user", "--map-root-user")

# Shared memory of its own, and in it the place for Ray's files: a path that exists everywhere, and is short
# enough for the sockets in it. What is written there lies in the lab's directory.
_MOUNTS = f"""\
{LET_GO}
set -e
mount -t tmpfs tmpfs /dev/shm
mkdir /dev/shm/ray
[ -z "$1" ] || mount --bind "$1" /dev/shm/ray
ip link set lo up
shift
exec "$@"
"""
# The first process of a host. It takes in orphans, and lasts as long as the other end of its input: when
# it ends, the kernel ends all others of its host.
_INIT = """\
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
socket.sethostname(sys.argv[1])
os.write(1, b"up")
os.read(0, 1)
"""


class Hosts(Part):
    """Hosts by name, the first of them the head's.

    Args:
        directory: of their files.
        names: of the hosts.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory, self.names = directory.absolute(), tuple(names)

    @property
    @abstractmethod
    def are_apart(self) -> bool:
        """Whether a host sees no process of another's."""

    @abstractmethod
    def enter(self, name: str) -> tuple[str, ...]:
        """Return what to put before a command so that it runs on a host."""

    @abstractmethod
    def address(self, name: str) -> str:
        """Return a host's address, as the other hosts reach it."""

    @abstractmethod
    def temporary(self, name: str) -> str:
        """Return the directory for Ray's own files on a host, as seen from there."""

    @abstractmethod
    def port(self, usual: int) -> int:
        """Return a port that is free on every host: the `usual` one where hosts are apart."""

    @abstractmethod
    def reach(self, name: str, port: int) -> str:
        """Return where this machine reaches a port of a host, as `address:port`."""

    def run(self, name: str, *argv: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a command on a host and return what it printed.

        Raises:
            LabError: it failed; carries what it said.
        """
        return _done(*self.enter(name), *argv, timeout_s=timeout_s)


def hosts(directory: Path, names: Sequence[str]) -> Hosts:
    """Return hosts that are as much apart as this machine allows."""
    if why_not_apart():
        return LoopbackHosts(directory, names)
    return NamespaceHosts(directory, names, as_user=bool(_ways_in()))


@functools.cache
def why_not_apart() -> str:
    """Say why hosts cannot have namespaces of their own here; empty: they can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    missing = [name for name in ("unshare", "nsenter", "mount", "ip") if not shutil.which(name, path=_PATH)]
    if missing:
        return f"no {', '.join(missing)}: Debian's packages util-linux, mount and iproute2 have them"
    return "" if _ways_in() is not None else "this machine gives us no namespaces of our own"


@functools.cache
def _ways_in() -> tuple[str, ...] | None:
    """Return the options that `unshare` wants besides: those of root, or of anyone; None: none will do."""
    trial = (
        'ip link add br0 type bridge && ip link add eth1 type veth peer name eth2 && hostname "$0" && exit 0'
    )
    for options in ((), _AS_ROOT_THERE) if os.geteuid() == 0 else (_AS_ROOT_THERE,):
        argv = ("unshare", *options, *_NAMESPACES, "sh", "-c", _MOUNTS, "sh", "", "sh", "-c", trial)
        if _run(*argv).returncode == 0:
            return options
    return None


class NamespaceHosts(Hosts):
    """Hosts in namespaces, joined by a bridge in the first one's network.

    Args:
        directory: of their files.
        names: of the hosts.
        as_user: whether a user namespace is made around them, in which anyone may do what root may.
    """

    def __init__(self, directory: Path, names: Sequence[str], *, as_user: bool) -> None:
        super().__init__(directory, names)
        self._as_user = as_user
        self._running = ExitStack()
        self._inits: dict[str, int] = {}

    are_apart = True

    def start(self) -> None:
        """Make the hosts and join them.

        Raises:
            LabError: it cannot be done; nothing is left of it then.
        """
        try:
            for name in self.names:
                self._make(name)
            self._join()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of every host, and with them the hosts."""
        firsts = {pid: started_ticks(pid) for pid in self._inits.values()}
        self._running.close()
        self._inits.clear()
        # the kernel lets a host's first process go when all others of the host have gone
        wait_until(
            lambda: all(ticks is None or started_ticks(pid) != ticks for pid, ticks in firsts.items()),
            timeout_s=_END_TIMEOUT_S,
            what="the hosts' processes to end",
        )

    def enter(self, name: str) -> tuple[str, ...]:
        """Return the `nsenter` command that runs what follows on a host."""
        if name not in self._inits:
            raise LabError(f"there is no host {name} now; there are {sorted(self._inits)}")
        target = ("nsenter", "--target", str(self._inits[name]))
        return (*target, *self._as_root(), "--mount", "--uts", "--net", "--pid", "--")

    def address(self, name: str) -> str:
        """Return its address in the network that only the hosts have."""
        return f"{_NETWORK}.{self.names.index(name) + 1}"

    def temporary(self, name: str) -> str:
        """Return a path that is the same on every host, and leads to `<directory>/<name>`."""
        del name
        return "/dev/shm/ray"  # noqa: S108 - each host's own

    def port(self, usual: int) -> int:
        """Return `usual`: nobody else is there."""
        return usual

    def reach(self, name: str, port: int) -> str:
        """Forward a port of 127.0.0.1 to one of a host, as long as the hosts last."""
        here = free_port()
        self._running.callback(give_back, here)
        with socket.create_server((LOCALHOST, here), backlog=128) as listening:
            # a socket stays in the network it was made in: this process connects in the host's
            where = (str(listening.fileno()), self.address(name), str(port))
            forwarder = subprocess.Popen(
                (*self.enter(name), sys.executable, "-m", "lab.ray_forward", *where),
                pass_fds=(listening.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=self._environment(),
                cwd=Path(__file__).parents[1],
            )
        self._running.callback(forwarder.wait)
        self._running.callback(forwarder.kill)
        return f"{LOCALHOST}:{here}"

    def _make(self, name: str) -> None:
        files = self.directory / name
        files.mkdir(parents=True, exist_ok=True)
        unshare = (*self._around(), "unshare", *_NAMESPACES)
        init = (sys.executable, "-I", "-S", "-c", _INIT, name)
        made = subprocess.Popen(
            (*unshare, "sh", "-c", _MOUNTS, "sh", str(files), *init),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=self._environment(),
        )
        self._running.callback(_end, made)
        assert made.stdout  # noqa: S101 - see above
        assert made.stderr  # noqa: S101
        if made.stdout.read(2) != b"up":
            said = made.stderr.read().decode(errors="replace").strip()
            raise LabError(f"host {name} was not made: {said}")
        # `nsenter` has become `unshare`, whose only child is the host's first process
        children = Path(f"/proc/{made.pid}/task/{made.pid}/children")
        self._inits[name] = int(children.read_text().split()[0])

    def _join(self) -> None:
        head, *others = self.names
        self.run(head, "ip", "link", "add", "br0", "type", "bridge")
        self.run(head, "ip", "address", "add", f"{self.address(head)}/24", "dev", "br0")
        self.run(head, "ip", "link", "set", "br0", "up")
        target = ("nsenter", "--target", str(self._inits[head]), *self._as_root(), "--net")
        for number, name in enumerate(others):
            # without its PID namespace, so that the other end's process has the number that we know
            pair = f"link add to{number} type veth peer name eth0 netns {self._inits[name]}"
            _done(*target, "ip", *pair.split())
            self.run(head, "ip", "link", "set", f"to{number}", "master", "br0", "up")
            self.run(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            self.run(name, "ip", "link", "set", "eth0", "up")

    def _around(self) -> tuple[str, ...]:
        """Return the command that makes the user namespace around the hosts, or enters it."""
        if not self._as_user:
            return ()
        if not self._inits:
            return ("unshare", *_AS_ROOT_THERE)
        # all hosts belong to the first one's, or nobody could join their networks
        return ("nsenter", "--target", str(self._inits[self.names[0]]), *self._as_root(), "--")

    def _as_root(self) -> tuple[str, ...]:
        return ("--user", "--preserve-credentials") if self._as_user else ()

    def _environment(self) -> dict[str, str]:
        return clean_environment(self.directory, {"PATH": _PATH})


class LoopbackHosts(Hosts):
    """Addresses on the loopback network; every host sees all processes of this machine."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        super().__init__(directory, names)
        self._ports: list[int] = []
        self._temporary: Path | None = None

    are_apart = False

    def start(self) -> None:
        """Make their directory for temporary files, whose path is short enough for sockets in it."""
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-"))

    def stop(self) -> None:
        """Remove that directory again."""
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
        while self._ports:
            give_back(self._ports.pop())

    def enter(self, name: str) -> tuple[str, ...]:
        """Return nothing: it runs here."""
        del name
        return ()

    def address(self, name: str) -> str:
        """Return an address that Ray does not take for localhost, which it would replace by the machine's."""
        return f"127.0.0.{self.names.index(name) + 2}"

    def temporary(self, name: str) -> str:
        """Return a directory of this host's own below the one of them all."""
        if not self._temporary:
            raise LabError(f"host {name} is not started")
        return str(self._temporary / name)

    def port(self, usual: int) -> int:
        """Return a port that is free on this machine."""
        del usual
        self._ports.append(free_port())
        return self._ports[-1]

    def reach(self, name: str, port: int) -> str:
        """Return the address itself."""
        return f"{self.address(name)}:{port}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # its only child is a host's first process, which the kernel kills with it
    process.communicate()


def _done(*argv: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
    ended = _run(*argv, timeout_s=timeout_s)
    if ended.returncode != 0:
        raise LabError(f"{list(argv)} exited {ended.returncode}: {(ended.stderr or ended.stdout).strip()}")
    return ended.stdout


def _run(*argv: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": _PATH, "LC_ALL": "C"},
        timeout=timeout_s,
    )
