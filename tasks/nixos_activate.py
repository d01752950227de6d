"""Activate a new system on a NixOS host, and judge by its exit code, its words, and what the host is then."""

from __future__ import annotations

from rules.errors import CommandError, StepFailedError
from rules.fleet import Instance
from rules.nixos import Activation
from rules.nixos_actions import ActivateSystem, SwitchSystem
from tasks.host import HostUnreachableError
from tasks.nixos_activation import Activated, Mode, run_activation
from tasks.nixos_generation import set_profile
from tasks.nixos_guard import fired_marker
from tasks.nixos_reading import SystemLinks, failed_units, links_in_words, read_links


def activate_system(instance: Instance, action: ActivateSystem, *, deployment: str) -> Activation:
    """Activate a system without making it the one that boots; `test` in NixOS's words.

    Raises:
        StepFailedError: it is not active, or units fail that had not; says what the host runs now.
        CommandError: the host cannot be asked.
    """
    before = read_links(instance)
    activated = _activate(instance, action.path, "test", deployment=deployment)
    after = read_links(instance)
    if (after.generation, after.profile) != (before.generation, before.profile):
        raise StepFailedError(
            f"{instance.name}: the profile moved from {before.generation} to {after.generation} while "
            f"{action.path} was only tried. {after.in_words} Somebody else may be at it."
        )
    return _judged(instance, action, activated, after)


def switch_system(instance: Instance, action: SwitchSystem, *, deployment: str) -> Activation:
    """Make a system a generation and the one that boots; with mode `switch` activate it, too.

    Repeating it is fine.

    Raises:
        StepFailedError: it is not so afterwards, or units fail that had not; says what the host runs and
            boots now. The profile is set first, and stays set.
        CommandError: the host cannot be asked, or Nix refused.
    """
    set_profile(instance, action.path)
    activated = _activate(instance, action.path, action.mode, deployment=deployment)
    after = read_links(instance)
    if after.profile != action.path:
        raise StepFailedError(
            f"{instance.name}: the profile was set to {action.path} and moved on. {after.in_words} Somebody "
            "else may be at it."
        )
    return _judged(instance, action, activated, after)


def _activate(instance: Instance, path: str, mode: Mode, *, deployment: str) -> Activated:
    try:
        # whoever was stopped for long must not undo what the guard has done meanwhile
        fired = fired_marker(instance, deployment=deployment)
        return run_activation(instance, path, mode, deployment=deployment, unless=fired)
    except HostUnreachableError as error:
        raise StepFailedError(
            f"{instance.name} cannot be reached since it was told to activate {path} ({mode}), for "
            f"{instance.nixos_host.activate_s:g} s. What it runs is not known; unless it hears from this "
            f"deployment again, its guard takes it back by itself. {error}"
        ) from error
    except CommandError as error:
        raise StepFailedError(
            f"{instance.name}: {path} could not be activated ({mode}): {error}. {links_in_words(instance)}"
        ) from error


def _judged(
    instance: Instance, action: ActivateSystem | SwitchSystem, activated: Activated, after: SystemLinks
) -> Activation:
    """Return the activation, with what was read of it, where the deployment may go on with it."""
    activation = activated.activation
    is_active = after.running == action.path
    is_wanted = is_active or (isinstance(action, SwitchSystem) and action.mode == "boot")
    seen = activation.model_copy(update={"is_active": is_active})
    if activation.outcome == "done" and is_wanted:
        return seen
    new = tuple(unit for unit in _failed(instance, activation) if unit not in action.failed_before)
    if activation.outcome == "units_failed" and is_wanted:
        if not new:
            return seen
        what = f"{action.path} runs, but {', '.join(new)} failed and had not before"
    elif activation.outcome == "done":
        what = f"the activation of {action.path} ended without an error, and it is not active"
    elif activated.left_boot_loader:
        what = f"the boot loader could not be told of {action.path}"
    elif is_active:
        what = f"{action.path} runs, but its activation did not end well"
    else:
        what = f"{action.path} was not activated"
    advice = _advice(activated, new)
    raise StepFailedError(
        f"{instance.name}: {what}. {after.in_words} {advice} What happened: {activation.words}"
    )


def _failed(instance: Instance, activation: Activation) -> tuple[str, ...]:
    """Return the units that an activation left failed, also where it did not name them."""
    if activation.outcome != "units_failed" or activation.failed_units:
        return activation.failed_units
    return failed_units(instance) or ("(a unit that it did not name)",)


def _advice(activated: Activated, new: tuple[str, ...]) -> str:
    """Return what to do next, in a sentence."""
    match activated.activation.outcome:
        case "done":
            return "Look who else activates a system there."
        case "refused" if activated.is_lock_busy:
            return "Look who activates a system there by hand, or wait for its guard."
        case "refused" if activated.is_forbidden:
            return "Where only a reboot may bring it, deploy it with activate: boot."
        case "refused" if activated.left_boot_loader:
            return "It may boot either. Look whether /boot is full or read-only."
        case "reboot_needed":
            return "Deploy it with activate: boot."
        case "units_failed" if new:
            return f"Look at `journalctl -u {new[0]}` there."
        case _:
            return "Look at `journalctl -b` there."
