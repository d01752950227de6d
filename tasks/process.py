"""Run one command on this machine to its end, and leave nothing of it running when we cannot wait."""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO

from rules.frozen import Argv, Count, Frozen, Seconds

#: The command dies with the thread that waits for it, also when that is killed with -9.
GUARD = ("setpriv", "--pdeathsig", "KILL", "--")
# ... and does not begin where that was too late: we died before the guard was up, and it has another parent
_UNLESS_ORPHANED = ("sh", "-c", '[ "$PPID" = "$0" ] || exit 137; exec "$@"')

_CHUNK_BYTES = 65_536
_KEPT_STDOUT_BYTES = 8 << 20
_KEPT_STDERR_BYTES = 1 << 20
_TERM_GRACE_S = 5.0
_OUTPUT_GRACE_S = 1.0


class Finished(Frozen):
    """How a command ended, and the end of what it wrote."""

    argv: Argv
    returncode: int | None  # negative: ended by that signal; None: ended by us, it took too long
    stdout: str
    stderr: str
    duration_s: Seconds
    dropped_bytes: Count = 0  # of the beginning of stdout, beyond 8 MiB

    @property
    def output(self) -> str:
        """Both streams, for people."""
        return "\n".join(text for text in (self.stdout.rstrip(), self.stderr.rstrip()) if text)


class _Tail:
    """The end of a stream of any length, in bounded memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._kept, self._seen = limit_bytes, bytearray(), 0

    def add(self, chunk: bytes) -> None:
        self._seen += len(chunk)
        self._kept += chunk
        if len(self._kept) > 2 * self._limit:
            del self._kept[: -self._limit]

    @property
    def text(self) -> str:
        return bytes(self._kept[-self._limit :]).decode(errors="replace")

    @property
    def dropped_bytes(self) -> int:
        return max(0, self._seen - self._limit)


def finish(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run `argv` without a shell in a session of its own, and return how it ended.

    A process that the command leaves behind with its output open is waited for one second at most. A
    daemon must not keep that output: once we close it, writing there kills the daemon.

    Any exception that arrives meanwhile (cancel, SIGTERM, Ctrl-C) and the timeout end the command's whole
    process group: TERM, five seconds later KILL. After a kill -9 of this process only the command itself
    dies, not the commands that it started.

    Args:
        argv: the program, from PATH, and its arguments.
        timeout_s: seconds until it is ended.
        stdin: bytes, or an open file that it reads from its position; None: nothing to read.
        env: its whole environment; None: this process's own.
    """
    stdout, stderr = _Tail(_KEPT_STDOUT_BYTES), _Tail(_KEPT_STDERR_BYTES)
    started = time.monotonic()
    returncode = None
    with suppress(_TooLongError), _guarded(argv, stdin, env) as process:
        _read(process, (stdout, stderr), started + timeout_s)
        returncode = process.wait()
    return Finished(
        argv=tuple(argv),
        returncode=returncode,
        stdout=stdout.text,
        stderr=stderr.text,
        duration_s=time.monotonic() - started,
        dropped_bytes=stdout.dropped_bytes,
    )


class _TooLongError(Exception):
    """The command did not end in time."""


@contextmanager
def _guarded(
    argv: Sequence[str], stdin: bytes | BinaryIO | None, env: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command; whoever leaves this block by an exception leaves none of its group alive."""
    with _readable(stdin) as source:
        process = subprocess.Popen(
            [*GUARD, *_UNLESS_ORPHANED, str(os.getpid()), *argv],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        _end_group(process)
        raise
    finally:
        for pipe in _pipes(process):
            pipe.close()


@contextmanager
def _readable(stdin: bytes | BinaryIO | None) -> Iterator[int | BinaryIO]:
    """Give the command's input as something it reads by itself: we never have to write while we read."""
    if isinstance(stdin, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            yield file.fileno()
    else:
        yield stdin or subprocess.DEVNULL


def _read(process: subprocess.Popen[bytes], tails: tuple[_Tail, _Tail], deadline: float) -> None:
    """Read both outputs until the command has ended and they are closed, or its second of grace is over."""
    with selectors.DefaultSelector() as selector, _pidfd(process) as pidfd:
        selector.register(pidfd, selectors.EVENT_READ)
        for pipe, tail in zip(_pipes(process), tails, strict=True):
            selector.register(pipe, selectors.EVENT_READ, tail)
        has_ended = False
        while selector.get_map():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                if has_ended:
                    return
                raise _TooLongError
            for key, _ in selector.select(left_s):
                if key.fd == pidfd:
                    selector.unregister(pidfd)
                    has_ended, deadline = True, time.monotonic() + _OUTPUT_GRACE_S
                elif chunk := os.read(key.fd, _CHUNK_BYTES):
                    key.data.add(chunk)
                else:
                    selector.unregister(key.fileobj)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started in its session, politely if that is quick."""
    if process.returncode is not None:
        return
    try:
        with _pidfd(process) as pidfd:
            _signal_group(process, signal.SIGTERM)
            select.select([pidfd], [], [], _TERM_GRACE_S)
    finally:
        # the leader is not reaped yet, so its number cannot belong to a stranger's group
        _signal_group(process, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a setuid program, like sudo, does not obey us
            process.wait(_TERM_GRACE_S)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextmanager
def _pidfd(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A descriptor that is readable once the process has ended, without reaping it."""
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], ...]:
    return tuple(pipe for pipe in (process.stdout, process.stderr) if pipe)
