"""Prove what a NixOS host runs: by its links, its version, its units, its kernel and the declared URLs."""

from __future__ import annotations

import time
from collections.abc import Callable

from rules.errors import CommandError, StepFailedError
from rules.fleet import Instance
from rules.hosts import HostAddress
from rules.nixos import NixosProbe
from rules.nixos_actions import ConfirmSystem, VerifySystem
from tasks.nixos_guard import disarm_guard, guard_fired
from tasks.nixos_reading import (
    BOOT_PARTS,
    boot_parts,
    failed_units,
    names_of,
    read_links,
    resolved,
    silent_urls,
    system_state,
)

_POLL_S = 0.25
#: What systemd says of a host that has all its services, or all but failed ones.
_SETTLED = ("running", "degraded")
_RESCUE = ("maintenance", "stopping", "offline")


def running_system(host: HostAddress, probe: NixosProbe) -> str | None:
    """Return the store path of the system that is active; None: the host cannot be asked."""
    try:
        (system,) = resolved(host, [probe.current], timeout_s=probe.timeout_s)
    except CommandError:
        return None
    return system


def verify_system(instance: Instance, action: VerifySystem, *, still_wanted: Callable[[], None]) -> str:
    """Prove that a host runs a system, as good as the one before, and say in words what was seen.

    Args:
        instance: the host.
        action: what must be so.
        still_wanted: called while services start; raises when the deployment must not go on.

    Raises:
        StepFailedError: it does not hold, and says what; the host goes on running what it runs.
        CommandError: the host cannot be asked.
    """
    version = _prove_system(instance, action)
    deadline = time.monotonic() + instance.nixos_host.settle_s
    settled = wait_until_settled(instance, deadline, still_wanted=still_wanted)
    units = _prove_units(instance, action.failed_before)
    urls = instance.nixos_host.urls
    if silent := wait_for_urls(urls, deadline, still_wanted=still_wanted):
        raise StepFailedError(
            f"{instance.name} runs {action.path}, but {in_words(silent)}, which must answer 2xx within "
            f"{instance.nixos_host.settle_s:g} s. Look into the logs of the service behind it."
        )
    kernel = _prove_kernel(instance, action.path) if action.booted else ""
    default = " and boots it by default" if action.is_default else ""
    answering = f", {len(urls)} of {len(urls)} URLs answer" if urls else ""
    return f"{instance.name} runs {version}{default}: {settled}, {units}{answering}{kernel}"


def _prove_system(instance: Instance, action: VerifySystem) -> str:
    """Return the version of the active system in words, once it is known to be the right one."""
    links = read_links(instance)
    if links.running != action.path:
        raise StepFailedError(f"{instance.name} should run {action.path} and does not. {links.in_words}")
    if action.is_default and links.profile != action.path:
        raise StepFailedError(f"{instance.name} should boot {action.path} and would not. {links.in_words}")
    names = names_of(instance, instance.nixos_host.places.current)
    if not names.is_release(action.release):
        raise StepFailedError(
            f"{instance.name} runs {action.path}, which says that it is {names.in_words}, not "
            f"{action.release}. Look what the release was built from."
        )
    return names.in_words


def wait_until_settled(instance: Instance, deadline: float, *, still_wanted: Callable[[], None]) -> str:
    """Return what systemd says of the host, in words, once nothing is starting any more.

    Args:
        instance: the host.
        deadline: on `time.monotonic`'s clock.
        still_wanted: called between questions; raises to give up.

    Raises:
        StepFailedError: services were still starting at the deadline, or the host is in rescue mode.
        CommandError: the host cannot be asked.
    """
    began = time.monotonic()
    while (state := system_state(instance)) not in _SETTLED:
        if state in _RESCUE or time.monotonic() > deadline:
            raise StepFailedError(
                f"{instance.name}: systemd says '{state}' after {time.monotonic() - began:.1f} s, not that "
                "all services have started. Look at `systemctl list-jobs` and `systemctl --failed` there; "
                "a host whose services start slowly needs a larger settle_s."
            )
        still_wanted()
        time.sleep(_POLL_S)
    return f"systemd says {state} after {time.monotonic() - began:.1f} s"


def _prove_units(instance: Instance, failed_before: tuple[str, ...]) -> str:
    failed = failed_units(instance)
    if new := [unit for unit in failed if unit not in failed_before]:
        raise StepFailedError(
            f"{instance.name}: {', '.join(new)} failed and had not before ({len(failed_before)} had). Look "
            f"at `journalctl -u {new[0]}` there."
        )
    return f"{len(failed)} units have failed, as before" if failed else "no unit has failed"


def wait_for_urls(
    urls: tuple[str, ...], deadline: float, *, still_wanted: Callable[[], None]
) -> dict[str, str]:
    """Return url -> what it said, for each that did not answer 2xx until `deadline`; all are asked once.

    Args:
        urls: whom to ask.
        deadline: on `time.monotonic`'s clock.
        still_wanted: called between questions; raises to give up.
    """
    while (silent := silent_urls(urls)) and time.monotonic() < deadline:
        still_wanted()
        time.sleep(_POLL_S)
    return silent


def in_words(silent: dict[str, str]) -> str:
    """Say which URLs do not answer, and what they said instead."""
    return ", ".join(f"{url} does not answer ({words})" for url, words in silent.items())


def _prove_kernel(instance: Instance, path: str) -> str:
    booted, wanted = boot_parts(instance.host, instance.nixos_host.places.booted, path)
    others = [part for part, is_now, want in zip(BOOT_PARTS, booted, wanted, strict=True) if is_now != want]
    if others:
        raise StepFailedError(
            f"{instance.name} runs {path}, but was booted with another {', '.join(others)}: "
            f"{instance.nixos_host.places.booted} is not that system. Look whether the boot loader's default "
            "is the generation that the profile is at."
        )
    return ", its kernel runs"


def confirm_system(instance: Instance, action: ConfirmSystem, *, deployment: str) -> str:
    """Reach a host anew, see that it did not take itself back, and disarm its guard; say so in words.

    Repeating it is fine. Each command by ssh is a new connection, so that being here proves the network.

    Raises:
        StepFailedError: the guard had fired, or the host runs or boots another system.
        CommandError: the host cannot be asked.
    """
    links = read_links(instance)
    if (links.running, links.profile) != (action.path, action.path):
        raise StepFailedError(f"{instance.name} should run and boot {action.path}. {links.in_words}")
    disarm_guard(instance, deployment=deployment)
    # asked only now, when nothing can fire any more
    if guard_fired(instance, deployment=deployment):
        raise StepFailedError(
            f"{instance.name} heard nothing of the deployment for {instance.nixos_host.guard_s:g} s and took "
            f"itself back. {read_links(instance).in_words} Look why the worker could not reach it, or "
            "declare a larger guard_s."
        )
    return f"{instance.name} answers a new connection and keeps {action.path}: its guard is disarmed"
