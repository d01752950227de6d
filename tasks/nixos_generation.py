"""Set which generation a NixOS host's profile is at: by its recorded number or path, never relative."""

from __future__ import annotations

import logging

from rules.errors import StepFailedError, UndoFailedError
from rules.fleet import Instance
from rules.nixos_actions import RestoreSystem
from tasks import host as hosts
from tasks.nixos_reading import generations, read_links, resolved

_TIMEOUT_S = 120.0

_log = logging.getLogger(__name__)


def set_profile(instance: Instance, path: str) -> None:
    """Have the profile lead to a system, and prove it.

    Nix makes no new generation where its newest has that very system already: a larger number would prove
    nothing, and the same number does not disprove it.

    Raises:
        StepFailedError: it leads elsewhere afterwards.
        CommandError: Nix refused, or the host cannot be asked.
    """
    _nix_env(instance, "--set", path)
    links = read_links(instance)
    if links.profile != path:
        raise StepFailedError(
            f"{instance.name}: nix-env set the profile to {path} without an error, and it is not there. "
            f"{links.in_words}"
        )


def restore_generation(instance: Instance, step: RestoreSystem) -> bool:
    """Have the profile at the recorded generation; return whether it had been elsewhere.

    Where that generation's link is gone, or its number was used again, its system is made one anew.

    Raises:
        UndoFailedError: the profile leads elsewhere afterwards.
        CommandError: Nix refused, or the host cannot be asked.
    """
    links = read_links(instance)
    if (links.generation, links.profile) == (_link(instance, step), step.release):
        return False
    if _has_recorded(instance, step):
        _nix_env(instance, "--switch-generation", str(step.generation), of=step.running)
    elif links.profile == step.release:
        return False  # made anew before
    else:
        _log.warning("%s: generation %d is gone, made anew: %s", instance.name, step.generation, step.release)
        _nix_env(instance, "--set", step.release, of=step.running)
    links = read_links(instance)
    if links.profile != step.release:
        profile = instance.nixos_host.places.profile
        raise UndoFailedError(
            f"{instance.name}: its profile does not go back to {step.release}. {links.in_words} See what "
            f"else changes {profile} there, then roll back again."
        )
    return True


def has_newer(instance: Instance, step: RestoreSystem) -> bool:
    """Whether the boot loader may have been told of another system, which cannot be read.

    It is after a system was made a generation, and then there is one with a larger number.

    Raises:
        CommandError: the host cannot be asked.
    """
    return any(number > step.generation for number in generations(instance))


def _link(instance: Instance, step: RestoreSystem) -> str:
    name = instance.nixos_host.places.profile.rpartition("/")[2]
    return f"{name}-{step.generation}-link"


def _has_recorded(instance: Instance, step: RestoreSystem) -> bool:
    link = generations(instance).get(step.generation)
    return link is not None and resolved(instance.host, [link]) == (step.release,)


def _nix_env(instance: Instance, *words: str, of: str = "") -> None:
    """Run nix-env; that `of` another system where the active one has none."""
    places = instance.nixos_host.places
    program = places.program("nix-env")
    if of and not hosts.exists(instance.host, program):
        program = f"{of}/sw/bin/nix-env"
    hosts.run(instance.host, (program, "--profile", places.profile, *words), timeout_s=_TIMEOUT_S)
