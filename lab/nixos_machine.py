"""What is known of the units of one of the lab's NixOS hosts, and where they are defined."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lab.identity import started_ticks

RUNNING = ("active", "activating", "deactivating", "reloading")
#: What a unit may be in without a process that looks after it.
_UNSUPERVISED = ("dead", "failed", "elapsed", "exited")
_SPANS = {
    "us": 1e-6,
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


class Failure(Exception):  # noqa: N818 - what the command says, and how it ends
    """A command that failed: its words and exit code."""

    def __init__(self, words: str, code: int = 1) -> None:
        super().__init__(words)
        self.words, self.code = words, code


def seconds(span: str) -> float:
    """Return a time span of a unit file in seconds, such as `5min 20s`.

    Raises:
        Failure: it is none.
    """
    if span == "infinity":
        return float("inf")
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", span)
    if not parts or any(unit not in _SPANS for _, unit in parts):
        raise Failure(f"Failed to parse time span: {span}")
    return sum(float(number) * _SPANS[unit] for number, unit in parts)


def in_words(span_s: float) -> str:
    """Return seconds as systemd shows a time span, such as `1h 2min 3.500000s`."""
    words = []
    left_us = round(span_s * 1e6)
    for name, size_us in (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000)):
        if left_us >= size_us:
            words.append(f"{left_us // size_us}{name}")
            left_us %= size_us
    if left_us:
        words.append(f"{left_us / 1e6:.6f}".rstrip("0").rstrip(".") + "s")
    return " ".join(words) or "0"


class Machine:
    """One host's units and what is known of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "run" / "systemd"
        self.lock: TextIO | None = None
        self.directories = (root / "guard-units", root / "run" / "systemd" / "system")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let one command at a time read and change what is known."""
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("w") as self.lock:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            yield

    def read(self, unit: str) -> dict[str, Any]:
        """Return what is known of a unit; a supervisor that is gone without a word has failed."""
        known = self._noted(unit)
        if known["sub"] in _UNSUPERVISED or self.supervisor(known):
            return known
        # its last words may have come between the two looks
        if self._noted(unit) != known:
            return self.read(unit)
        return {**known, "active": "failed", "sub": "failed", "result": "signal"}

    def _noted(self, unit: str) -> dict[str, Any]:
        try:
            noted: dict[str, Any] = json.loads((self.state / f"{unit}.json").read_text())
        except FileNotFoundError:
            return {"active": "inactive", "sub": "dead", "result": "success"}
        return noted

    def note(self, unit: str, **known: Any) -> None:
        """Change what is known of a unit."""
        place = self.state / f"{unit}.json"
        # a reboot has taken all notes away: who is being ended must not make them anew
        if not self.state.is_dir():
            sys.exit(1)
        before = json.loads(place.read_text()) if place.exists() else {}
        new = place.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps({**before, **known}))
        new.replace(place)

    def forget(self, unit: str) -> None:
        """Know nothing of a unit any more."""
        (self.state / f"{unit}.json").unlink(missing_ok=True)

    def supervisor(self, known: dict[str, Any]) -> int | None:
        """Return the pid of a unit's supervisor; None: it has none that runs."""
        pid = known.get("pid")
        return pid if pid and started_ticks(pid) == known.get("ticks") else None

    def known(self) -> list[str]:
        """The units that something is known of, sorted."""
        return sorted(path.name.removesuffix(".json") for path in self.state.glob("*.json"))

    def file(self, unit: str) -> Path | None:
        """Return where a unit is defined; None: nowhere."""
        return next((d / unit for d in self.directories if (d / unit).is_file()), None)

    def definition(self, unit: str) -> dict[str, list[str]]:
        """Return a unit's settings, `Section.Key` to values.

        Raises:
            Failure: there is no such unit.
        """
        file = self.file(unit)
        if file is None:
            raise Failure(f"Unit {unit} not found.", 5)
        settings: dict[str, list[str]] = {}
        section = ""
        for line in file.read_text().replace("\\\n", " ").splitlines():
            text = line.strip()
            if text.startswith("[") and text.endswith("]"):
                section = text[1:-1]
            elif text and text[0] not in "#;":
                key, _, value = text.partition("=")
                values = settings.setdefault(f"{section}.{key.strip()}", [])
                # an empty value takes back what was said before
                values.append(value.strip()) if value.strip() else values.clear()
        return settings


def last(settings: dict[str, list[str]], key: str, default: str) -> str:
    """Return the last value of a setting, which is the one that counts."""
    return (settings.get(key) or [default])[-1]
