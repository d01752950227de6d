"""The service commands of the lab's application: `python -m lab.service start|stop|status`.

What a process supervisor does, as three short commands. Each may be killed at any moment: the service
registers itself before it becomes the application, so that no running one is ever unknown.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from lab.identity import MARK, started_ticks

STOPPED = 3

_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.005


def start(root: Path, port: int) -> int:
    """Start the release that `current` points to; running already is fine.

    Returns as soon as the application's process is there: it may take longer until it answers.
    """
    with alone(root):
        if running(root) is not None:
            return 0
        release = (root / "current").resolve()
        if not (release / "app.py").is_file():
            sys.exit(f"{root}/current points to no release: nothing was started")
        # isolated: a release brings all it needs, and sees nothing of who starts it
        argv = [sys.executable, "-I", "-S", str(release / "app.py"), "--port", str(port)]
        spawn(root, argv, {"PATH": os.defpath}, directory=release)
    return 0


def stop(root: Path, port: int) -> int:
    """Stop the service, by SIGKILL if it does not end in time; returns when its port is free."""
    with alone(root):
        pid = running(root)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not _gone(root, _STOP_TIMEOUT_S):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _gone(root, _STOP_TIMEOUT_S)
        pid_file(root).unlink(missing_ok=True)
    wait_until_free(root, port, timeout_s=_STOP_TIMEOUT_S)
    return 0


def status(root: Path) -> int:
    """Return 0 when the service runs and 3 when it is stopped."""
    return STOPPED if running(root) is None else 0


def wait_until_free(root: Path, port: int, *, timeout_s: float) -> None:
    """Wait until nobody listens on the port of a service that was stopped, or end this command."""
    deadline = time.monotonic() + timeout_s
    while not _is_free(port):
        if time.monotonic() > deadline:
            sys.exit(f"{root}: stopped, but port {port} is in use by another process")
        time.sleep(_POLL_S)


def spawn(root: Path, argv: list[str], environment: Mapping[str, str], *, directory: Path) -> None:
    """Start the service's program as a daemon of `root`, or end this command and say why it does not run.

    Args:
        root: the instance's directory; the caller has it `alone`.
        argv: the program, by its whole path, and its arguments.
        environment: all of it, but for the mark of the lab.
        directory: where it runs.
    """
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        _become(root, argv, environment, directory=directory, report=write_end)
    os.close(write_end)
    # closed by exec, so this ends when the program runs, or says why it does not
    with os.fdopen(read_end) as report:
        if failure := report.read():
            sys.exit(f"{root}: not started: {failure}")


def _become(
    root: Path,
    argv: list[str],
    environment: Mapping[str, str],
    *,
    directory: Path,
    report: int,
) -> NoReturn:
    try:
        os.setsid()
        write_atomically(pid_file(root), {"pid": os.getpid(), "started_ticks": started_ticks(os.getpid())})
        _redirect_streams(root)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(directory)
        os.execve(argv[0], argv, {**environment, MARK: str(root)})  # noqa: S606 - no shell is the point
    except BaseException as error:  # noqa: BLE001 - a forked child must never return into its parent's code
        os.write(report, repr(error).encode())
    os._exit(1)


def _redirect_streams(root: Path) -> None:
    log = root / "log" / "service.log"
    log.parent.mkdir(exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # an inherited pipe would keep whoever reads this command's output waiting for the service's end
    os.dup2(output, 1)
    os.dup2(output, 2)


def running(root: Path) -> int | None:
    """Return the process id of the service of `root`; None: it does not run, or not any more."""
    try:
        known = json.loads(pid_file(root).read_text())
    except FileNotFoundError:
        return None
    return int(known["pid"]) if started_ticks(known["pid"]) == known["started_ticks"] else None


def _gone(root: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while running(root) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def pid_file(root: Path) -> Path:
    """Return where the service of `root` notes its process."""
    return root / "run" / "pid.json"


def write_atomically(path: Path, content: dict[str, int | None]) -> None:
    """Write JSON, so that a reader finds all of it or what was there before."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(path)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Let one command at a time change the service; a child that is becoming it counts as that command."""
    (root / "run").mkdir(parents=True, exist_ok=True)
    with (root / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_command(
    module: str,
    start: Callable[[Path, int], int],
    stop: Callable[[Path, int], int],
    *,
    description: str | None,
) -> int:
    """Run the command that the arguments say, for the instance that they name; return its exit code."""
    arguments = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    arguments.add_argument("command", choices=("start", "stop", "status"))
    arguments.add_argument("--root", type=Path, required=True, help="the instance's directory")
    arguments.add_argument("--port", type=int, required=True, help="its port on 127.0.0.1")
    given = arguments.parse_args()
    root = given.root.absolute()
    match given.command:
        case "start":
            return start(root, given.port)
        case "stop":
            return stop(root, given.port)
        case _:
            return status(root)


if __name__ == "__main__":
    sys.exit(run_command("lab.service", start, stop, description=__doc__))
