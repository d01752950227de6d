"""Run a system's switch-to-configuration to its end, whatever becomes of whoever waits for it.

It runs in a unit of its own on the host, and writes to files there. A connection that is cut, or a killed
deployer, ends neither it nor what is known of it: with its output on a pipe, the Rust one would panic at its
next word once nobody reads, and leave half an activation.
"""

from __future__ import annotations

import secrets
import time
from typing import Literal

from rules.errors import CommandError
from rules.fleet import Instance
from rules.frozen import Frozen
from rules.nixos import Activation
from rules.nixos_activation import activation_of, units_listed
from tasks import host as hosts
from tasks.host import HostUnreachableError

Mode = Literal["switch", "boot", "test"]

#: Units that activate, of any deployment.
_UNIT = "sovereign-activate-"
#: A file that each activation and each reboot takes away: the way back was proven since.
RESTORED = "restored"
_DIRECTORY = "activations"
_POLL_S = 0.5
_TAIL = 1500
#: A host that was cut off may answer again when the activation has ended.
_BACK_S = 5.0
_STOP_TIMEOUT_S = 120.0
_LOCK_IS_HELD = "Could not acquire lock"
_FORBIDDEN = "Pre-switch check"
_BOOT_LOADER = "bootloader"
_RUNNING = "--state=active,activating,deactivating,reloading"

_PREPARE = """\
set -eu
rm -rf -- "$1/$2" "$1/$3"
mkdir -p -m 0700 -- "$1/$2"
"""
# One line, as it becomes the unit's description, which systemctl lists with it. systemd replaces $WORD where
# that is a whole argument, and ${WORD} anywhere.
_ACTIVATE = (
    "file=$1; unless=$2; shift 2; "
    'if [ -e "$unless" ]; then echo "the guard has fired" >"$file.err"; false; '
    'else "$@" </dev/null >"$file.out" 2>"$file.err"; fi; '
    'code=$?; echo "$code" >"$file.code"; exit "$code"'
)
_READ = """\
cat -- "$1.code" && tail -c 65536 -- "$1.err"
"""


class Activated(Frozen):
    """How an activation ended, and the end of what it said."""

    activation: Activation
    said: str

    @property
    def is_lock_busy(self) -> bool:
        """Whether it did nothing, as another activation had the lock."""
        return self.activation.outcome == "refused" and _LOCK_IS_HELD in self.said

    @property
    def is_forbidden(self) -> bool:
        """Whether the system's own checks forbid it in what runs: a reboot may bring it all the same."""
        return self.activation.outcome == "refused" and _FORBIDDEN in self.said

    @property
    def left_boot_loader(self) -> bool:
        """Whether the boot loader could not be told of the system; it may have another default now."""
        return self.activation.outcome == "refused" and _BOOT_LOADER in self.said.lower()


class StillActivatingError(CommandError):
    """An activation takes longer than it may, and goes on."""


def run_activation(
    instance: Instance, path: str, mode: Mode, *, deployment: str, unless: str = ""
) -> Activated:
    """Activate a system, or make it the boot loader's default, once no other activation runs.

    A connection that breaks meanwhile is made anew: the host is asked how it ended. `activate_s` of the
    host bounds the whole.

    Args:
        instance: the host.
        path: the system.
        mode: test activates; boot writes the boot loader's default; switch does both, that first.
        deployment: on whose behalf; part of the unit's name.
        unless: a file on the host with which nothing is activated any more; empty: none.

    Raises:
        StillActivatingError: an activation, this one or another, did not end in time and goes on.
        HostUnreachableError: the host did not answer again in time.
        CommandError: the host does not start it; nothing was done.
    """
    deadline = time.monotonic() + instance.nixos_host.activate_s
    runtime = instance.nixos_host.places.runtime
    while True:
        wait_for_activations(instance, deadline)
        hosts.run(instance.host, ("sh", "-c", _PREPARE, "prepare", runtime, _DIRECTORY, RESTORED))
        unit = f"{_UNIT}{deployment}-{secrets.token_hex(4)}"
        argv = (unless, f"{path}/bin/switch-to-configuration", mode)
        activated = _run_unit(instance, unit, argv, deadline)
        if not activated.is_lock_busy or time.monotonic() > deadline:
            return activated
        time.sleep(_POLL_S)


