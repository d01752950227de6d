"""What NixOS's programs say, read: how an activation ended, what it would do, what a system is called."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping

from rules.nixos import Activation, ClosureDifference, SystemNames, UnitsAffected

#: Exit codes of switch-to-configuration; beside these 0, 4 (units failed) and 100 (reboot needed).
_REFUSED, _SCRIPT_FAILED, _RELOAD_FAILED = 1, 2, 3

_UNIT = r"[A-Za-z0-9:_.@\\-]+\.(?:service|socket|target|timer|mount|automount|path|slice|scope|swap|device)"
_UNITS_FAILED_LINE = re.compile(r"the following units failed: (.+)")
_UNIT_FAILED = re.compile(
    rf"Failed to (?:start|restart|reload) ({_UNIT})|Job for ({_UNIT}) (?:failed|canceled)"
)
_WOULD = re.compile(r"would (stop|start|restart|reload) the following units: (.+)")
#: From here on it is no refusal any more, whatever the exit code.
_BEGUN = "activating the configuration..."
#: The newer program, in Rust, exits 1 then, the older one 3.
_RELOAD_WORDS = re.compile(r"daemon[- ]reload failed", re.IGNORECASE)
_SCRIPT_WORDS = ("Failed to run activate script", "Activation script snippet")
_TAIL_LINES = 12
_TAIL_CHARACTERS = 1500

_GENERATION = re.compile(r".+-(\d+)-link")
_STORE_NAME = re.compile(r"/[0-9a-z]{32}-([^/\s]+)$")
#: As Nix parses a derivation's name: the version begins at the first dash that no letter follows.
_PACKAGE = re.compile(
    r"(?P<name>.+?)(?:-(?P<version>[^A-Za-z].*?))?"
    r"(?:-(?P<output>bin|dev|devdoc|doc|info|lib|man|out|static|debug|data|modules|lib32|lib64))?"
)
_SHOWN_FROM_BYTES = 8192
_MOST_PACKAGES = 300


def activation_of(returncode: int | None, stderr: str) -> Activation:
    """Return how `<system>/bin/switch-to-configuration` ended, from its exit code and what it said.

    The host has the last word: read there what its profile is at and what is active.

    Args:
        returncode: its exit code; negative: it was killed; None: so it was, or it never began.
        stderr: what it said, or the end of that.
    """
    failed = _failed_in(stderr)
    match returncode:
        case 0:
            return Activation(outcome="done", is_active=True, words="the activation ended well")
        case 1 if _RELOAD_WORDS.search(stderr):
            return _active(_RELOAD_FAILED, stderr, failed)
        case 1 if _BEGUN not in stderr:
            return Activation(outcome="refused", is_active=False, words=_refusal(stderr))
        case 100:
            return Activation(outcome="reboot_needed", is_active=False, words=_REBOOT_WORDS)
        case 2 | 3 | 4:
            return _active(returncode, stderr, failed)
        case _:
            return Activation(
                outcome="unknown", is_active=False, failed_units=failed, words=_unknown(returncode, stderr)
            )


_REBOOT_WORDS = (
    "it was not activated: the new system has another init interface than the one that runs, so it can only "
    "be booted into; `activate: boot` does that"
)


def _active(returncode: int, stderr: str, failed: tuple[str, ...]) -> Activation:
    """Return how it ended when the new system is active all the same; a later fault hides an earlier one."""
    if returncode == _SCRIPT_FAILED or any(words in stderr for words in _SCRIPT_WORDS):
        words = (
            f"a part of its activation script failed, and it is active with that part undone{_said(stderr)}"
        )
        return Activation(outcome="script_failed", is_active=True, failed_units=failed, words=words)
    if returncode == _RELOAD_FAILED:
        words = f"it is active, but systemd could not read its units anew{_said(stderr)}"
        return Activation(outcome="reload_failed", is_active=True, failed_units=failed, words=words)
    named = ", ".join(failed) or "it did not say which"
    words = f"it is active, but units failed: {named}{_said(stderr)}"
    return Activation(outcome="units_failed", is_active=True, failed_units=failed, words=words)


def _refusal(stderr: str) -> str:
    if "Could not acquire lock" in stderr:
        return f"it was not activated: another activation runs on this host{_said(stderr)}"
    if "Pre-switch check" in stderr:
        return (
            "it was not activated: its own pre-switch checks forbid that in a running system; `activate: "
            f"boot` reboots into it instead{_said(stderr)}"
        )
    if "bootloader" in stderr.lower() or "boot loader" in stderr.lower():
        return f"it was not activated: the boot loader could not be installed{_said(stderr)}"
    return f"it was refused and is not active{_said(stderr)}"


def _unknown(returncode: int | None, stderr: str) -> str:
    if returncode is None:
        ended = "it was killed before it could say how it ended, or never began"
    elif returncode == _REFUSED:
        ended = "it gave up after it had begun to activate"
    elif returncode < 0:
        ended = f"it was killed by signal {-returncode}"
    else:
        ended = f"it ended with the unknown exit code {returncode}"
    return f"{ended}: what is active must be read from the host{_said(stderr)}"


def _said(stderr: str) -> str:
    """Return the end of what it said, as the end of a sentence."""
    said = end_of_log(stderr)
    return f". It said: {said}" if said else ""


def end_of_log(text: str) -> str:
    """Return the last lines of a long output: what people need to see of it."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])[-_TAIL_CHARACTERS:]


