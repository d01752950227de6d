"""One of the lab's NixOS hosts: its directory, and how the lab itself runs things on it."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

from lab.identity import MARK
from lab.nixos_machine import Machine
from lab.nixos_programs import REBOOT_NOW, SOURCES, write_programs
from lab.ports import is_listening
from lab.processes import LabError, wait_until
from lab.systemd import LabSystemd
from rules.nixos import NixosPlaces

_COMMAND_TIMEOUT_S, _START_TIMEOUT_S = 120.0, 30.0
#: Where a real systemd looks for what neither a switch nor a reboot takes away.
_CONTROL = "/etc/systemd/system.control"
_CONTAINERS_UNITS = "/run/systemd/system"
_PLACES = (
    *("home", "etc/nixos", "guard-units", "state", "run", "log", "programs"),
    *("var/nix/profiles/per-user", "var/nix/gcroots"),
)
_STORES_PLACES = ("store", "etc", "home", "var/nix/db", "var/nix/temproots")
_CONFIGURATION = """\
sandbox = false
build-users-group =
substituters =
trusted-substituters =
require-sigs = false
experimental-features = nix-command flakes
flake-registry =
fsync-metadata = false
warn-dirty = false
"""
# what ran, how it ended and what it complained of, by the container's one way out
_TOLD = '"$@" 2>"$0"; code=$?; echo; echo "$code"'


class LabNixosHost:
    """A host below `directory/hosts`; the store below `directory` is every host's.

    Args:
        directory: the lab's.
        name: the host's.
        own_store: it knows of the paths in the store only what it built, or was given.
        systemd: the container that it lives in; None: it is this machine.
    """

    def __init__(self, directory: Path, name: str, *, own_store: bool, systemd: LabSystemd | None) -> None:
        self.name, self.directory = name, directory
        self.own_store, self.systemd = own_store, systemd
        self.root = directory / "hosts" / name
        self.machine = Machine(self.root)
        self.profile = self.root / "var" / "nix" / "profiles" / "system"
        self.channels = self.root / "var" / "nix" / "profiles" / "per-user" / getpass.getuser() / "channels"
        self.configuration = self.root / "etc" / "nixos" / "configuration.nix"
        #: Where this machine sees the units that the host's systemd finds in `places.guard_units`.
        self.guard_units = self.root / "guard-units"

    @property
    def units(self) -> str:
        """Where an activation puts the units of its system."""
        return _CONTAINERS_UNITS if self.systemd else str(self.machine.directories[-1])

    @property
    def places(self) -> NixosPlaces:
        """Where product code finds things on it."""
        return NixosPlaces(
            profile=str(self.profile),
            channels=str(self.channels),
            current=str(self.root / "run" / "current-system"),
            booted=str(self.root / "run" / "booted-system"),
            configuration=str(self.configuration),
            programs=str(self.root / "programs"),
            state=str(self.root / "state"),
            runtime=str(self.root / "run" / "sovereign-deploy"),
            guard_units=_CONTROL if self.systemd else str(self.guard_units),
        )

    def make(self) -> None:
        """Make its directories and programs."""
        for place in _PLACES:
            (self.root / place).mkdir(parents=True, exist_ok=True)
        self.channels.parent.mkdir(exist_ok=True)
        for link in ("booted-system", "current-system"):
            _link(self.root / "var" / "nix" / "gcroots" / link, self.root / "run" / link)
        if not self.own_store:
            for part in ("db", "temproots", "gc.lock"):
                _link(self.root / "var" / "nix" / part, self.directory / "var" / "nix" / part)
        home, channels = self.root / "home", self.channels
        environment = {
            **store_environment(self.directory, self.root / "var" / "nix"),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "NIX_PATH": f"nixpkgs={channels}/nixos:nixos-config={self.configuration}:{channels}",
        }
        in_container = self.systemd is not None
        write_programs(self.root, environment, directory=self.directory, in_container=in_container)
        if self.systemd:
            # the container's own /etc is lost with it, and this machine could not look into it
            self.systemd.run("mkdir", "-p", _CONTROL)
            self.systemd.run("mount", "--bind", str(self.guard_units), _CONTROL)

    def boot(self, system: str | None = None) -> bool:
        """Go down and come up again; return whether the host came up.

        Args:
            system: what is booted; None: the default one.
        """
        words = (system,) if system else ()
        if self.systemd:
            came_up = self.finish(REBOOT_NOW, *words).returncode == 0
            if came_up and not (self.root / "cut").exists():
                self._wait_for_sshd(self.systemd)
            return came_up
        self._machine("go-down")
        return self._machine("come-up", *words) == 0

    def stop(self) -> None:
        """End all that runs on it. Where it lives in a container, that is as it was before."""
        if self.systemd is None:
            self._machine("go-down")
            return
        failing = self.root / "run" / "failing"
        for unit in failing.iterdir() if failing.is_dir() else ():
            self.systemd.run("rm", "-f", f"{_CONTAINERS_UNITS}/{unit.name}")
        for argv in (
            ("systemctl", "stop", "sovereign-*"),
            ("umount", _CONTROL),
            ("systemctl", "daemon-reload"),
            ("systemctl", "reset-failed"),
            ("systemctl", "start", "lab-sshd.service"),
        ):
            self.systemd.run(*argv)
        self._wait_for_sshd(self.systemd)

    def run(self, *argv: str) -> str:
        """Run one of its programs, and return what it said, without the last line's end.

        Raises:
            LabError: it failed; carries what it said.
        """
        ended = self.finish(*argv)
        if ended.returncode != 0:
            raise LabError(f"{self.name}: {list(argv)} exited {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout.rstrip("\n")

    def finish(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to its end."""
        words = [str(self.root / "programs" / argv[0]), *argv[1:]]
        if self.systemd is None:
            return subprocess.run(
                words,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
                cwd=self.root,
            )
        complaints = self.root / "log" / "complaints"
        said, _, code = self.systemd.run("sh", "-c", _TOLD, str(complaints), *words).rstrip().rpartition("\n")
        return subprocess.CompletedProcess(words, int(code), said.removesuffix("\n"), complaints.read_text())

    def _wait_for_sshd(self, systemd: LabSystemd) -> None:
        port = systemd.host.port
        wait_until(lambda: is_listening(port), timeout_s=_START_TIMEOUT_S, what="the container's sshd")

    def _machine(self, *words: str) -> int:
        # its units are started by forking, which this process with its threads must not do
        argv = [sys.executable, "-S", "-m", "lab.nixos_systemd", str(self.root), *words]
        settings = {MARK: str(self.directory), "PYTHONPATH": SOURCES}
        return subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **settings},
            timeout=_COMMAND_TIMEOUT_S,
            cwd=self.root,
        ).returncode


