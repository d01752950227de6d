"""The events of an incident on disk: append-only, fsynced, one writer at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rules.incident import IncidentEvent, IncidentState, after, event_line, incident_state, parse_events
from tasks.durable import append_line, replace_file

#: Another process that holds the lock longer than this is telling people, and needs no help with it.
_PATIENCE_S = 5.0


class IncidentFile:
    """The events of one deployment's incident. Appending is durable when it returns."""

    def __init__(self, directory: Path, deployment: str) -> None:
        self.directory = directory / deployment
        self.path = self.directory / "incident.jsonl"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the incident's lock: who reads, decides and appends is alone on this host.

        Raises:
            TimeoutError: another process held it for seconds.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _PATIENCE_S
        with (self.directory / "incident.lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another process is at work on {self.path}") from None
                    time.sleep(0.02)
            yield

    def lines(self) -> bytes:
        """Return the whole lines that are here; empty when there are none."""
        text = self.path.read_bytes() if self.path.exists() else b""
        return text[: text.rfind(b"\n") + 1]

    def read(self) -> IncidentState | None:
        """Return what the events add up to; None when nothing was opened here."""
        return incident_state(parse_events(self.lines()))

    def adopt(self, lines: bytes) -> None:
        """Put `lines`, read from the mirror, in place of what is here."""
        replace_file(self.path, lines)

    def add(self, state: IncidentState | None, event: IncidentEvent) -> IncidentState:
        """Append `event` and return the state after it; what changes nothing is not written.

        Raises:
            IllegalEventError: the incident's status does not allow it.
        """
        then = after(state, event)
        if then is not state:
            append_line(self.path, event_line(event))
        return then