def _failed_in(stderr: str) -> tuple[str, ...]:
    found: set[str] = set()
    for listed in _UNITS_FAILED_LINE.findall(stderr):
        found.update(_comma_separated(listed))
    for pair in _UNIT_FAILED.findall(stderr):
        found.update(name.rstrip(".") for name in pair if name)
    return tuple(sorted(found))


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def units_affected(stderr: str) -> UnitsAffected:
    """Return what `switch-to-configuration dry-activate` says that it would do to units, each list sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for verb, units in _WOULD.findall(stderr):
        found[verb].update(_comma_separated(units))
    return UnitsAffected(
        stopped=tuple(sorted(found["stop"])),
        started=tuple(sorted(found["start"])),
        restarted=tuple(sorted(found["restart"])),
        reloaded=tuple(sorted(found["reload"])),
    )


def units_listed(stdout: str) -> tuple[str, ...]:
    """Return the units that `systemctl list-units --plain --no-legend` lists, sorted."""
    return tuple(sorted({line.split()[0].lstrip("●*") for line in stdout.splitlines() if line.split()}))


def channels_listed(stdout: str) -> dict[str, str]:
    """Return the channels that `nix-channel --list` lists: name -> address."""
    rows = [line.split(maxsplit=1) for line in stdout.splitlines()]
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}  # noqa: PLR2004 - name and address


def system_names(json_text: str) -> SystemNames:
    """Return what `nixos-version --json` says of a system.

    Raises:
        ValueError: it is not what that program prints.
    """
    said = json.loads(json_text)
    version = said.get("nixosVersion") if isinstance(said, Mapping) else None
    if not isinstance(version, str) or not version:
        raise ValueError(f"nixos-version --json names no nixosVersion: {json_text[:200]!r}")
    revision = said.get("configurationRevision")
    return SystemNames(version=version, revision=str(revision) if revision else None)


def generation_of(link_name: str) -> int:
    """Return the number of the generation that a profile points to, such as 42 of `system-42-link`.

    Raises:
        ValueError: it points to no generation.
    """
    found = _GENERATION.fullmatch(link_name.rpartition("/")[2])
    if found is None:
        raise ValueError(f"{link_name} is no generation of a profile: those are named like system-42-link")
    return int(found[1])


# --- closures ------------------------------------------------------------------------------------------


def closure_difference(before: str, after: str) -> ClosureDifference:
    """Return what one closure has that the other has not.

    Args:
        before: of the active system: a line `<store path> <bytes>` for each path, as
            `nix path-info --recursive --size` prints it.
        after: the same of the new system.
    """
    old, new = _sizes(before), _sizes(after)
    return ClosureDifference(
        packages=_package_lines(old, new),
        added_bytes=sum(size for path, size in new.items() if path not in old),
        removed_bytes=sum(size for path, size in old.items() if path not in new),
    )


def _sizes(text: str) -> dict[str, int]:
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}  # noqa: PLR2004


def _package_lines(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[str, ...]:
    before, after = _packages(old), _packages(new)
    lines = [
        line
        for name in sorted(before.keys() | after.keys())
        if (line := _package_line(name, before.get(name, {}), after.get(name, {})))
    ]
    left_out = len(lines) - _MOST_PACKAGES
    return (*lines[:_MOST_PACKAGES], f"… and {left_out} more") if left_out > 0 else tuple(lines)


def _package_line(name: str, old: Mapping[str, int], new: Mapping[str, int]) -> str:
    """Return one package's line; empty where neither its versions nor its size changed noticeably."""
    grown = sum(new.values()) - sum(old.values())
    size = _signed(grown) if abs(grown) >= _SHOWN_FROM_BYTES else ""
    if old.keys() == new.keys():
        return f"{name}: {size}" if size else ""
    versions = f"{_versions(old)} → {_versions(new)}"
    return f"{name}: {versions}{f', {size}' if size else ''}"


def _versions(sizes: Mapping[str, int]) -> str:
    return ", ".join(version or "ε" for version in sorted(sizes)) or "∅"


def _signed(size: int) -> str:
    amount, unit = abs(size) / 1024, "KiB"
    for bigger in ("MiB", "GiB"):
        if amount >= 1024:  # noqa: PLR2004 - binary units
            amount, unit = amount / 1024, bigger
    return f"{'+' if size >= 0 else '-'}{amount:.1f} {unit}"


def _packages(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return name -> version -> bytes of all paths of that name and version."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path, size in sizes.items():
        stored = _STORE_NAME.search(path)
        package = _PACKAGE.fullmatch(stored[1]) if stored else None
        if package:
            found[package["name"]][package["version"] or ""] += size
    return found
