"""Read what a NixOS host runs, boots and says of itself; nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import httpx

from rules.errors import CommandError
from rules.fleet import Instance
from rules.frozen import Frozen
from rules.hosts import HostAddress
from rules.nixos import SystemNames
from rules.nixos_activation import system_names, units_listed
from tasks import host as hosts
from tasks.http_client import http

#: What only a reboot changes; what `nixos-rebuild` would compare too.
BOOT_PARTS = ("kernel", "initrd", "kernel-modules")
#: Units of ours, which are no part of any system.
_OURS = ("sovereign-guard-", "sovereign-activate-")
_URL_TIMEOUT_S = 5.0

# a line for each path, also where nothing is
_RESOLVE = """\
for path do readlink -e -- "$path" || echo; done
"""
_LINKS = """\
readlink -- "$1" || echo
for path do readlink -e -- "$path" || echo; done
"""


class SystemLinks(Frozen):
    """Which systems a host's links lead to; None: nowhere."""

    generation: str | None  # name of the generation's link, such as system-12-link
    profile: str | None
    running: str | None

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        profile = (
            f"{self.generation}, {self.profile or 'which leads nowhere'}" if self.generation else "nothing"
        )
        return f"The host runs {self.running or 'an unknown system'}; its profile is at {profile}."


def resolved(host: HostAddress, paths: Sequence[str], *, timeout_s: float = 60.0) -> tuple[str | None, ...]:
    """Return what each of `paths` is, all links followed, in their order; None: nothing is there.

    Raises:
        CommandError: the host did not say.
    """
    argv = ("sh", "-c", _RESOLVE, "resolve", *paths)
    lines = hosts.run(host, argv, timeout_s=timeout_s).stdout.split("\n")
    return tuple(line or None for line in lines[: len(paths)])


def read_links(instance: Instance) -> SystemLinks:
    """Return which system is active, and which generation the profile is at.

    Raises:
        CommandError: the host did not say.
    """
    places = instance.nixos_host.places
    argv = ("sh", "-c", _LINKS, "read-links", places.profile, places.current)
    target, profile, running = hosts.run(instance.host, argv).stdout.split("\n")[:3]
    return SystemLinks(
        generation=PurePosixPath(target).name or None, profile=profile or None, running=running or None
    )


def links_in_words(instance: Instance) -> str:
    """Say in which state the links are, or that this cannot be told: for errors."""
    try:
        return read_links(instance).in_words
    except CommandError as error:
        return f"What the host runs now cannot be read: {error}"


def generations(instance: Instance) -> dict[int, str]:
    """Return number -> path of the link, for each generation that the profile has.

    Raises:
        CommandError: the host did not say.
    """
    profile = PurePosixPath(instance.nixos_host.places.profile)
    pattern = f"{profile.name}-*-link"
    argv = ("find", str(profile.parent), "-maxdepth", "1", "-type", "l", "-name", pattern, "-printf", "%f\\n")
    names = hosts.run(instance.host, argv).stdout.splitlines()
    # other profiles' names may begin alike, and people keep links of their own there
    number = re.compile(rf"{re.escape(profile.name)}-(\d+)-link")
    return {int(found[1]): str(profile.parent / found[0]) for found in map(number.fullmatch, names) if found}


def boot_parts(host: HostAddress, *systems: str) -> tuple[tuple[str | None, ...], ...]:
    """Return the kernel, initrd and modules of each system, by what their links lead to.

    Raises:
        CommandError: the host did not say.
    """
    found = resolved(host, [f"{system}/{part}" for system in systems for part in BOOT_PARTS])
    count = len(BOOT_PARTS)
    return tuple(found[at : at + count] for at in range(0, len(found), count))


def names_of(instance: Instance, system: str) -> SystemNames:
    """Return what a system says of itself.

    Raises:
        CommandError: it cannot be asked.
    """
    finished = hosts.run(instance.host, (f"{system}/sw/bin/nixos-version", "--json"))
    return system_names(finished.stdout)


def system_state(instance: Instance) -> str:
    """Return what systemd says of the whole host, such as running, degraded or starting.

    Raises:
        CommandError: the host cannot be asked.
    """
    argv = (instance.nixos_host.places.program("systemctl"), "is-system-running")
    return hosts.run(instance.host, argv, check=False).stdout.strip()


def failed_units(instance: Instance) -> tuple[str, ...]:
    """Return the units that have failed, sorted, without our own.

    Raises:
        CommandError: the host did not say.
    """
    systemctl = instance.nixos_host.places.program("systemctl")
    options = ("--state=failed", "--plain", "--no-legend", "--no-pager", "--all")
    units = units_listed(hosts.run(instance.host, (systemctl, "list-units", *options)).stdout)
    return tuple(unit for unit in units if not unit.startswith(_OURS))


def silent_urls(urls: Iterable[str]) -> dict[str, str]:
    """Return url -> what it said instead, for each that does not answer 2xx."""
    said = {url: _answer(url) for url in urls}
    return {url: words for url, words in said.items() if words}


def _answer(url: str) -> str:
    """Return how a URL answered; empty: by 2xx."""
    try:
        answer = http().get(url, timeout=_URL_TIMEOUT_S)
    except httpx.HTTPError as error:
        return repr(error)
    return "" if answer.is_success else f"status {answer.status_code}"
