"""The units of one of the lab's NixOS hosts: what a systemd does, as far as deployments use it.

Each unit that runs has a supervisor of its own, which notes what it does in `run/systemd`: a reboot takes it
away. `lab.nixos_contract` holds it to the real one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from typing import Any

from lab.nixos_machine import RUNNING, Failure, Machine, in_words, last, seconds
from lab.nixos_supervisor import supervise, supervise_service, supervise_timer

_POLL_S = 0.01


class Units:
    """What is done to units: each method is a verb of systemctl's."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(self, unit: str, *, wait: bool = True) -> None:
        """Start a unit, and wait until it has started.

        Raises:
            Failure: there is none, or it failed.
        """
        with self.machine.alone():
            settings = self.machine.definition(unit)
            known = self.machine.read(unit)
            # an elapsed timer is active, and begins anew
            if known["active"] in RUNNING and known["sub"] not in ("elapsed", "auto-restart"):
                return
            self._end(known)
            if unit.endswith(".timer"):
                _start_timer(self.machine, unit, settings)
                return
            kind = last(settings, "Service.Type", "simple")
            sub, active = ("start", "activating") if kind == "oneshot" else ("running", "active")
            work = functools.partial(supervise_service, self.machine, unit)
            supervise(self.machine, unit, work, active=active, sub=sub)
        if wait and kind == "oneshot":
            self._wait_until_started(unit)

    def _wait_until_started(self, unit: str) -> None:
        while (known := self.machine.read(unit))["active"] == "activating" and known["sub"] == "start":
            time.sleep(_POLL_S)
        if known["active"] in ("failed", "activating"):
            words = f"Job for {unit} failed because the control process exited with error code."
            raise Failure(f'{words}\nSee "systemctl status {unit}" and "journalctl -xeu {unit}" for details.')

    def stop(self, unit: str) -> None:
        """Stop a unit and wait until nothing of it runs.

        Raises:
            Failure: there is none.
        """
        known = self.machine.read(unit)
        if self.machine.file(unit) is None and unit not in self.machine.known():
            raise Failure(f"Failed to stop {unit}: Unit {unit} not loaded.", 5)
        self._end(known)
        with self.machine.alone():
            if known["active"] != "failed" and unit in self.machine.known():
                self.machine.note(unit, active="inactive", sub="dead", result="success")

    def _end(self, known: dict[str, Any]) -> None:
        """End a unit's supervisor, which ends what it looks after."""
        if pid := self.machine.supervisor(known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            while self.machine.supervisor(known):
                time.sleep(_POLL_S)

    def restart(self, unit: str) -> None:
        """Stop a unit where it runs, and start it."""
        self.machine.definition(unit)
        if self.machine.read(unit)["active"] in RUNNING:
            self.stop(unit)
        self.start(unit)

    def reload(self) -> None:
        """Read all units again. The real one begins the time of those timers anew that wait (seen in 252)."""
        with self.machine.alone():
            waiting = [u for u in self.machine.known() if self.machine.read(u)["sub"] == "waiting"]
        for timer in waiting:
            # one that is defined no more goes on as it was
            if self.machine.file(timer):
                self.restart(timer)

    def properties(self, unit: str) -> dict[str, str]:
        """Return what `show` says of a unit."""
        known, file = self.machine.read(unit), self.machine.file(unit)
        is_loaded = file is not None or unit in self.machine.known()
        shown = {
            "Id": unit,
            "LoadState": "loaded" if is_loaded else "not-found",
            "ActiveState": known["active"],
            "SubState": known["sub"],
            "FragmentPath": str(file or ""),
        }
        if unit.endswith(".timer"):
            elapses = in_words(known["elapses"]) if known["sub"] == "waiting" else "infinity"
            began_us = str(round(known.get("began", 0.0) * 1e6))
            times = {"NextElapseUSecMonotonic": elapses, "InactiveExitTimestampMonotonic": began_us}
            return {**shown, "Result": known["result"], **times}
        pid = self.machine.supervisor(known) or 0
        status = str(known.get("status", 0))
        return {**shown, "Result": known["result"], "ExecMainStatus": status, "MainPID": str(pid)}


def _start_timer(machine: Machine, unit: str, settings: dict[str, list[str]]) -> None:
    spans = settings.get("Timer.OnActiveSec")
    if not spans:
        raise Failure(f"{unit}: the lab's timers have OnActiveSec= and nothing else")
    began = time.monotonic()
    elapses = began + seconds(spans[-1])

    def fire() -> None:
        with contextlib.suppress(Failure):
            Units(machine).start(service, wait=False)

    service = last(settings, "Timer.Unit", f"{unit.removesuffix('.timer')}.service")
    work = functools.partial(supervise_timer, machine, unit, elapses, fire)
    supervise(machine, unit, work, active="active", sub="waiting", elapses=elapses, began=began)