def store_environment(directory: Path, state: Path) -> dict[str, str]:
    """Return what makes Nix's commands use the lab's store in `directory`, known in `state`."""
    return {
        "NIX_STORE_DIR": str(directory / "store"),
        "NIX_STATE_DIR": str(state),
        "NIX_LOG_DIR": str(directory / "var" / "log"),
        "NIX_CONF_DIR": str(directory / "etc"),
        "NIX_REMOTE": "",
    }


def make_store(directory: Path) -> None:
    """Make a store in `directory` that every host uses."""
    for place in _STORES_PLACES:
        (directory / place).mkdir(parents=True, exist_ok=True)
    (directory / "var" / "nix" / "gc.lock").touch()
    (directory / "etc" / "nix.conf").write_text(_CONFIGURATION)


def nix_value(value: object) -> str:
    """Return a value in Nix's language: a truth, a text, or a sequence of texts; numbers become texts.

    Raises:
        LabError: it is something else.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("${", "\\${")
        case int() | float():
            return json.dumps(str(value))
        case list() | tuple():
            return "[ " + " ".join(nix_value(each) for each in value) + " ]"
    raise LabError(f"no way to say {value!r} in Nix's language")


def _link(place: Path, target: Path) -> None:
    if not os.path.lexists(place):
        place.symlink_to(target)
