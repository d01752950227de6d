"""A cluster at work: tasks without end, actors where wanted, and a report of what became of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from lab.part import Part
from lab.processes import LabError, tail, wait_until
from lab.ray_cluster import HEAD, LabRay
from lab.ray_install import ray_python
from rules.frozen import Count, Frozen, Seconds

_DRIVER = Path(__file__).with_name("ray_driver.py")
_START_TIMEOUT_S = 120.0
_PATIENCE_S = 60.0
_RESERVE_S = 10.0


class WorkReport(Frozen):
    """What became of the work.

    `errors` are in Ray's words, `missing` are tasks of which nothing was heard in the end, `repeated` those
    that were started more than once. `longest_gap_s` is the longest time in which no task was done.
    """

    submitted: Count
    done: Count
    by_host: dict[str, Count]
    errors: tuple[str, ...]
    missing: Count
    repeated: tuple[str, ...]
    longest_gap_s: Seconds
    actors_restarted: dict[str, Count]
    calls: Count
    call_errors: tuple[str, ...]


class RayWorkload(Part):
    """Work for a cluster, from a driver on its head's host: begun and ended, or used by `with`.

    Args:
        lab: the running cluster.
        parallel: how many tasks of each kind are out at once.
        task_s: how long each task takes, in seconds.
        actors: how many restartable actors are called all the time: `counter-1`, `counter-2`…
        mortal: whether there is one more, `mortal`, which Ray does not restart.
        once: whether there are tasks, named `once`, that Ray does not repeat; the others are `repeatable`.
    """

    def __init__(
        self,
        lab: LabRay,
        *,
        parallel: int = 4,
        task_s: float = 0.5,
        actors: int = 0,
        mortal: bool = False,
        once: bool = False,
    ) -> None:
        self.lab, self.actors = lab, actors + mortal
        flags = [f"--{name}" for name, wanted in (("mortal", mortal), ("once", once)) if wanted]
        self._out = lab.directory / "work.jsonl"
        self._log = lab.directory / "work.log"
        numbers = {"parallel": parallel, "task-s": task_s, "actors": actors, "patience-s": _PATIENCE_S}
        self._options = (*flags, *(f"--{name}={number}" for name, number in numbers.items()))
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the driver, and wait until tasks are done and every actor answers.

        Raises:
            LabError: that does not happen in time.
        """
        self._out.write_text("")
        where = (f"--address={self.lab.gcs}", f"--out={self._out}")
        # -P: modules beside the driver must not stand in for those that Ray imports
        argv = (*self.lab.hosts.enter(HEAD), str(ray_python()), "-P", str(_DRIVER), *where, *self._options)
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.lab.environment(),
                cwd="/",
            )
        try:
            wait_until(self._is_at_work, timeout_s=_START_TIMEOUT_S, what="the first work to be done")
        except LabError as error:
            self.stop()
            raise LabError(f"{error}; its log ends:\n{tail(self._log)}") from error

    def stop(self) -> None:
        """End the driver at once, with all that is out."""
        if self._driver:
            # behind `nsenter` it has the same process group, though another number of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.communicate()
            self._driver = None

    def finish(self) -> WorkReport:
        """Submit no more, wait for what is out, at most a minute, and report.

        Raises:
            LabError: the driver does not end, or ended before; carries the end of its log.
        """
        if not self._driver:
            raise LabError("no work was begun")
        try:
            self._driver.communicate(timeout=_PATIENCE_S + _RESERVE_S)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"the driver does not end; its log ends:\n{tail(self._log)}") from error
        finally:
            self.stop()
        events = self.events()
        if not events or events[-1]["event"] != "over":
            raise LabError(f"the driver ended too early; its log ends:\n{tail(self._log)}")
        return report(events)

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened so far, oldest first."""
        lines = self._out.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]  # after the last newline there may be half a line

    def _is_at_work(self) -> bool:
        if self._driver and self._driver.poll() is not None:
            raise LabError(f"the driver exited {self._driver.returncode}")
        events = self.events()
        actors = {event["name"] for event in events if event["event"] == "call-done"}
        return len(actors) == self.actors and any(event["event"] == "task-done" for event in events)


def report(events: list[dict[str, Any]]) -> WorkReport:
    """Return what the events of a workload add up to."""
    of = {kind: [e for e in events if e["event"] == kind] for kind in {e["event"] for e in events}}
    done, calls = of.get("task-done", []), of.get("call-done", [])
    starts = Counter((event["name"], event["number"]) for event in of.get("task-started", []))
    ends = [event["at"] for event in done]
    return WorkReport(
        submitted=len(of.get("task-submitted", [])),
        done=len(done),
        by_host=dict(Counter(event["host"] for event in done)),
        errors=tuple(f"{e['name']} {e['number']}: {e['error']}" for e in of.get("task-failed", [])),
        missing=len(of.get("task-missing", [])),
        repeated=tuple(f"{name} {number}" for (name, number), count in sorted(starts.items()) if count > 1),
        longest_gap_s=max((b - a for a, b in itertools.pairwise(ends)), default=0.0),
        actors_restarted=_restarts(calls),
        calls=len(calls),
        call_errors=tuple(f"{e['name']}: {e['error']}" for e in of.get("call-failed", [])),
    )


def _restarts(calls: list[dict[str, Any]]) -> dict[str, int]:
    """Return how often each actor began to count anew."""
    counts: dict[str, list[int]] = {}
    for call in calls:
        counts.setdefault(call["name"], []).append(call["count"])
    return {
        name: sum(later < earlier for earlier, later in itertools.pairwise(seen))
        for name, seen in counts.items()
    }
