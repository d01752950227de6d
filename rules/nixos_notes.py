"""What people should know of one NixOS host before they approve its new system, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rules.fleet import Instance
from rules.nixos import HostFacts
from rules.system_change import SystemRelease
from rules.words import listed

#: A new glibc changes every package and restarts every unit; nobody reads more.
_SHOWN = 20
_MIB = 2**20


def host_notes(change: SystemRelease, instance: Instance, facts: HostFacts) -> Iterator[str]:
    """Yield what is about to change on a host, each note in Markdown."""
    name = instance.name
    yield (
        f"{name}: {facts.names.in_words}, from generation {facts.generation} ({facts.profile}) to "
        f"{facts.built}."
    )
    if facts.running != facts.profile:
        yield (
            f"{name} runs {facts.running}, which is not what its profile is at: somebody tested it. The way "
            "back restores both."
        )
    yield _packages(name, facts)
    if change.activate == "live":
        yield f"{name}, units: {units_in_words(facts) or 'none is stopped, started, restarted or reloaded'}."
    yield from _reboot(change, name, facts)
    if facts.failed_units:
        yield f"{name}: failed already, and may go on failing: {few(facts.failed_units)}."
    silent = [url for url in instance.nixos_host.urls if url not in facts.answering]
    if silent:
        yield f"{name}: does not answer now, and must with the new system: {few(silent)}."


def few(words: Sequence[str]) -> str:
    """Return the first of them, and how many more there are."""
    return listed(words, shown=_SHOWN)


def units_in_words(facts: HostFacts) -> str:
    """Return what happens to units, such as `stopped: a.service; restarted: b.service`; empty: nothing."""
    units = facts.units
    affected = {
        "stopped": units.stopped,
        "started": units.started,
        "restarted": units.restarted,
        "reloaded": units.reloaded,
    }
    return "; ".join(f"{what}: {few(names)}" for what, names in affected.items() if names)


def _packages(name: str, facts: HostFacts) -> str:
    closure = facts.closure
    sizes = f"+{closure.added_bytes / _MIB:.1f} MiB, -{closure.removed_bytes / _MIB:.1f} MiB"
    more = len(closure.packages) - _SHOWN
    lines = [*closure.packages[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    head = f"{name}, packages that differ: {len(closure.packages)} ({sizes})."
    return "\n".join([head, "", *(f"- {line}" for line in lines)]) if lines else head


def _reboot(change: SystemRelease, name: str, facts: HostFacts) -> Iterator[str]:
    differs = ", ".join(facts.reboot_for)
    if facts.awaits_reboot:
        due = ", ".join(facts.reboot_due_for or facts.reboot_for)
        yield (
            f"{name}: a reboot was due there already, for {due}. No boot of its recorded generation brings "
            "back the kernel that runs now: once rebooted, the way back ends with that generation's own."
        )
    if facts.booted is None and not change.reboots(facts):
        yield (
            f"{name}: which system was booted cannot be told, so neither can whether it needs a reboot. "
            "There is none; for one, use reboot: always."
        )
    if change.reboot == "never":
        if differs:
            yield f"{name} needs a reboot for {differs}, and gets none: reboot is never."
    elif change.activate == "boot":
        yield f"{name} is rebooted into it: activate is boot."
    elif differs:
        yield f"{name} is rebooted, for what differs from what was booted: {differs}."
    elif change.reboot == "always":
        yield f"{name} is rebooted: that was asked for."
