"""Processes that look after the units of one of the lab's NixOS hosts, and outlive who started them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lab.identity import MARK, started_ticks
from lab.nixos_machine import Machine, last, seconds

_POLL_S = 0.01
_STOP_TIMEOUT_S = 5.0
#: What systemd-run exits with when a signal ended the command.
_BY_A_SIGNAL = 255


def supervise(
    machine: Machine, unit: str, work: Callable[[], int], *, pipe: bool = False, **known: Any
) -> int:
    """Let a process of its own do the `work` for a unit, and return its pid.

    It is noted before anybody can ask. With `pipe` it has this process's streams, else it writes to a log.
    """
    log = machine.root / "log"
    log.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        _become_supervisor(machine, work, log / "units.log", pipe=pipe)
    machine.note(unit, result="success", **known, pid=pid, ticks=started_ticks(pid, even_zombie=True))
    return pid


def _become_supervisor(machine: Machine, work: Callable[[], int], log: Path, *, pipe: bool) -> NoReturn:
    code = 1
    try:
        os.setsid()
        if not pipe:
            redirect(log)
        # who started this notes it under the lock, and this has its say after that. The lock is held as
        # long as one of those has it open who got it by forking.
        if machine.lock:
            machine.lock.close()
        with machine.alone():
            pass
        code = work()
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        traceback.print_exc()
    finally:
        os._exit(code)


def redirect(log: Path) -> None:
    """Let this process read nothing, and write to a log: whoever started it need not wait for its end."""
    nothing, output = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, file in enumerate((nothing, output, output)):
        os.dup2(file, stream)


def supervise_timer(machine: Machine, unit: str, elapses: float, fire: Callable[[], None]) -> int:
    """Wait, and `fire`; a stop ends the process.

    Args:
        machine: the host.
        unit: the timer.
        elapses: when, by the clock that never jumps.
        fire: starts its service, and does not wait for it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(max(0.0, elapses - time.monotonic()))
    # until here a stop ends this process; from here on the service runs
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with machine.alone():
        machine.note(unit, sub="elapsed", pid=None)
    fire()
    return 0


@dataclasses.dataclass(frozen=True)
class Command:
    """What a transient unit runs; `collect`: it is forgotten also when that fails."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    collect: bool


class _Stop:
    """Whether somebody stops the unit that this process supervises, and what it runs now."""

    def __init__(self) -> None:
        self.asked = False
        self.child: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
        self.end(signal.SIGTERM)

    def end(self, number: int) -> None:
        """Send a signal to all of the unit's processes."""
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    def sleep(self, for_s: float) -> None:
        """Sleep, or end this process when the unit is stopped."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            self.leave_if_asked()
            time.sleep(min(_POLL_S, for_s))

    def leave_if_asked(self) -> None:
        """End this process when the unit is stopped."""
        if self.asked:
            os._exit(0)


def supervise_service(machine: Machine, unit: str) -> int:
    """Run a service's commands until they succeed, or it is not to be tried again."""
    settings, stop = machine.definition(unit), _Stop()
    restart = last(settings, "Service.Restart", "no")
    interval_s = seconds(last(settings, "Unit.StartLimitIntervalSec", "10s"))
    burst = int(last(settings, "Unit.StartLimitBurst", "5"))
    is_oneshot = last(settings, "Service.Type", "simple") == "oneshot"
    starts: list[float] = []
    while True:
        starts = [at for at in starts if time.monotonic() - at < interval_s] + [time.monotonic()]
        code = _run_once(machine, unit, settings, stop)
        if code == 0 and restart != "always":
            stays = last(settings, "Service.RemainAfterExit", "no") in ("yes", "true", "1")
            machine.note(unit, active="active" if stays else "inactive", sub="exited" if stays else "dead")
            return 0
        result = "exit-code" if code >= 0 else "signal"
        prevented = last(settings, "Service.RestartPreventExitStatus", "").split()
        is_last = restart not in ("on-failure", "always") or str(code) in prevented
        if is_last or (interval_s and len(starts) >= burst):
            result = result if is_last else "start-limit-hit"
            machine.note(unit, active="failed", sub="failed", result=result)
            return 1
        machine.note(unit, active="activating", sub="auto-restart", result=result)
        stop.sleep(seconds(last(settings, "Service.RestartSec", "100ms")))
        active, sub = ("activating", "start") if is_oneshot else ("active", "running")
        machine.note(unit, active=active, sub=sub)


def _run_once(machine: Machine, unit: str, settings: dict[str, list[str]], stop: _Stop) -> int:
    words = (word for line in settings.get("Service.Environment", ()) for word in shlex.split(line))
    environment = clean_environment(dict(word.partition("=")[::2] for word in words))
    for line in settings.get("Service.ExecStart", ()):
        argv = shlex.split(line.removeprefix("-").replace("%%", "%").replace("$$", "$"))
        code = run_child(argv, environment, stop)
        machine.note(unit, status=abs(code))
        if code and not line.startswith("-"):
            return code
    return 0


def supervise_command(machine: Machine, unit: str, command: Command) -> int:
    """Run a transient unit's command with this process's own streams, and return how it ended."""
    stop = _Stop()
    code = run_child(list(command.argv), clean_environment(command.environment), stop, let_go=True)
    if code == 0 or command.collect:
        machine.forget(unit)
    else:
        result = "exit-code" if code > 0 else "signal"
        machine.note(unit, active="failed", sub="failed", result=result, status=abs(code))
    return code if code >= 0 else _BY_A_SIGNAL


def run_child(argv: list[str], environment: dict[str, str], stop: _Stop, *, let_go: bool = False) -> int:
    """Run a unit's command in a process group of its own; when the unit is stopped, this process ends.

    Args:
        argv: the command.
        environment: all of it.
        stop: how it is stopped.
        let_go: whether this process gives its streams away: who reads them waits for the command only.

    Returns:
        Its exit code; negative: the signal that ended it; 203: it cannot be started.
    """
    try:
        # units ignore SIGPIPE unless they say otherwise, as Python does
        stop.child = subprocess.Popen(argv, env=environment, cwd="/", process_group=0, restore_signals=False)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return 203
    if let_go:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
    while True:
        try:
            code = stop.child.wait(_STOP_TIMEOUT_S if stop.asked else _POLL_S * 5)
        except subprocess.TimeoutExpired:
            if stop.asked:
                stop.end(signal.SIGKILL)
            continue
        # what a stopped unit's command left goes as well
        stop.leave_if_asked()
        return code


def clean_environment(extra: dict[str, str]) -> dict[str, str]:
    """Return what a unit sees: nothing of who started it, but for the lab's mark."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    mark = {MARK: os.environ[MARK]} if MARK in os.environ else {}
    return {"PATH": path, **mark, **extra}
