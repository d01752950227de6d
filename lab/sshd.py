"""A real OpenSSH server on loopback, with keys of its own, to reach this machine like a remote one."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.ports import free_port, give_back, is_listening
from lab.processes import LabError, Process, start, wait_until
from rules.hosts import HostAddress

_START_TIMEOUT_S = 10.0
#: sshd wants it when root starts it; Debian's unit makes it at boot.
_PRIVILEGE_SEPARATION = Path("/run/sshd")

_CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
# the keys lie below a temporary directory, which others may write to
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
MaxStartups 100
# the post-quantum exchange would take a third of each connection's time
KexAlgorithms curve25519-sha256
# bash reads no .bashrc in what it takes for a shell within a shell: a user's may take long, or wait for a
# lock that a session killed in the middle has left
SetEnv SHLVL=1
"""


class LabSshd:
    """An sshd in `directory` that lets this user in by a throw-away key; `host` is its address.

    Args:
        directory: its keys, configuration and log.
        name: what deployments call the host.
    """

    def __init__(self, directory: Path, *, name: str = "lab-remote") -> None:
        self.directory, self.name = directory.absolute(), name
        self.port = free_port()
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        give_back(self.port)

    @property
    def host(self) -> HostAddress:
        """The address that deployments use."""
        return HostAddress(
            name=self.name,
            address="127.0.0.1",
            user=getpass.getuser(),
            port=self.port,
            identity_file=str(self.directory / "user_key"),
            known_hosts_file=str(self.directory / "known_hosts"),
            connect_timeout_s=5,
        )

    def start(self) -> None:
        """Make the keys, start sshd and wait until it answers.

        Raises:
            LabError: there is no sshd, or it did not start; carries the end of its log.
        """
        argv = self.prepare()
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self._process = start(
            "sshd",
            argv,
            log=self.directory / "sshd.log",
            env=os.environ,
        )
        wait_until(
            lambda: is_listening(self.port),
            timeout_s=_START_TIMEOUT_S,
            what="sshd's port",
            process=self._process,
        )

    def stop(self) -> None:
        """End it, with its open connections."""
        if self._process:
            self._process.stop()
            self._process = None

    def prepare(self) -> tuple[str, ...]:
        """Make the keys and the configuration, and return the command that runs sshd with them.

        Raises:
            LabError: there is no sshd.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for key in ("host_key", "user_key"):
            if not (self.directory / key).exists():
                _make_key(self.directory / key)
        shutil.copy(self.directory / "user_key.pub", self.directory / "authorized_keys")
        host_key = (self.directory / "host_key.pub").read_text()
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        text = _CONFIGURATION.format(port=self.port, directory=self.directory)
        (self.directory / "sshd_config").write_text(text)
        return (_sshd(), "-D", "-e", "-f", str(self.directory / "sshd_config"))


def _sshd() -> str:
    """Return sshd's absolute path, which it wants to be called by."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which("sshd", path=path)
    if not found:
        raise LabError("no sshd: install the Debian package openssh-server")
    return found


def _make_key(path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sovereign-deploy lab", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
