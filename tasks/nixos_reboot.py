"""Reboot a NixOS host, and see it come back with the system that it should."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from rules.errors import CommandError, StepFailedError
from rules.fleet import Instance
from rules.nixos_actions import RebootHost
from tasks import host as hosts
from tasks.nixos_activation import RESTORED
from tasks.nixos_reading import links_in_words, read_links, system_state

_POLL_S = 1.0
#: One question to a host that goes down or comes up may hang.
_QUESTION_S = 20.0

_State = Literal["still up", "away", "back"]

_MARK = """\
set -eu
mkdir -p -m 0700 -- "$1"
rm -f -- "$1/$3"
: >"$1/$2"
"""


class RebootFailedError(StepFailedError):
    """A host did not go down, did not come back, or came back with another system."""


def reboot_host(
    instance: Instance, action: RebootHost, *, deployment: str, still_wanted: Callable[[], None]
) -> float:
    """Reboot a host and return how many seconds it took until it ran the system again.

    Args:
        instance: the host.
        action: the system that it must come back with.
        deployment: on whose behalf; part of the marker's name.
        still_wanted: called while it is waited; raises when the deployment must not go on.

    Raises:
        RebootFailedError: it did not go down, did not come back in time, or runs another system.
        CommandError: the host cannot be reached to begin with; nothing was done.
    """
    limit_s = instance.nixos_host.reboot_s
    took_s = reboot_into(
        instance, action.path, deployment=deployment, limit_s=limit_s, still_wanted=still_wanted
    )
    links = read_links(instance)
    if links.running != action.path:
        raise RebootFailedError(
            f"{instance.name} came back after {took_s:.0f} s, and not with {action.path}. {links.in_words} "
            "Look at its boot loader's default, and whether its guard took it back."
        )
    return took_s


def reboot_into(
    instance: Instance,
    path: str,
    *,
    deployment: str,
    limit_s: float,
    still_wanted: Callable[[], None] = lambda: None,
) -> float:
    """Reboot a host, and return how many seconds it took until it answered again, with whatever it runs.

    That it was rebooted is told by a marker in a directory that a reboot empties.

    Args:
        instance: the host.
        path: the system that should boot, for words.
        deployment: on whose behalf; part of the marker's name.
        limit_s: how long it may take.
        still_wanted: called while it is waited; raises to give up.

    Raises:
        RebootFailedError: it did not go down, or did not come back in time.
        CommandError: the host cannot be reached to begin with; nothing was done.
    """
    places, name = instance.nixos_host.places, f"reboot-{deployment}"
    marker = f"{places.runtime}/{name}"
    hosts.run(instance.host, ("sh", "-c", _MARK, "mark", places.runtime, name, RESTORED))
    began = time.monotonic()
    _tell_to_reboot(instance, marker)
    while (state := _state(instance, marker)) != "back":
        waited_s = time.monotonic() - began
        if waited_s > limit_s:
            raise _did_not_come_back(instance, path, waited_s=waited_s, limit_s=limit_s, state=state)
        still_wanted()
        time.sleep(_POLL_S)
    return time.monotonic() - began


def _tell_to_reboot(instance: Instance, marker: str) -> None:
    argv = (instance.nixos_host.places.program("systemctl"), "reboot")
    try:
        finished = hosts.run(instance.host, argv, timeout_s=_QUESTION_S, check=False)
    except CommandError:
        return  # the connection went with the host, or hangs as that goes down: what is waited for tells
    if finished.returncode in (0, None) or finished.returncode < 0:
        return
    hosts.run(instance.host, ("rm", "-f", "--", marker), check=False)
    raise RebootFailedError(
        f"{instance.name} refuses to reboot: {finished.output[-500:] or 'it does not say why'}. It was not "
        f"rebooted. {links_in_words(instance)} Look at `systemd-inhibit --list` there."
    )


def _state(instance: Instance, marker: str) -> _State:
    """Return where the host is in its reboot."""
    try:
        finished = hosts.run(instance.host, ("test", "-e", marker), timeout_s=_QUESTION_S, check=False)
        if finished.returncode == 0:
            return "still up"
        # the directory is empty long before the system is there, and that before its systemd answers
        is_back = read_links(instance).running is not None and system_state(instance) != ""
    except CommandError:
        return "away"
    return "back" if is_back else "away"


def _did_not_come_back(
    instance: Instance, path: str, *, waited_s: float, limit_s: float, state: _State
) -> RebootFailedError:
    if state == "still up":
        return RebootFailedError(
            f"{instance.name} was told to reboot and did not go down in {waited_s:.0f} s. "
            f"{links_in_words(instance)} Look at `systemctl list-jobs` there."
        )
    return RebootFailedError(
        f"{instance.name} did not come back from its reboot into {path} in {waited_s:.0f} s (limit "
        f"{limit_s:g} s). If it does later, its guard takes it back by itself, "
        f"{instance.nixos_host.guard_s:g} s after it booted. If it does not, choose the generation from "
        "before in its boot loader's menu, at its console."
    )
