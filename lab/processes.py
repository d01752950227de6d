"""Programs that outlive who started them, and are never mistaken for another."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lab.identity import MARK, started_ticks

_POLL_S = 0.02
_TAIL_BYTES = 3000
_children: dict[int, subprocess.Popen[bytes]] = {}


class LabError(RuntimeError):
    """A part of the lab does not do what it should; says which, and what its log says."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process by pid *and* start time, so that a recycled pid is never taken for it.

    `started_ticks` is the kernel's count since boot, `log` the file it writes to, `stop_signal` what it
    takes as a request to end. The process leads its own session and process group.
    """

    name: str
    pid: int
    started_ticks: int
    log: str
    stop_signal: int = signal.SIGTERM

    def is_alive(self) -> bool:
        """Return whether exactly this process still runs; a zombie does not."""
        if self.pid in _children and _children[self.pid].poll() is not None:
            del _children[self.pid]
        return started_ticks(self.pid) == self.started_ticks

    def send(self, number: int) -> None:
        """Send a signal to this process; nothing happens when it has ended."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Ask it to end, wait, and kill what is left of its process group. Ended already is fine."""
        self.send(self.stop_signal)
        deadline = time.monotonic() + timeout_s
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """Kill the whole process group and wait until its leader is gone."""
        # a group's number is not given out again while it has members: only a stranger's pid forbids
        if started_ticks(self.pid) in (None, self.started_ticks):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        while self.is_alive():
            time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """Return the end of its log."""
        return tail(Path(self.log))


def start(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stop_signal: int = signal.SIGTERM,
) -> Process:
    """Start a program in a session of its own, appending what it says to `log`; does not wait for it.

    Raises:
        OSError: the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # a shell's `&` and nohup leave SIGINT ignored, and programs inherit that: Prefect's worker then
    # never ends. env gives the defaults back and becomes the program, so the pid is the program's.
    command = ("env", "--default-signal=INT,TERM,HUP,QUIT", *argv)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(env),
            cwd=cwd,
        )
    _children[child.pid] = child
    # not waited for yet, so its number is there even when the program has ended already
    ticks = started_ticks(child.pid, even_zombie=True)
    assert ticks is not None  # noqa: S101 - see above
    return Process(name, child.pid, ticks, str(log), stop_signal)


def clean_environment(directory: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without settings of Prefect or ours, plus `settings` and the mark.

    What is started with it belongs to `directory`: see `end_marked`.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "SOVEREIGN_"))}
    return {**kept, **settings, MARK: str(directory)}


def wait_until(
    condition: Callable[[], bool], *, timeout_s: float, what: str, process: Process | None = None
) -> float:
    """Return how many seconds it took until `condition` held.

    Args:
        condition: asked again and again; should answer within a second or so.
        timeout_s: how long it may take.
        what: what is waited for, in words.
        process: the process it depends on: if that ends, waiting ends.

    Raises:
        LabError: it did not hold in time, or the process ended; carries the end of its log.
    """
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        ended = process is not None and not process.is_alive()
        if ended or waited_s > timeout_s:
            how = f"{process.name} ended" if process and ended else "gave up"
            log = f"; its log ends:\n{process.log_tail()}" if process else ""
            raise LabError(f"waited {waited_s:.1f} s for {what}: {how}{log}")
        time.sleep(_POLL_S)
    return time.monotonic() - began


def tail(log: Path) -> str:
    """Return the last few thousand bytes of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def marked(directory: Path) -> Iterator[int]:
    """Yield the pids of all processes that bear the mark of `directory`, or of one below it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        for variable in environment:
            name, _, value = variable.partition(b"=")
            if name == MARK.encode() and Path(os.fsdecode(value)).is_relative_to(directory):
                yield int(entry.name)


def end_marked(directory: Path, *, timeout_s: float = 5.0) -> tuple[str, ...]:
    """End all processes that bear the mark of `directory`, and return their command lines.

    The mark is inherited: this finds flow runs that a killed worker left, and services that a deployment
    has restarted.
    """
    found = {pid: (started_ticks(pid), _command_line(pid)) for pid in marked(directory)}
    for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
        deadline = time.monotonic() + patience_s
        for pid, (ticks, _) in found.items():
            if ticks is not None and started_ticks(pid) == ticks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while any(t is not None and started_ticks(p) == t for p, (t, _) in found.items()):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    return tuple(command for _, command in found.values())


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"pid {pid}"
