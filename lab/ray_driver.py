"""The work that a Ray cluster has in the lab: a driver, run by an interpreter that can import Ray.

It submits tasks and calls actors until its input ends, waits for what is still out, and writes what happened
as JSON lines. It uses nothing of this project, and is run by path. See `lab.ray_workload`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Ray is in no environment of this project's
ray: Any = importlib.import_module("ray")

_WAIT_S = 0.2
_BETWEEN_CALLS_S = 0.2
_ENDLESS = -1


def main() -> None:
    """Work until the input ends, then until all is back or `--patience-s` are over."""
    given = _arguments()
    ray.init(address=given.address, log_to_driver=False, logging_level="warning", namespace="lab")
    over = threading.Event()
    threading.Thread(target=_wait_for_the_end_of_input, args=(over,), daemon=True).start()
    Work(given).run(over, given.patience_s)
    # not `ray.shutdown`: it ends what is still out, and that has been waited for long enough
    os._exit(0)


def _wait_for_the_end_of_input(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


class Work:
    """What is out, and where it is noted."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.file = Path(given.out).open("a", buffering=1)  # noqa: SIM115 - as long as the process lives
        self.kinds = {"repeatable": 3, **({"once": 0} if given.once else {})}
        self.out: dict[Any, tuple[str, str, int]] = {}  # reference -> "task" or "call", name, number
        self.submitted = dict.fromkeys(self.kinds, 0)
        restarts = {f"counter-{number}": _ENDLESS for number in range(1, given.actors + 1)}
        restarts |= {"mortal": 0} if given.mortal else {}
        self.actors = {name: _actor(name, number) for name, number in restarts.items()}
        self.next_call = dict.fromkeys(self.actors, 0.0)

    def run(self, over: threading.Event, patience_s: float) -> None:
        """Submit until `over`, and note each end."""
        while not over.is_set():
            for kind in self.kinds:
                self._submit(kind)
            for name in self.actors:
                self._call(name)
            self._collect()
        deadline = time.monotonic() + patience_s
        while self.out and time.monotonic() < deadline:
            self._collect()
        for what, name, number in self.out.values():
            self._note(f"{what}-missing", name=name, number=number)
        self._note("over")

    def _submit(self, kind: str) -> None:
        while sum(name == kind for _, name, _ in self.out.values()) < self.given.parallel:
            number = self.submitted[kind]
            self.submitted[kind] += 1
            task = _task.options(name=kind, max_retries=self.kinds[kind])
            self._note("task-submitted", name=kind, number=number)
            self.out[task.remote(self.given.out, kind, number, self.given.task_s)] = ("task", kind, number)

    def _call(self, name: str) -> None:
        is_out = any(what == "call" and actor == name for what, actor, _ in self.out.values())
        if not is_out and time.monotonic() >= self.next_call[name]:
            self.next_call[name] = time.monotonic() + _BETWEEN_CALLS_S
            self.out[self.actors[name].count.remote()] = ("call", name, 0)

    def _collect(self) -> None:
        if not self.out:
            time.sleep(_WAIT_S)
            return
        ready, _ = ray.wait(list(self.out), timeout=_WAIT_S)
        for reference in ready:
            what, name, number = self.out.pop(reference)
            try:
                host, count = ray.get(reference)
            except Exception as error:  # noqa: BLE001 - whatever Ray says is what happened
                words = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                self._note(f"{what}-failed", name=name, number=number, error=words)
                if what == "call":
                    self.next_call[name] = time.monotonic() + 5 * _BETWEEN_CALLS_S
            else:
                self._note(f"{what}-done", name=name, number=number, host=host, count=count)

    def _note(self, event: str, **fields: object) -> None:
        self.file.write(json.dumps({"event": event, "at": time.time(), **fields}) + "\n")


def _actor(name: str, max_restarts: int) -> Any:
    retries = 0 if max_restarts == 0 else _ENDLESS
    options = {"max_restarts": max_restarts, "max_task_retries": retries, "scheduling_strategy": "SPREAD"}
    return _Counter.options(name=name, **options).remote()


def _run_task(out: str, kind: str, number: int, task_s: float) -> tuple[str, int]:
    # every start is noted by the task itself: the driver does not learn of repeated ones
    which = {"name": kind, "number": number}
    with Path(out).open("a") as file:
        file.write(json.dumps({"event": "task-started", "at": time.time(), "host": _node(), **which}) + "\n")
    time.sleep(task_s)
    return _node(), 0


class _Count:
    def __init__(self) -> None:
        self.number = 0

    def count(self) -> tuple[str, int]:
        self.number += 1
        return _node(), self.number


def _node() -> str:
    return Path(os.environ["SOVEREIGN_LAB"]).name  # its directory, which all that it starts inherits


_task = ray.remote(num_cpus=0.5)(_run_task)
_Counter = ray.remote(num_cpus=0.1)(_Count)


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--address", required=True, help="address:port of the cluster's head")
    arguments.add_argument("--out", required=True, help="file of JSON lines, which every host sees")
    arguments.add_argument(
        "--parallel", type=int, required=True, help="tasks of each kind that are out at once"
    )
    arguments.add_argument("--task-s", type=float, required=True)
    arguments.add_argument("--actors", type=int, required=True, help="how many that Ray restarts")
    arguments.add_argument("--patience-s", type=float, required=True)
    arguments.add_argument("--mortal", action="store_true", help="an actor that Ray does not restart")
    arguments.add_argument("--once", action="store_true", help="tasks that Ray does not repeat, too")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
