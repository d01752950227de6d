"""Nix on a host: its programs, and what its store holds."""

from __future__ import annotations

from pathlib import PurePosixPath

from rules.errors import CommandError
from rules.fleet import Instance
from rules.frozen import Frozen
from rules.hosts import HostAddress
from tasks import host as hosts
from tasks.process import Finished

#: So many paths are named at once: ssh hands a command over as one argument, of 128 KiB at most.
_AT_ONCE = 500
_NO_SPACE = ("No space left on device", "database or disk is full")
#: Neither has to be switched on where Nix is configured; Nix before 2.4 has neither.
EXPERIMENTAL = ("--extra-experimental-features", "nix-command flakes")


class Nix(Frozen):
    """Nix's programs on one machine."""

    host: HostAddress
    directory: str = ""  # where the programs are; empty: on PATH

    def program(self, name: str) -> str:
        """Return what `name` is called by."""
        return f"{self.directory}/{name}" if self.directory else name

    def run(self, name: str, *words: str, timeout_s: float = 60.0, check: bool = True) -> Finished:
        """Run one of the programs; see `tasks.host.run`.

        Raises:
            CommandError: it failed and `check`, or took too long, or the host cannot be reached.
        """
        return hosts.run(self.host, (self.program(name), *words), timeout_s=timeout_s, check=check)


def nix_of(instance: Instance) -> Nix:
    """Return Nix on an instance's own host."""
    return Nix(host=instance.host, directory=instance.nixos_host.places.programs)


def nix_of_worker(instance: Instance) -> Nix:
    """Return Nix on the machine this runs on, which may be the instance's host itself."""
    return Nix(host=HostAddress()) if instance.host.address else nix_of(instance)


def lacking(nix: Nix, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return those store paths that are not valid in a store, in the order given.

    Raises:
        CommandError: it could not be asked, or one is no path of that store.
    """
    lines: list[str] = []
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        said = nix.run("nix-store", "--check-validity", "--print-invalid", *some, timeout_s=300.0)
        lines += said.stdout.splitlines()
    invalid = set(lines)
    return tuple(path for path in paths if path in invalid)


def disk_hint(host: HostAddress, output: str, *, near: str) -> str:
    """Return what to do about a full disk, as a sentence, if that is what a command complained of.

    Args:
        host: where it ran.
        output: what it said.
        near: a path on the disk that may be full.
    """
    if not any(words in output for words in _NO_SPACE):
        return ""
    directory = str(PurePosixPath(near).parent)
    try:
        free = f"{hosts.free_bytes(host, directory):,} bytes are free in {directory} of {host.name}"
    except CommandError:
        free = f"{directory} of {host.name} is full"
    return f" {free}: make room there, for instance with nix-collect-garbage --delete-older-than 30d."
