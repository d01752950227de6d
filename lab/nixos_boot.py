"""What one of the lab's NixOS hosts does when it boots."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from lab.identity import started_ticks
from lab.nixos_machine import Failure, Machine
from lab.nixos_supervisor import redirect
from lab.nixos_units import Units

_UNITS_WANTED = "timers.target.wants"
#: How long the host cannot be asked at least, in a reboot.
DOWN_S = 0.3


def go_down(machine: Machine) -> None:
    """Take the host down: nothing of it runs any more, and nobody can ask it anything."""
    (machine.root / "down").touch()
    for unit in machine.known():
        known = machine.read(unit)
        if pid := machine.supervisor(known):
            _kill_with_children(pid)
    shutil.rmtree(machine.root / "run", ignore_errors=True)


def come_up(machine: Machine, system: str | None = None) -> bool:
    """Boot a system, the default one unless another is named; return whether the host came up."""
    root, run = machine.root, machine.root / "run"
    chosen = Path(system or os.path.realpath(root / "boot-default"))
    if not (chosen / "init-interface-version").exists() or (chosen / "lab" / "breaks_boot").read_text():
        return False
    shutil.rmtree(run, ignore_errors=True)
    for place in (machine.directories[-1], run / "failing"):
        place.mkdir(parents=True)
    for link in ("booted-system", "current-system"):
        (run / link).symlink_to(chosen)
    boot_s = float((chosen / "lab" / "boot_s").read_text() or 0)
    (run / "booted-until").write_text(str(time.monotonic() + boot_s))
    with contextlib.suppress(FileNotFoundError):
        (root / "cut").unlink()
    if (chosen / "lab" / "cuts_network").read_text():
        (root / "cut").touch()
    _start_units(machine, (chosen / "lab" / "failing_units").read_text().split())
    (root / "down").unlink(missing_ok=True)
    return True


def _start_units(machine: Machine, failing: list[str]) -> None:
    units = Units(machine)
    for unit in failing:
        (machine.root / "run" / "failing" / unit).touch()
        text = "[Service]\nType=oneshot\nExecStart=/bin/false\n"
        (machine.directories[-1] / unit).write_text(text)
        with contextlib.suppress(Failure):
            units.start(unit)
    wanted = machine.root / "guard-units" / _UNITS_WANTED
    for link in sorted(wanted.iterdir()) if wanted.is_dir() else ():
        with contextlib.suppress(Failure):
            units.start(link.name)


def _kill_with_children(pid: int) -> None:
    """Kill a unit's supervisor and what it runs; they have process groups of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    with contextlib.suppress(OSError):
        for child in children.read_text().split():
            os.killpg(int(child), signal.SIGKILL)
    ticks = started_ticks(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while ticks is not None and started_ticks(pid) == ticks:
        time.sleep(0.005)


def reboot(machine: Machine, *, after_s: float = 0.05) -> None:
    """Go down and come up again, as the host does by itself."""
    time.sleep(after_s)
    go_down(machine)
    time.sleep(DOWN_S)
    come_up(machine)


def reboot_later(machine: Machine) -> None:
    """Start a process that reboots the host; whoever asks returns at once."""
    log = machine.root / "log"
    log.mkdir(exist_ok=True)
    if os.fork() == 0:
        try:
            os.setsid()
            redirect(log / "units.log")
            reboot(machine)
        finally:
            os._exit(0)
