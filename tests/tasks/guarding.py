"""What the tests of a NixOS host's guard share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from lab.nixos import LabNixos
from rules.fleet import Instance
from rules.nixos_actions import ArmGuard, RestoreSystem
from tasks.nixos_guard import arm_guard

DEPLOYMENT = "nixos-web-1"
NAME = f"sovereign-guard-{DEPLOYMENT}"
HOST = "alpha"


def recorded(lab: LabNixos) -> RestoreSystem:
    """What a deployment would record of the host now."""
    host = lab.host(HOST)
    return RestoreSystem(
        instance=HOST,
        release=os.path.realpath(host.profile),
        running=os.path.realpath(host.root / "run" / "current-system"),
        generation=int(host.profile.readlink().name.split("-")[1]),
        booted=os.path.realpath(host.root / "run" / "booted-system"),
    )


def arm(instance: Instance, back: RestoreSystem, guard_s: float = 300.0) -> None:
    arm_guard(instance, ArmGuard(instance=HOST, guard_s=guard_s, back=back), deployment=DEPLOYMENT)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def log(lab: LabNixos) -> str:
    """What the guard has written on the host."""
    file = lab.host(HOST).root / "state" / "guard" / DEPLOYMENT / "log"
    return file.read_text() if file.exists() else ""


def has_restored(lab: LabNixos) -> Callable[[], bool]:
    """Return whether the guard says that it is done, and has removed itself."""
    return lambda: "as recorded: done" in log(lab) and not guard_files(lab)


def guard_files(lab: LabNixos) -> list[Path]:
    host = lab.host(HOST)
    files = [*host.guard_units.rglob("*"), *(host.root / "state" / "guard").rglob("*.sh")]
    return [file for file in files if not file.is_dir()]
