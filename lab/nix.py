"""A Nix store of our own, with a binary cache beside it: no /nix, no daemon, no network, no root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from lab.processes import LabError
from lab.releases import GOOD, Behaviour, build_release, unpack
from rules.change import NixStorePath

_COMMAND_TIMEOUT_S = 60.0

_CONFIGURATION = """\
substituters = file://{cache}
# the cache is ours, and nobody signs what it holds
require-sigs = false
experimental-features = nix-command
"""


class LabNix:
    """A Nix store in `directory`; commands use it when they run with its `environment`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.profile = self.directory / "profiles" / "web"
        self._cache = self.directory / "cache"
        for name in ("home", "etc", "profiles"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "etc" / "nix.conf").write_text(_CONFIGURATION.format(cache=self._cache))

    @property
    def environment(self) -> dict[str, str]:
        """What tells Nix's commands to use this store, and nothing of the user's."""
        places = {"STORE": "store", "STATE": "var", "LOG": "log", "CONF": "etc"}
        variables = {f"NIX_{name}_DIR": str(self.directory / place) for name, place in places.items()}
        home = str(self.directory / "home")
        return {
            **variables,
            "NIX_REMOTE": "",
            "NIX_PATH": "",
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
        }

    def publish(self, release: str, behaviour: Behaviour = GOOD) -> NixStorePath:
        """Put a release into the binary cache, from where hosts fetch it; it is in no store yet.

        Raises:
            LabError: a command of Nix's failed.
        """
        source = self.directory / "sources" / f"web-{release}"
        with tarfile.open(build_release(self.directory / "archives", release, behaviour).path) as packed:
            unpack(packed, source)
        path = self.run("nix-store", "--add", str(source))
        self.run("nix", "copy", "--to", f"file://{self._cache}", path)
        self.run("nix-store", "--delete", path)
        shutil.rmtree(source)
        return NixStorePath(path=path)

    def run(self, *argv: str) -> str:
        """Run a command in this store, and return what it said, without the last line's end.

        Raises:
            LabError: it failed; carries what it said.
        """
        finished = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            timeout=_COMMAND_TIMEOUT_S,
        )
        if finished.returncode != 0:
            raise LabError(f"{list(argv)} exited {finished.returncode}: {finished.stderr.strip()}")
        return finished.stdout.rstrip("\n")
