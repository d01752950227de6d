"""The service commands of one Ray worker node: `python -m lab.ray_node start|stop|status`.

What a unit with `ExecStart=ray start … --block` does, as three short commands. As there, the service is
the `ray start` process: it stays, and counts as running, when its raylet has drained itself and is gone. So a
node that was drained comes back by stop and start, never by start alone.

The node's release is resolved when it starts: workers that it starts later import the same code, also while
`current` points elsewhere already.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from lab.identity import MARK, started_ticks
from lab.service import alone, pid_file, running, write_atomically

STOPPED = 3

_START_TIMEOUT_S = 90.0
_HEAD_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 10.0
_STOP_RESERVE_S = 15.0
_POLL_S = 0.05
_TAIL_BYTES = 1500
#: What Ray says when the machine is so busy that a node is not listed within the 30 s that Ray gives it.
_TOO_BUSY = b"timed out during startup"
#: What Ray prints when the node has joined its cluster.
_JOINED = b"block forever until terminated"
#: Waits until it is known, so that no node ever runs that `stop` would not find.
_WHEN_TOLD = 'read -r go && exec "$@" </dev/null'
_ASK_HEAD = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"


class NodeSettings(TypedDict):
    """What a node's commands must know; lies as `<root>/node.json`."""

    name: str
    enter: list[str]  #: what to put before a command so that it runs on the node's host
    init: int  #: pid of its host's first process; 0: the host is this machine
    init_ticks: int
    gcs: str  #: address:port of the cluster's head, as the host reaches it
    python: str  #: an interpreter that can import Ray
    options: list[str]  #: of `ray start`, beside those that the commands know
    environment: dict[str, str]
    drain_s: float  #: how long the node drains itself when it is told to stop


class NotDoneError(Exception):
    """A command could not be carried out; says how things are left."""


class TooBusyError(NotDoneError):
    """Ray gave up because the machine was too slow for it; the node does not run."""


def start(root: Path) -> None:
    """Start the node in the release that `current` points to; running already is fine.

    Returns when it has joined its cluster.

    Raises:
        NotDoneError: no release, no head, or the node ended or did not join in time; it does not run then.
    """
    node = _settings(root)
    with alone(root):
        try:
            _start_once(root, node)
        except TooBusyError:
            _start_once(root, node)


def stop(root: Path) -> None:
    """Stop the node, which drains itself first, and end all that is left of it; returns when it is gone."""
    node = _settings(root)
    with alone(root):
        _end(root, node, drain_s=node["drain_s"] + _STOP_RESERVE_S)


def kill_node(root: Path) -> None:
    """Kill all that runs on the node's host at once, as a crash would: nothing is drained or told."""
    pid = running(root)
    _kill_rest(_settings(root), _family(pid) if pid else ())


def status(root: Path) -> int:
    """Return 0 when the node's `ray start` process runs and 3 when it is stopped."""
    return 0 if running(root) else STOPPED


def _start_once(root: Path, node: NodeSettings) -> None:
    if not running(root):
        labels = (root / "current").resolve() / "labels.yaml"
        if not labels.is_file():
            raise NotDoneError(f"{labels} is missing: nothing was started")
        _expect_head(node)
        _kill_rest(node, ())
        _launch(root, node, labels)
    # running already too: an earlier start may have been ended before the node had joined
    _wait_until_joined(root, node)


def _launch(root: Path, node: NodeSettings, labels: Path) -> None:
    log = _log(root)
    log.parent.mkdir(exist_ok=True)
    log_from = log.stat().st_size if log.exists() else 0
    launcher = _launcher(node, labels, log)
    # `nsenter` forks into the host's processes, and stays as their parent
    pid = _child_of(launcher) if node["enter"] else launcher.pid
    known = {"pid": pid, "started_ticks": started_ticks(pid), "log_from": log_from}
    write_atomically(pid_file(root), known)
    assert launcher.stdin  # noqa: S101 - see below
    with contextlib.suppress(BrokenPipeError):  # ended already: seen when it is waited for
        launcher.stdin.write(b"go\n")
        launcher.stdin.close()


