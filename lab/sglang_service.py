"""The service commands of a model server: `python -m lab.sglang_service start|stop|status --root R --port P`.

What is started stands in `<root>/service.json`, which is no part of any release: the same commands start the
simulator and the real server. As in `lab.service`, each may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TypedDict

from lab.identity import started_ticks
from lab.service import alone, pid_file, run_command, running, spawn, wait_until_free

SERVICE_FILE = "service.json"

_POLL_S = 0.01
_PORT_FREE_S = 10.0


class Service(TypedDict):
    """How the server of one instance is started: its command, all of its environment, and its patience."""

    argv: list[str]
    environment: dict[str, str]
    stop_timeout_s: float


def start(root: Path, _port: int) -> int:
    """Start the server of the release that `current` points to; running already is fine.

    Returns as soon as its process is there: it takes longer until it answers.
    """
    with alone(root):
        if running(root) is not None:
            return 0
        if not (root / "current" / "server.yaml").is_file():
            sys.exit(f"{root}/current points to no release with a server.yaml: nothing was started")
        service = _service(root)
        spawn(root, service["argv"], service["environment"], directory=root)
    return 0


def stop(root: Path, port: int) -> int:
    """Ask the server to end and wait: its running requests end first. What is left after that is killed."""
    with alone(root):
        pid = running(root)
        if pid is not None:
            _end(root, pid)
        pid_file(root).unlink(missing_ok=True)
    wait_until_free(root, port, timeout_s=_PORT_FREE_S)
    return 0


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


if __name__ == "__main__":
    sys.exit(run_command("lab.sglang_service", start, stop, description=__doc__))
