"""What systemd's journal of a host says of the units that a deployment touches."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Self

from rules.hosts import HostAddress
from rules.journal_errors import (
    ERROR_PRIORITY,
    JOURNAL_FIELDS,
    JournalError,
    JournalLine,
    parse_errors,
    parse_line,
)
from tasks.host import run, ssh_argv
from tasks.process import GUARD

#: Errors kept by a follower. The first ones tell more than the last: later ones often follow from them.
_KEPT_ERRORS = 200
_LONGEST_LINE_BYTES = 65_536
_KEPT_COMPLAINTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_END_TIMEOUT_S = 5.0


def errors_since(
    host: HostAddress, units: Sequence[str], since: datetime, *, limit: int = _KEPT_ERRORS
) -> tuple[JournalError, ...]:
    """Return the newest `limit` errors that `units` logged on `host` since then, oldest first.

    Args:
        host: where they run.
        units: systemd units, of the system or of the user who asks; none: no errors.
        since: with a time zone; judged by the host's own clock.
        limit: at most this many.

    Raises:
        CommandError: the journal cannot be read.
    """
    if not units:
        return ()
    # forwards, versions of systemd disagree on whether --lines with --since are the first or the last ones
    newest_first = ("--reverse", f"--lines={limit}", "--no-pager")
    argv = (*journal_argv(units), f"--since={_moment(since)}", *newest_first)
    return parse_errors(run(host, argv).stdout)[::-1]


def journal_argv(units: Sequence[str]) -> tuple[str, ...]:
    """Return the command that prints errors of `units` as JSON lines, whoever's units they are."""
    return (
        *("journalctl", "--output=json", f"--output-fields={','.join(JOURNAL_FIELDS)}"),
        f"--priority={ERROR_PRIORITY}",
        *(f"--unit={unit}" for unit in units),
        *(f"--user-unit={unit}" for unit in units),
    )


class JournalFollower:
    """Collects the errors that `units` log on `host` from `since` on, in a thread, until it is stopped.

    Use it by `with`. It raises nothing once it runs: a host that cannot be reached, or has no journalctl, is
    its `problem`, and is tried again. After an interruption it goes on where it was, so nothing is missed.
    It ends with this process, however that ends, and so does what it started on the host.

    Args:
        host: where the units run.
        units: systemd units; with none there is nothing to follow and no problem.
        since: with a time zone; judged by the host's own clock.
        limit: errors kept; those beyond are only counted.
    """

    def __init__(
        self, host: HostAddress, units: Sequence[str], since: datetime, *, limit: int = _KEPT_ERRORS
    ) -> None:
        self.host, self.units = host, tuple(units)
        self._position = f"--since={_moment(since)}"
        self._limit = limit
        self._errors: list[JournalError] = []
        self._dropped = 0
        self._problem: str | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._child_began: float | None = None
        self._settles_after_s = 1.0 + (host.connect_timeout_s if host.address else 0)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"journal of {host.name}", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to follow; returns at once."""
        if self.units:
            self._thread.start()

    def stop(self) -> None:
        """End it and what it started; stopped already is fine. What it has collected stays."""
        self._stopped.set()
        with self._lock:
            if self._child:
                self._child.kill()
        if self._thread.is_alive():
            self._thread.join(_END_TIMEOUT_S)

    def errors(self) -> tuple[JournalError, ...]:
        """Return the errors seen so far, oldest first."""
        with self._lock:
            return tuple(self._errors)

    @property
    def dropped(self) -> int:
        """How many errors came beyond the limit."""
        return self._dropped

    @property
    def problem(self) -> str | None:
        """Why it cannot follow now, in words; None when nothing is known to be wrong."""
        child_began = self._child_began
        # nothing says that a connection stands while no error comes: one that failed has ended by then
        if child_began is not None and time.monotonic() - child_began > self._settles_after_s:
            return None
        return self._problem

    def _follow(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            seen = self._position
            try:
                self._problem = self._once()
            except OSError as error:
                self._problem = f"the journal of {self.host.name} is not followed: {error}"
            pause_s = _FIRST_PAUSE_S if self._position != seen else min(2 * pause_s, _LONGEST_PAUSE_S)
            self._stopped.wait(pause_s)

    def _once(self) -> str | None:
        """Follow until the command ends, and return why it did; None when it was stopped."""
        argv = (*journal_argv(self.units), "--follow", "--no-tail", self._position)
        command = (*GUARD, *(ssh_argv(self.host, argv) if self.host.address else argv))
        complaints: deque[str] = deque(maxlen=_KEPT_COMPLAINTS)
        # started by this thread on purpose: the guard ends the command with the thread that started it
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            with self._lock:
                self._child, self._child_began = child, time.monotonic()
            if self._stopped.is_set():
                child.kill()
            listening = threading.Thread(target=_listen, args=(child.stderr, complaints), daemon=True)
            listening.start()
            self._read(child.stdout)
            returncode, self._child_began = child.wait(), None
            listening.join(_END_TIMEOUT_S)
        with self._lock:
            self._child = None
        if self._stopped.is_set():
            return None
        said = " ".join(complaints) or "(it said nothing)"
        return f"the journal of {self.host.name} is not followed: journalctl exited {returncode}: {said}"

    def _read(self, output: IO[bytes] | None) -> None:
        assert output is not None  # noqa: S101 - it is a pipe
        while line := output.readline(_LONGEST_LINE_BYTES):
            known = parse_line(line)
            if known:
                self._problem = None
                self._keep(known)

    def _keep(self, line: JournalLine) -> None:
        with self._lock:
            if line.cursor:
                self._position = f"--after-cursor={line.cursor}"
            if line.error is None:
                return
            if len(self._errors) < self._limit:
                self._errors.append(line.error)
            else:
                self._dropped += 1


def _listen(stream: IO[bytes] | None, complaints: deque[str]) -> None:
    assert stream is not None  # noqa: S101 - it is a pipe
    while line := stream.readline(_LONGEST_LINE_BYTES):
        complaints.append(line.decode(errors="replace").strip()[:500])


def _moment(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return f"@{at.astimezone(UTC).timestamp():.6f}"
