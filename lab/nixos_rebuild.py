"""`python -m lab.nixos_rebuild ROOT …`: a stand-in for nixos-rebuild on one of the lab's hosts.

Real nix-build, nix-env and nix-channel in the order and with the exit codes of nixos-rebuild-ng, for the
verbs and options that people use by hand, the traps of `--rollback` among them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

_VERBS = ("switch", "boot", "test", "build", "dry-build", "dry-activate", "list-generations")
_TOPLEVEL = "config.system.build.toplevel"
_USAGE = 2


class Host:
    """The host that systems are built and activated on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.profile = root / "var" / "nix" / "profiles" / "system"

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program of the host's, and return what it said on its output.

        A program that fails ends this one with its own exit code, unless `check` is off.
        """
        program = str(self.root / "programs" / argv[0]) if "/" not in argv[0] else argv[0]
        ended = subprocess.run([program, *argv[1:]], check=False, stdout=subprocess.PIPE, text=True)
        if check and ended.returncode != 0:
            _end(
                f"Command '{' '.join(argv)}' returned non-zero exit status {ended.returncode}.",
                ended.returncode,
            )
        return ended.stdout.strip()

    def generations(self) -> list[tuple[int, bool]]:
        """Return the numbers of the generations, oldest first, and whether the profile is at each."""
        current = self.profile.readlink().name if self.profile.is_symlink() else ""
        links = self.profile.parent.iterdir()
        found = (re.fullmatch(r"system-(\d+)-link", link.name) for link in links)
        return sorted((int(match[1]), match[0] == current) for match in found if match)

    def link(self, generation: int) -> Path:
        """Return the link of a generation."""
        return self.profile.parent / f"system-{generation}-link"


def list_generations(host: Host) -> list[dict[str, object]]:
    """Return what `list-generations --json` says, newest first."""
    said: list[dict[str, object]] = []
    for number, is_current in reversed(host.generations()):
        link = host.link(number)
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(link.lstat().st_mtime))
        revision = subprocess.run(
            [link / "sw" / "bin" / "nixos-version", "--configuration-revision"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        kernels = _names(link / "kernel-modules" / "lib" / "modules")
        said.append(
            {
                "generation": number,
                "date": made,
                "nixosVersion": (link / "nixos-version").read_text(),
                "kernelVersion": kernels[0] if kernels else "Unknown",
                "configurationRevision": revision.stdout.strip(),
                "specialisations": _names(link / "specialisation"),
                "current": is_current,
            }
        )
    return said


def build(host: Host, verb: str, flake: str | None) -> str:
    """Build the host's system and return its path; only looked at for `dry-build`."""
    print("building the system configuration...", file=sys.stderr)
    if flake is not None:
        reference, _, name = flake.partition("#")
        attribute = f"{reference}#nixosConfigurations.{name or host.root.name}.{_TOPLEVEL}"
        option = "--dry-run" if verb == "dry-build" else "--no-link"
        built = json.loads(host.run("nix", "build", attribute, option, "--json"))
        return str(built[0]["outputs"]["out"])
    how = {"dry-build": ("--dry-run",), "build": ()}.get(verb, ("--no-out-link",))
    return host.run("nix-build", "<nixpkgs/nixos>", "--attr", _TOPLEVEL, *how)


def rolled_back(host: Host, verb: str) -> str:
    """Return the system that `--rollback` leads to: relative to where the profile is now."""
    if verb in ("switch", "boot"):
        host.run("nix-env", "--rollback", "-p", str(host.profile))
        return str(host.profile)
    others = [number for number, is_current in host.generations() if not is_current]
    if not others:
        _end("error: could not find previous generation")
    # sic: the newest of the others, which may be newer than the current one
    return str(host.link(others[-1]))


def main() -> int:
    """Do what the arguments say; return the exit code."""
    root, *words = sys.argv[1:]
    host, flags = Host(Path(root)), set[str]()
    flake: str | None = None
    verbs = [word for word in words if word in _VERBS]
    left = [word for word in words if word not in _VERBS]
    while left:
        word = left.pop(0)
        if word == "--flake":
            flake = left.pop(0)
        elif word in ("--rollback", "--upgrade", "--json"):
            flags.add(word)
        else:
            _end(f"nixos-rebuild: error: unrecognized arguments: {word}", _USAGE)
    if len(verbs) != 1:
        _end(f"nixos-rebuild: error: one of {', '.join(_VERBS)}", _USAGE)
    verb = verbs[0]
    if verb == "list-generations":
        print(json.dumps(list_generations(host), indent=2))
        return 0
    if "--upgrade" in flags:
        # as the real one, which goes on with what it has
        host.run("nix-channel", "--update", "nixos", check=False)
    is_back = "--rollback" in flags
    if is_back and verb in ("dry-build", "dry-activate"):
        _end(f"error: --rollback is incompatible with '{verb}'")
    path = rolled_back(host, verb) if is_back else build(host, verb, flake)
    if verb in ("switch", "boot") and not is_back:
        # before the activation, and it stays set when that fails
        host.run("nix-env", "-p", str(host.profile), "--set", path)
    if verb not in ("build", "dry-build"):
        ended = subprocess.run([f"{path}/bin/switch-to-configuration", verb], check=False)
        if ended.returncode != 0:
            what = f"Command '{path}/bin/switch-to-configuration {verb}' returned non-zero exit status"
            _end(f"{what} {ended.returncode}.", ended.returncode)
    print(f"Done. The new configuration is {os.path.realpath(path)}", file=sys.stderr)
    return 0


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _end(words: str, code: int = 1) -> NoReturn:
    print(words, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
