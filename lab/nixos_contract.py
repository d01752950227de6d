"""What deployments rely on in systemctl and systemd-run: checks for the stand-ins and for a real systemd."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.contract import ContractError
from lab.nixos_machine import seconds
from lab.processes import wait_until

_SOON_S = 20.0
_BLINK_S = 0.3
_LIST = ("--plain", "--no-legend", "--no-pager")


@dataclasses.dataclass(frozen=True)
class Systemd:
    """A systemd to be checked.

    Attributes:
        command: what stands before `systemctl …` and `systemd-run …` and makes them that systemd's.
        units: where this machine writes the units that it finds.
        scratch: a directory that commands run by it see under the same path.
    """

    command: Callable[[str], tuple[str, ...]]
    units: Path
    scratch: Path

    def ctl(self, *words: str, code: int | tuple[int, ...] = 0) -> str:
        """Run systemctl; it must exit with `code`, or one of several. Return what it said on both streams."""
        return self._run("systemctl", words, code)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start systemd-run and do not wait."""
        argv = (*self.command("systemd-run"), *words)
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @contextmanager
    def unit(self, name: str, text: str) -> Iterator[Path]:
        """Have a unit for a while."""
        file = self.units / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.ctl("daemon-reload")
        try:
            yield file
        finally:
            self.ctl("stop", name)
            file.unlink(missing_ok=True)
            self.ctl("daemon-reload")
            self.ctl("reset-failed")

    def _run(self, program: str, words: tuple[str, ...], code: int | tuple[int, ...]) -> str:
        ended = subprocess.run(
            [*self.command(program), *words],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        said = ended.stdout + ended.stderr
        wanted = code if isinstance(code, tuple) else (code,)
        _must(ended.returncode in wanted, f"{program} {words} exited {ended.returncode}, not {code}: {said}")
        return said


_RUN = ("--collect", "--pipe", "--wait", "--quiet", "--service-type=exec")


def passes_streams_and_exit_code_on(systemd: Systemd) -> None:
    """A command's words and exit code are systemd-run's own; its variables are those that were named."""
    script = "echo out $WHO; echo err >&2; exit 4"
    words = ("--unit=lab-contract-codes", *_RUN, "-E", "WHO=me", "/bin/sh", "-c", script)
    child = systemd.start(*words)
    out, err = child.communicate(timeout=30)
    _must((child.returncode, out, err) == (4, "out me\n", "err\n"), f"{child.returncode} {out!r} {err!r}")
    # collected: nothing is known of it any more, and its name is free
    _must("lab-contract-codes" not in systemd.ctl("list-units", "--all", *_LIST), "it is still known")


def tells_of_a_signal(systemd: Systemd) -> None:
    """A command that a signal ended makes systemd-run exit 255, as ssh does when it is cut off.

    In its words `$$` is a dollar, as in a unit file.
    """
    child = systemd.start("--unit=lab-contract-signal", *_RUN, "/bin/sh", "-c", "kill -KILL $$$$")
    child.communicate(timeout=30)
    _must(child.returncode == 255, f"exited {child.returncode}")  # noqa: PLR2004 - EXIT_EXCEPTION


def outlives_who_started_it(systemd: Systemd) -> None:
    """The command goes on when systemd-run is killed, and is listed while it runs."""
    go, unit = systemd.scratch / "go", "lab-contract-outlives"
    child = systemd.start(f"--unit={unit}", *_RUN, "/bin/sh", "-c", f"{_until(go)}; rm {go}")
    wait_until(lambda: _is_listed(systemd, unit), timeout_s=_SOON_S, what="the unit")
    child.send_signal(signal.SIGKILL)
    # its output would come to an end with the command only, which has it still
    _close(child)
    _must(_is_listed(systemd, unit), "it ended with who started it")
    go.touch()
    wait_until(lambda: not _is_listed(systemd, unit), timeout_s=_SOON_S, what="the unit's end")
    _must(not go.exists(), "it did not come to its end")


def a_pipe_nobody_reads_is_no_signal(systemd: Systemd) -> None:
    """A command that speaks when its reader is gone gets an error, and no signal."""
    go, told, unit = systemd.scratch / "go", systemd.scratch / "told", "lab-contract-pipe"
    script = f"{_until(go)}; echo hello 2>/dev/null; echo $? >{told}"
    child = systemd.start(f"--unit={unit}", *_RUN, "/bin/sh", "-c", script)
    wait_until(lambda: _is_listed(systemd, unit), timeout_s=_SOON_S, what="the unit")
    child.send_signal(signal.SIGKILL)
    _close(child)
    go.touch()
    wait_until(lambda: told.exists() and bool(told.read_text()), timeout_s=_SOON_S, what="the end")
    _must(told.read_text() != "0\n", "it could still speak")


def a_name_is_given_once(systemd: Systemd) -> None:
    """A unit of a name that runs already is refused, with exit code 1."""
    go, unit = systemd.scratch / "go", "lab-contract-once"
    first = systemd.start(f"--unit={unit}", *_RUN, "/bin/sh", "-c", _until(go))
    wait_until(lambda: _is_listed(systemd, unit), timeout_s=_SOON_S, what="the unit")
    second = systemd.start(f"--unit={unit}", *_RUN, "/bin/true")
    _, err = second.communicate(timeout=30)
    go.touch()
    first.communicate(timeout=30)
    _must(second.returncode == 1 and "already loaded" in err, f"{second.returncode} {err}")


def a_timer_fires_once(systemd: Systemd) -> None:
    """A timer's service runs when it elapses; then it stays active, elapsed."""
    fired, timer = systemd.scratch / "fired", "lab-contract.timer"
    service = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo x >>{fired}'\n"
    text = "[Timer]\nOnActiveSec=300ms\nAccuracySec=1ms\n"
    with systemd.unit("lab-contract.service", service), systemd.unit(timer, text):
        systemd.ctl("start", timer)
        wait_until(fired.exists, timeout_s=_SOON_S, what="the timer")
        states = {"ActiveState": "active", "SubState": "elapsed", "NextElapseUSecMonotonic": "infinity"}
        names = ",".join(states)
        wait_until(lambda: _shown(systemd, timer, names) == states, timeout_s=_SOON_S, what="the timer's end")
        _must(fired.read_text() == "x\n", "it fired more than once")


def a_stopped_timer_never_fires(systemd: Systemd) -> None:
    """It says when it elapses. A restart begins its time anew, as a reload of all units does."""
    fired, timer = systemd.scratch / "never", "lab-contract.timer"
    service = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c ': >{fired}'\n"
    with systemd.unit("lab-contract.service", service), systemd.unit(timer, "[Timer]\nOnActiveSec=1min\n"):
        systemd.ctl("start", timer)
        _must(systemd.ctl("is-active", timer) == "active\n", "the timer is not active")
        first = _elapses(systemd, timer)
        _must(0 < first - time.monotonic() <= 60.0, f"it elapses at {first}")  # noqa: PLR2004 - a minute
        for again in (("restart", timer), ("daemon-reload",)):
            time.sleep(_BLINK_S)
            systemd.ctl(*again)
            before, first = first, _elapses(systemd, timer)
            _must(first - before >= _BLINK_S, f"{again[0]} does not begin anew")
        systemd.ctl("stop", timer)
        _must(systemd.ctl("is-active", timer, code=3) == "inactive\n", "it is active")
        _must(not fired.exists(), "it fired")


def a_failed_service_is_listed_until_it_is_reset(systemd: Systemd) -> None:
    """A oneshot that fails makes `start` fail, the host degraded, and the unit listed."""
    name = "lab-contract-fails.service"
    with systemd.unit(name, "[Service]\nType=oneshot\nExecStart=/bin/false\n"):
        systemd.ctl("start", name, code=1)
        failed = systemd.ctl("list-units", "--state=failed", *_LIST)
        _must(
            [line.split()[:4] for line in failed.splitlines()] == [[name, "loaded", "failed", "failed"]],
            failed,
        )
        _must(systemd.ctl("is-active", name, code=3) == "failed\n", "not failed")
        _must(systemd.ctl("is-failed", name) == "failed\n", "not failed")
        _must(systemd.ctl("is-system-running", code=1) == "degraded\n", "not degraded")
        systemd.ctl("reset-failed")
        _must(not systemd.ctl("list-units", "--state=failed", *_LIST), "reset, and listed still")
        _must(systemd.ctl("is-system-running", "--wait") == "running\n", "not running")


def a_service_is_tried_again(systemd: Systemd) -> None:
    """With Restart=on-failure a oneshot is started again until it succeeds; a limit of 0 s is no limit."""
    tries, name = systemd.scratch / "tries", "lab-contract-again.service"
    script = f'echo x >>{tries}; [ "$$(wc -l <{tries})" -ge 7 ]'
    text = (
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nRestart=on-failure\nRestartSec=50ms\n"
        f"ExecStart=/bin/sh -c '{script}'\n"
    )
    with systemd.unit(name, text):
        systemd.ctl("start", name, code=1)
        wait_until(
            lambda: _shown(systemd, name, "ActiveState")["ActiveState"] == "inactive",
            timeout_s=_SOON_S, what="the service's success",
        )  # fmt: skip
        _must(tries.read_text().count("x") == 7, f"{tries.read_text()!r}")  # noqa: PLR2004 - see the script


def knows_what_is_not_there(systemd: Systemd) -> None:
    """Unknown units: exit codes 5 for start and stop; 3 or, newer, 4 for is-active; `show` says not-found."""
    name = "lab-contract-nowhere.service"
    systemd.ctl("start", name, code=5)
    systemd.ctl("stop", name, code=5)
    systemd.ctl("reset-failed", name, code=1)
    _must(systemd.ctl("is-active", name, code=(3, 4)) == "inactive\n", "is-active")
    shown = _shown(systemd, name, "LoadState,ActiveState,SubState")
    _must(shown == {"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}, f"{shown}")


def a_stop_ends_what_runs(systemd: Systemd) -> None:
    """Stopping a service ends all its processes, and waits for it."""
    pid, name = systemd.scratch / "pid", "lab-contract-runs.service"
    text = f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo $$$$ >{pid}; sleep 60; :'\n"
    timer = f"[Timer]\nOnActiveSec=1ms\nAccuracySec=1ms\nUnit={name}\n"
    with systemd.unit(name, text), systemd.unit("lab-contract.timer", timer):
        systemd.ctl("start", "lab-contract.timer")
        wait_until(lambda: pid.exists() and bool(pid.read_text()), timeout_s=_SOON_S, what="the service")
        _must(systemd.ctl("is-active", name, code=3) == "activating\n", "it does not run")
        # the timer is apart from what it started
        systemd.ctl("stop", "lab-contract.timer")
        _must(systemd.ctl("is-active", name, code=3) == "activating\n", "it ended with its timer")
        systemd.ctl("stop", name)
        _must(_shown(systemd, name, "ActiveState,MainPID") == {"ActiveState": "inactive", "MainPID": "0"}
              or _shown(systemd, name, "ActiveState")["ActiveState"] == "failed", "it runs")  # fmt: skip


CHECKS = (
    passes_streams_and_exit_code_on,
    tells_of_a_signal,
    outlives_who_started_it,
    a_pipe_nobody_reads_is_no_signal,
    a_name_is_given_once,
    a_timer_fires_once,
    a_stopped_timer_never_fires,
    a_failed_service_is_listed_until_it_is_reset,
    a_service_is_tried_again,
    knows_what_is_not_there,
    a_stop_ends_what_runs,
)


def _shown(systemd: Systemd, unit: str, properties: str) -> dict[str, str]:
    lines = systemd.ctl("show", "-p", properties, unit).splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _until(file: Path) -> str:
    return f"until [ -e {file} ]; do sleep 0.05; done"


def _elapses(systemd: Systemd, timer: str) -> float:
    return seconds(_shown(systemd, timer, "NextElapseUSecMonotonic")["NextElapseUSecMonotonic"])


def _is_listed(systemd: Systemd, unit: str) -> bool:
    states = "--state=active,activating"
    return bool(systemd.ctl("list-units", states, *_LIST, f"{unit}*"))


def _close(child: subprocess.Popen[str]) -> None:
    child.wait(timeout=30)
    for stream in (child.stdout, child.stderr):
        if stream:
            stream.close()


def _must(holds: bool, words: str) -> None:  # noqa: FBT001 - what must hold
    if not holds:
        raise ContractError(words)
