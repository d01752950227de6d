"""An environment of its own for a program that what is deployed never imports, from a lock with hashes."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab.processes import LabError

_TIMEOUT_S = 1800


@dataclasses.dataclass(frozen=True)
class LockedVenv:
    """A virtual environment below `home`, made once and anew when the lock or the interpreter changes.

    Attributes:
        name: what it is for, in words.
        home: directory of the environment and of the file that keeps two processes from making it at once.
        lock: every package with its hashes, dependencies too: none is looked for beyond them.
        imported_first: a module of the standard library alone that is imported at each start of its Python.
        compiled: modules are compiled once, which costs a fifth more disk and saves each start a minute.
    """

    name: str
    home: Path
    lock: Path
    imported_first: Path | None = None
    compiled: bool = True

    def python(self) -> Path:
        """Return its interpreter; the first call of all makes the environment.

        Raises:
            LabError: it could not be made; says what pip says.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.is_made():
                self._make()
        return self._python

    def is_made(self) -> bool:
        """Return whether `python` would answer at once."""
        try:
            return (self.home / "made").read_text() == self._wanted()
        except FileNotFoundError:
            return False

    @property
    def _venv(self) -> Path:
        return self.home / "venv"

    @property
    def _python(self) -> Path:
        return self._venv / "bin" / "python"

    def _wanted(self) -> str:
        sums = (
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.lock, self.imported_first) if path
        )
        interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        return f"{' '.join(sums)} {interpreter} {self._venv}\n"

    def _make(self) -> None:
        (self.home / "made").unlink(missing_ok=True)
        shutil.rmtree(self._venv, ignore_errors=True)
        options = () if importlib.util.find_spec("ensurepip") else ("--without-pip",)
        self._run(sys.executable, "-m", "venv", *options, str(self._venv))
        pip = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
        # Debian's python3-pip without python3-venv installs into another environment
        argv = (sys.executable, *pip, "--python", str(self._python)) if options else (str(self._python), *pip)
        locked = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile")
        self._run(*argv, "install", *locked, "-r", str(self.lock))
        if first := self.imported_first:
            packages = next(self._venv.glob("lib/python*/site-packages"))
            shutil.copy(first, packages)
            (packages / f"{first.stem}.pth").write_text(f"import {first.stem}\n")
        if self.compiled:
            # packages ship templates that are no Python: those are not worth a word
            self._run(
                str(self._python), "-m", "compileall", "-q", "-j", "0", str(self._venv / "lib"), check=False
            )
        (self.home / "made").write_text(self._wanted())

    def _run(self, *argv: str, check: bool = True) -> None:
        # a stranger's modules must not stand in for the locked ones
        environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONHOME", "PYTHONPATH"}}
        ended = subprocess.run(
            argv, check=False, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S
        )
        if check and ended.returncode != 0:
            words = f"{argv} exited {ended.returncode}: {ended.stderr[-2000:]}"
            raise LabError(f"{self.name} could not be installed: {words}")
