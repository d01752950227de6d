"""A deployment that tests open by hand, without a flow."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from rules.entries import Opened
from rules.fleet import Fleet
from rules.plan import Step, SwitchRelease
from rules.undo import RestoreRelease
from tasks.lease import Owner
from tasks.settings import Settings
from tests.rules.builders import fleet as paper_fleet

HOST = "host-a"
#: A step that changes something, for effects that tests bring themselves.
STEP = Step(
    number=0,
    title="blue-1: switch",
    action=SwitchRelease(instance="blue-1"),
    undo=RestoreRelease(instance="blue-1", release="1.0", running="1.0"),
)


def settings_in(directory: Path, **changes: Any) -> Settings:
    """Return settings with a journal below `directory`, and no long waits."""
    quick = {"host": HOST, "api_patience_s": 1.0, "api_patience_undoing_s": 0.5, "takeover_patience_s": 0.3}
    return Settings(**{"journal_dir": directory / "journal", **quick, **changes})


def opening(fleet: Fleet | None = None, **changes: Any) -> Opened:
    """Return the opening entry of a deployment with names of its own, so that tests share a server."""
    unique = uuid.uuid4().hex[:8]
    return Opened(
        **{
            "at": datetime.now(UTC),
            "deployment": f"web-2-0-{unique}",
            "target": f"application-{unique}",
            "flow_run_id": str(uuid.uuid4()),
            "host": HOST,
            "fleet": fleet or paper_fleet(),
            "summary": "web 2.0",
            **changes,
        }
    )


def owner(deployment: str, **changes: Any) -> Owner:
    """Return how a process of this host signs a lock."""
    signed = {"flow_run_id": str(uuid.uuid4()), "host": HOST, "pid": os.getpid(), "lease_s": 60.0}
    return Owner(**{"deployment": deployment, "since": datetime.now(UTC), **signed, **changes})


def running_flow_run(api_url: str) -> str:
    """Return the id of a flow run that reads as running."""
    with httpx.Client(base_url=f"{api_url}/", timeout=30) as http:
        flow = http.post("flows/", json={"name": "by-hand"}).json()
        run = http.post("flow_runs/", json={"flow_id": flow["id"], "state": {"type": "RUNNING"}}).json()
    return str(run["id"])


def end_flow_run(api_url: str, flow_run_id: str, state: str) -> None:
    """Set a flow run's state, as a person or Prefect itself would."""
    url = f"{api_url}/flow_runs/{flow_run_id}/set_state"
    httpx.post(url, json={"state": {"type": state}, "force": True}, timeout=30).raise_for_status()


@contextmanager
def another_process(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """Run `work` in another process, and yield its id once it calls what it is given; end it at last.

    It is forked, so `work` does no more than files and locks: a thread of ours is not there with it.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            work(lambda: os.close(writing))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        os.read(reading, 1)  # ends when the other side is closed
        yield pid
    finally:
        os.close(reading)
        kill(pid)


def kill(pid: int) -> None:
    """Kill a process that this one started, and wait until it is gone; gone already is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
