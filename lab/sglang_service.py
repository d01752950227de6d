"""The service commands of a model server: `python -m lab.sglang_service start|stop|status --root R --port P`.

What is started stands in `<root>/service.json`, which is no part of any release: the same commands start the
simulator and the real server. As in `lab.service`, each may be killed at any moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn, TypedDict

from lab.identity import MARK, started_ticks
from lab.service import (
    STOPPED,
    alone,
    is_free,
    pid_file,
    redirect_streams,
    running,
    write_atomically,
)

SERVICE_FILE = "service.json"

_POLL_S = 0.01
_PORT_FREE_S = 10.0


class Service(TypedDict):
    """How the server of one instance is started: its command, all of its environment, and its patience."""

    argv: list[str]
    environment: dict[str, str]
    stop_timeout_s: float


def start(root: Path) -> int:
    """Start the server of the release that `current` points to; running already is fine.

    Returns as soon as its process is there: it takes longer until it answers.
    """
    with alone(root):
        if running(root) is not None:
            return 0
        if not (root / "current" / "server.yaml").is_file():
            sys.exit(f"{root}/current points to no release with a server.yaml: nothing was started")
        service = _service(root)
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            os.close(read_end)
            _become_server(root, service, report=write_end)
        os.close(write_end)
        # closed by exec, so this ends when the server's program runs, or says why it does not
        with os.fdopen(read_end) as report:
            if failure := report.read():
                sys.exit(f"{root}: not started: {failure}")
    return 0


def stop(root: Path, port: int) -> int:
    """Ask the server to end and wait: its running requests end first. What is left after that is killed."""
    with alone(root):
        pid = running(root)
        if pid is not None:
            _end(root, pid)
        pid_file(root).unlink(missing_ok=True)
    deadline = time.monotonic() + _PORT_FREE_S
    while not is_free(port):
        if time.monotonic() > deadline:
            sys.exit(f"{root}: stopped, but port {port} is in use by another process")
        time.sleep(_POLL_S)
    return 0


def status(root: Path) -> int:
    """Return 0 when the server runs and 3 when it is stopped."""
    return STOPPED if running(root) is None else 0


def _end(root: Path, pid: int) -> None:
    ticks = started_ticks(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _service(root)["stop_timeout_s"]
    while started_ticks(pid) == ticks and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    # the real server's engine is processes of its own, in the server's group
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    while started_ticks(pid) == ticks:
        time.sleep(_POLL_S)


def _service(root: Path) -> Service:
    service: Service = json.loads((root / SERVICE_FILE).read_text())
    return service


def _become_server(root: Path, service: Service, *, report: int) -> NoReturn:
    try:
        os.setsid()
        write_atomically(pid_file(root), {"pid": os.getpid(), "started_ticks": started_ticks(os.getpid())})
        redirect_streams(root)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(root)
        argv = service["argv"]
        os.execve(argv[0], argv, {**service["environment"], MARK: str(root)})  # noqa: S606 - no shell is the point
    except BaseException as error:  # noqa: BLE001 - a forked child must never return into its parent's code
        os.write(report, repr(error).encode())
    os._exit(1)


def main() -> int:
    """Run one command and return its exit code."""
    arguments = argparse.ArgumentParser(prog="python -m lab.sglang_service", description=__doc__)
    arguments.add_argument("command", choices=("start", "stop", "status"))
    arguments.add_argument("--root", type=Path, required=True, help="the instance's directory")
    arguments.add_argument("--port", type=int, required=True, help="its port on 127.0.0.1")
    given = arguments.parse_args()
    root = given.root.absolute()
    match given.command:
        case "start":
            return start(root)
        case "stop":
            return stop(root, given.port)
        case _:
            return status(root)


if __name__ == "__main__":
    sys.exit(main())
