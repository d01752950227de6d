"""Bring a NixOS host back to what it booted and ran: by recorded values, whatever it is now."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rules.continued import continued
from rules.errors import CommandError, StepFailedError, UndoFailedError
from rules.fleet import Instance
from rules.nixos_actions import RestoreSystem
from tasks import host as hosts
from tasks.host import HostUnreachableError
from tasks.nixos_activation import (
    RESTORED,
    Activated,
    Mode,
    StillActivatingError,
    end_activations,
    run_activation,
    wait_for_activations,
)
from tasks.nixos_generation import has_newer, restore_generation
from tasks.nixos_guard import extend_guard
from tasks.nixos_reading import boot_parts, failed_units, links_in_words, read_links, system_state
from tasks.nixos_reboot import RebootFailedError, reboot_into
from tasks.nixos_verify import in_words, wait_for_urls, wait_until_settled
from tasks.settings import Settings

_POLL_S = 1.0

_log = logging.getLogger(__name__)


class _CutOffError(Exception):
    """The host is away, or was lost in the middle: it may come back, or take itself back."""


def restore_system(instance: Instance, step: RestoreSystem, *, deployment: str, settings: Settings) -> None:
    """Have the recorded generation be what boots, and the recorded system active; right also when it is so.

    A host that cannot be reached, or is shutting down, is waited for, as long as its guard may still take
    it back, or it may still boot. Doing the same as its guard at the same time is fine.

    The recorded system is activated also where its link says that it is active: an activation that was
    ended in the middle may have stopped services, and moves that link late. Only where nothing was
    activated since this was last proven, nothing is done.

    Raises:
        UndoFailedError: it is not so afterwards, or the host does not come back; says what it is.
        CommandError: a command on the host failed.
    """
    declared = instance.nixos_host
    patience_s = min(declared.guard_s + declared.reboot_s, settings.rollback_deadline_s)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            _restore(instance, step, deployment=deployment, deadline=deadline)
        except _CutOffError as error:
            if time.monotonic() > deadline:
                raise _unreachable(instance, step, patience_s, error) from error
            _log.warning("%s is away, it is tried again: %s", instance.name, error)
            time.sleep(_POLL_S)
        else:
            return


def _unreachable(
    instance: Instance, step: RestoreSystem, patience_s: float, error: Exception
) -> UndoFailedError:
    return UndoFailedError(
        f"{instance.name} could not be reached for {patience_s:.0f} s, so it is not known whether it was "
        f"taken back. Unless it was confirmed before, its guard does that by itself, "
        f"{instance.nixos_host.guard_s:g} s after a boot or after it last heard of the deployment. If it "
        f"stays away, choose generation {step.generation} in its "
        f"boot loader's menu, at its console, then roll back again. {error}"
    )


def _restore(instance: Instance, step: RestoreSystem, *, deployment: str, deadline: float) -> None:
    try:
        if _is_restored(instance, step):
            return
        _keep_guard_back(instance, deployment)
        _end_what_activates(instance, deadline)
        # the boot loader's default cannot be read: where another may have been set, it is set again
        must_tell = restore_generation(instance, step) or has_newer(instance, step)
        fault = _restore_default(instance, step, deployment) if must_tell else ""
        with _besides(fault):
            _activate_recorded(instance, step, deployment=deployment, deadline=deadline)
            _prove(instance, step, deadline)
        if fault:
            _tell_again(instance, step, deployment)
        _note_restored(instance, step)
    except HostUnreachableError as error:
        raise _CutOffError(str(error)) from error
    except (UndoFailedError, CommandError) as error:
        # then systemd refuses whatever it is asked to start
        if _shuts_down(instance):
            raise _CutOffError(f"{instance.name} is shutting down: {error}") from error
        raise


def _tell_again(instance: Instance, step: RestoreSystem, deployment: str) -> None:
    """Tell the boot loader once more: what refused it may be over, such as a shutdown that was called off."""
    if fault := _restore_default(instance, step, deployment):
        raise UndoFailedError(fault)


@contextmanager
def _besides(fault: str) -> Iterator[None]:
    """Do what is left to do, whatever the fault before; if that fails too, both are told."""
    try:
        yield
    except UndoFailedError as error:
        if not fault:
            raise
        raise UndoFailedError(f"{error} Besides, {fault}") from error


def _shuts_down(instance: Instance) -> bool:
    try:
        return system_state(instance) == "stopping"
    except HostUnreachableError:
        return True
    except CommandError:
        return False


def _keep_guard_back(instance: Instance, deployment: str) -> None:
    """Have the guard's time begin anew, so that it does the same only if we do not come to the end.

    Whatever is wrong with the guard, the way back must not wait for it.
    """
    for name in continued(deployment):
        try:
            extend_guard(instance, deployment=name)
        except StepFailedError:
            pass  # it has fired: then it and we do the same, one after the other
        except HostUnreachableError:
            raise
        except CommandError as error:
            _log.warning("%s: its guard's time could not begin anew: %s", instance.name, error)


def _end_what_activates(instance: Instance, deadline: float) -> None:
    """Wait for what activates a system, for as long as that may take, and then end it."""
    try:
        wait_for_activations(instance, min(deadline, time.monotonic() + instance.nixos_host.activate_s))
    except StillActivatingError as error:
        ended = end_activations(instance)
        _log.warning("%s: ended %s: %s", instance.name, ", ".join(ended), error)


def _restore_default(instance: Instance, step: RestoreSystem, deployment: str) -> str:
    """Tell the boot loader of the recorded generation; return what is wrong, after which the rest goes on.

    It is better to have the recorded system active, and the wrong default, than neither.
    """
    activated = _run(instance, step.release, "boot", deployment)
    if activated.activation.outcome == "done":
        return ""
    return (
        f"{instance.name}: {step.release} is generation {step.generation} again, and its boot loader could "
        f"not be told; until it is, it may boot the other system. {links_in_words(instance)} See whether "
        f"/boot is full or read-only, then run `{step.release}/bin/switch-to-configuration boot` there. What "
        f"happened: {activated.activation.words}"
    )


def _activate_recorded(instance: Instance, step: RestoreSystem, *, deployment: str, deadline: float) -> None:
    """Have the recorded system active, with a kernel that it was active with; by a reboot if need be."""
    activated = _run(instance, step.running, "test", deployment)
    if _needs_boot(instance, step, activated):
        _reboot(instance, step, deployment=deployment, deadline=deadline)
        if step.running == step.release:
            return
        activated = _run(instance, step.running, "test", deployment)
    # its checks refuse before anything is done, and one whose units fail is active: what is read decides
    if activated.activation.outcome in ("done", "units_failed") or activated.is_forbidden:
        return
    raise UndoFailedError(
        f"{instance.name}: {step.running} could not be activated again. {links_in_words(instance)} Look at "
        f"`journalctl -b` there, then roll back again. What happened: {activated.activation.words}"
    )


def _needs_boot(instance: Instance, step: RestoreSystem, activated: Activated) -> bool:
    """Whether only a reboot brings back what was, such as another kernel or init."""
    if activated.activation.outcome == "reboot_needed":
        return True
    if activated.is_forbidden and read_links(instance).running != step.running:
        return True
    return _has_other_kernel(instance, step)


def _run(instance: Instance, path: str, mode: Mode, deployment: str) -> Activated:
    try:
        activated = run_activation(instance, path, mode, deployment=deployment)
    except StillActivatingError as error:
        raise UndoFailedError(
            f"{instance.name}: {path} is not activated yet ({mode}): {error}. {links_in_words(instance)}"
        ) from error
    if activated.activation.outcome != "done":
        _log.warning("%s: %s %s: %s", instance.name, path, mode, activated.activation.words)
    return activated


def _has_other_kernel(instance: Instance, step: RestoreSystem) -> bool:
    """Whether the kernel, initrd or modules that run are neither the recorded ones nor the default's."""
    if step.booted is None:
        return False
    booted = instance.nixos_host.places.booted
    recorded, default, now = boot_parts(instance.host, step.booted, step.release, booted)
    return None not in recorded and now not in (recorded, default)