def _run_unit(instance: Instance, unit: str, argv: tuple[str, ...], deadline: float) -> Activated:
    places = instance.nixos_host.places
    file = f"{places.runtime}/{_DIRECTORY}/{unit}"
    program = (places.program("systemd-run"), f"--unit={unit}", "--collect", "--pipe", "--wait", "--quiet")
    # a boot loader is brought up to date, and not installed anew
    options = ("--service-type=exec", "-E", "NIXOS_INSTALL_BOOTLOADER=0")
    command = (*program, *options, "/bin/sh", "-c", _ACTIVATE, "activate", file, *argv)
    left_s = max(1.0, deadline - time.monotonic())
    try:
        # what its client says does not tell: systemd itself may be restarted, and lose its clients
        ran = hosts.run(instance.host, command, timeout_s=left_s, check=False).output
    except CommandError as error:
        ran = str(error)
    return _outcome(instance, unit, ran=ran, deadline=deadline)


def _outcome(instance: Instance, unit: str, *, ran: str, deadline: float) -> Activated:
    """Return how a unit ended; over new connections, until the deadline."""
    while True:
        try:
            if noted := _noted(instance, unit):
                return noted
            if unit not in running_activations(instance):
                # without a note it was killed, or never began
                unknown = Activated(activation=activation_of(None, ran), said=ran[-_TAIL:].strip())
                return _noted(instance, unit) or unknown
        except HostUnreachableError:
            if time.monotonic() > deadline + _BACK_S:
                raise
        else:
            if time.monotonic() > deadline:
                raise _still_activating(instance, (unit,))
        time.sleep(_POLL_S)


def _noted(instance: Instance, unit: str) -> Activated | None:
    """Return what a unit noted as it ended; None: nothing, or not yet. The next one removes it."""
    file = f"{instance.nixos_host.places.runtime}/{_DIRECTORY}/{unit}"
    read = hosts.run(instance.host, ("sh", "-c", _READ, "read-outcome", file), check=False)
    code, _, stderr = read.stdout.partition("\n")
    if read.returncode or not code.isdecimal():
        return None
    return Activated(activation=activation_of(int(code), stderr), said=stderr[-_TAIL:].strip())


def running_activations(instance: Instance) -> tuple[str, ...]:
    """Return the units that activate a system on a host now, of any deployment, without `.service`.

    Raises:
        CommandError: the host did not say.
    """
    systemctl = instance.nixos_host.places.program("systemctl")
    options = (_RUNNING, "--plain", "--no-legend", "--no-pager", "--all")
    units = units_listed(hosts.run(instance.host, (systemctl, "list-units", *options, f"{_UNIT}*")).stdout)
    return tuple(unit.removesuffix(".service") for unit in units if unit.startswith(_UNIT))


def wait_for_activations(instance: Instance, deadline: float) -> None:
    """Return once no unit activates a system: two at a time would refuse each other.

    Raises:
        StillActivatingError: one still did at the deadline, of `time.monotonic`'s clock.
        CommandError: the host did not say.
    """
    while units := running_activations(instance):
        if time.monotonic() > deadline:
            raise _still_activating(instance, units)
        time.sleep(_POLL_S)


def end_activations(instance: Instance) -> tuple[str, ...]:
    """End what still activates a system, and return its units: nothing may hang for ever on the way back.

    Raises:
        CommandError: the host did not do it.
    """
    units = running_activations(instance)
    if units:
        systemctl = instance.nixos_host.places.program("systemctl")
        services = [f"{unit}.service" for unit in units]
        hosts.run(instance.host, (systemctl, "stop", *services), timeout_s=_STOP_TIMEOUT_S)
    return units


def _still_activating(instance: Instance, units: tuple[str, ...]) -> StillActivatingError:
    words = (
        f"an activation takes longer than {instance.nixos_host.activate_s:g} s (activate_s) and goes on in "
        f"{', '.join(units)}. Look at `systemctl status {units[0]}` there: a service may hang as it stops"
    )
    return StillActivatingError(("switch-to-configuration",), instance.host.name, None, words)