def _launcher(node: NodeSettings, labels: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start what becomes the node's `ray start` when it is told to."""
    root = labels.parents[2]
    ray = (node["python"], "-m", "ray.scripts.scripts", "start", "--block", "--address", node["gcs"])
    own = ("--labels-file", str(labels), "--resources", json.dumps({node["name"]: 1}))
    with log.open("ab") as output:
        return subprocess.Popen(
            (*node["enter"], "sh", "-c", _WHEN_TOLD, "sh", *ray, *own, *node["options"]),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**node["environment"], "PYTHONPATH": str(labels.parent), MARK: str(root)},
            cwd="/",
        )


def _child_of(launcher: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    deadline = time.monotonic() + _HEAD_TIMEOUT_S
    while launcher.poll() is None and time.monotonic() < deadline:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(_POLL_S)
    launcher.kill()
    raise NotDoneError("the node's host cannot be entered: nothing was started")


def _wait_until_joined(root: Path, node: NodeSettings) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _JOINED not in (said := _said(root)):
        is_late = time.monotonic() > deadline
        if is_late or not running(root):
            how = f"did not join within {_START_TIMEOUT_S:g} s" if is_late else "ended"
            _end(root, node, drain_s=0)
            tail = said[-_TAIL_BYTES:].decode(errors="replace").strip()
            kind = TooBusyError if _TOO_BUSY in said else NotDoneError
            raise kind(f"the node {how} and was stopped; {_log(root)} ends:\n{tail}")
        time.sleep(_POLL_S)


def _said(root: Path) -> bytes:
    """Return what the node has said since it was started last."""
    with _log(root).open("rb") as file:
        file.seek(json.loads(pid_file(root).read_text())["log_from"])
        return file.read()


def _expect_head(node: NodeSettings) -> None:
    # Ray itself would try for minutes
    address, _, port = node["gcs"].rpartition(":")
    argv = (*node["enter"], node["python"], "-I", "-S", "-c", _ASK_HEAD, address, port)
    asked = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=2 * _HEAD_TIMEOUT_S)
    if asked.returncode != 0:
        why = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        raise NotDoneError(f"the cluster's head does not answer at {node['gcs']}: {why}; nothing was started")


def _end(root: Path, node: NodeSettings, *, drain_s: float) -> None:
    pid = running(root)
    family = _family(pid) if pid else ()
    if pid:
        if drain_s:
            _signal(pid, signal.SIGTERM)
            _wait_until(lambda: not running(root), drain_s)
        family = tuple({*family, *_family(pid)})
    _kill_rest(node, family)
    pid_file(root).unlink(missing_ok=True)


def _kill_rest(node: NodeSettings, family: tuple[tuple[int, int], ...]) -> None:
    """Kill what is left of the node: all of its host's processes, or those that were its family."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while left := [pid for pid, ticks in (_inhabitants(node) or family) if started_ticks(pid) == ticks]:
        if time.monotonic() > deadline:
            raise NotDoneError(f"processes {left} of the node do not end even when killed")
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _inhabitants(node: NodeSettings) -> tuple[tuple[int, int], ...]:
    """Return pid and start of all processes of the node's host but the first; none for this machine."""
    if not node["init"] or started_ticks(node["init"]) != node["init_ticks"]:
        return ()
    namespace = Path(f"/proc/{node['init']}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == namespace:
                found.append(int(entry.name))
    return tuple((p, t) for p in found if p != node["init"] and (t := started_ticks(p)) is not None)


def _family(pid: int) -> tuple[tuple[int, int], ...]:
    """Return pid and start of a process and of all that descend from it."""
    found, left = [], [pid]
    while left:
        each = left.pop()
        if (ticks := started_ticks(each)) is None:
            continue
        found.append((each, ticks))
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                left += [int(child) for child in (task / "children").read_text().split()]
    return tuple(found)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _settings(root: Path) -> NodeSettings:
    settings: NodeSettings = json.loads((root / "node.json").read_text())
    return settings


def _log(root: Path) -> Path:
    return root / "log" / "ray.log"


def main() -> int:
    """Run one command and return its exit code."""
    arguments = argparse.ArgumentParser(prog="python -m lab.ray_node", description=__doc__)
    arguments.add_argument("command", choices=("start", "stop", "status"))
    arguments.add_argument(
        "--root", type=Path, required=True, help="the node's directory, with its node.json"
    )
    given = arguments.parse_args()
    root = given.root.absolute()
    if given.command == "status":
        return status(root)
    try:
        (start if given.command == "start" else stop)(root)
    except NotDoneError as error:
        print(f"{root}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