def _reboot(instance: Instance, step: RestoreSystem, *, deployment: str, deadline: float) -> None:
    left_s = max(1.0, min(instance.nixos_host.reboot_s, deadline - time.monotonic()))
    _log.warning("%s is rebooted, into %s", instance.name, step.release)
    try:
        reboot_into(instance, step.release, deployment=deployment, limit_s=left_s)
    except RebootFailedError as error:
        raise UndoFailedError(f"{instance.name} does not come back on {step.release}: {error}") from error


# --- the proof -------------------------------------------------------------------------------------


def _prove(instance: Instance, step: RestoreSystem, deadline: float) -> None:
    """See that the host is as recorded.

    Raises:
        UndoFailedError: it is not; says in what.
    """
    links = read_links(instance)
    if (links.profile, links.running) != (step.release, step.running):
        raise UndoFailedError(
            f"{instance.name} is not as it was: {step.running} should run, and {step.release} boot. "
            f"{links.in_words} Roll back again; if that does not help, activate it there by hand."
        )
    if _has_other_kernel(instance, step):
        raise UndoFailedError(
            f"{instance.name} runs {step.running} again, with another kernel than it had, also after a "
            "reboot. Look at its boot loader's default."
        )
    until = min(deadline, time.monotonic() + instance.nixos_host.settle_s)
    _settle(instance, until)
    if new := [unit for unit in failed_units(instance) if unit not in step.failed_before]:
        raise UndoFailedError(
            f"{instance.name} runs {step.running} again, but {', '.join(new)} failed and had not before. "
            f"Look at `journalctl -u {new[0]}` there."
        )
    if silent := wait_for_urls(step.answering, until, still_wanted=lambda: None):
        raise UndoFailedError(
            f"{instance.name} runs {step.running} again, but {in_words(silent)}, and did before. Look into "
            "the logs of the service behind it."
        )


def _settle(instance: Instance, until: float) -> None:
    """Wait until all services have started; one that always takes longer, did so before, too."""
    try:
        wait_until_settled(instance, until, still_wanted=lambda: None)
    except StepFailedError as error:
        if system_state(instance) != "starting":
            raise UndoFailedError(str(error)) from error
        _log.warning("%s", error)


# --- what was proven -------------------------------------------------------------------------------


def _is_restored(instance: Instance, step: RestoreSystem) -> bool:
    """Whether all was proven before, and neither we nor anybody else changed it since."""
    argv = ("cat", "--", f"{instance.nixos_host.places.runtime}/{RESTORED}")
    if hosts.run(instance.host, argv, check=False).stdout.strip() != _proven(step):
        return False
    links = read_links(instance)
    return (links.profile, links.running) == (step.release, step.running)


def _note_restored(instance: Instance, step: RestoreSystem) -> None:
    # gone with the next activation or reboot; if it cannot be written, the same is done once more
    path = f"{instance.nixos_host.places.runtime}/{RESTORED}"
    with suppress(CommandError):
        hosts.write_file(instance.host, path, f"{_proven(step)}\n".encode())


def _proven(step: RestoreSystem) -> str:
    return f"{step.generation} {step.release} {step.running}"
