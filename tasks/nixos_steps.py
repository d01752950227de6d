"""Each action on a NixOS host as a Prefect task, named after what it does to which host."""

from __future__ import annotations

import logging
import time
from typing import assert_never

from rules.errors import CommandError
from rules.fleet import Instance
from rules.nixos import Activation
from rules.nixos_actions import (
    ActivateSystem,
    ArmGuard,
    ConfirmSystem,
    NixosAction,
    RebootHost,
    StageSystem,
    SwitchSystem,
    UpdateChannel,
    VerifySystem,
)
from rules.system_change import SystemRelease
from tasks import (
    nixos_activate,
    nixos_channel,
    nixos_guard,
    nixos_reboot,
    nixos_roots,
    nixos_verify,
)
from tasks.as_task import as_task
from tasks.deployment import OpenDeployment

log = logging.getLogger(__name__)
#: How often a host hears of a deployment that is paused, as a part of its guard's time.
_HEARS_EACH = 0.25

update_channel = as_task(
    nixos_channel.update_channel, "update channel", "{instance.name}: update channel", retries=1
)
stage_system = as_task(nixos_roots.stage_system, "stage system", "{instance.name}: stage", retries=1)
arm_guard = as_task(nixos_guard.arm_guard, "arm guard", "{instance.name}: arm guard", retries=1)
activate_system = as_task(nixos_activate.activate_system, "activate system", "{instance.name}: activate")
switch_system = as_task(nixos_activate.switch_system, "switch system", "{instance.name}: switch")
reboot_host = as_task(nixos_reboot.reboot_host, "reboot host", "{instance.name}: reboot")
verify_system = as_task(nixos_verify.verify_system, "verify system", "{instance.name}: verify")
confirm_system = as_task(nixos_verify.confirm_system, "confirm system", "{instance.name}: confirm", retries=1)


def change_system(deployment: OpenDeployment, change: SystemRelease, action: NixosAction) -> None:
    """Do one action of a plan on one NixOS host; its guard's time begins anew with each.

    Raises:
        DeployError: it failed; see each task.
    """
    instance, name = deployment.fleet.instance(action.instance), deployment.name
    nixos_guard.extend_guard(instance, deployment=name)
    match action:
        case UpdateChannel():
            update_channel(instance, action)
        case StageSystem():
            stage_system(instance, change, action, deployment=name)
        case ArmGuard():
            arm_guard(instance, action, deployment=name)
            _keep_in_touch(deployment, instance, guard_s=action.guard_s)
        case ActivateSystem():
            _note_activation(deployment, activate_system(instance, action, deployment=name), instance.name)
        case SwitchSystem():
            _note_activation(deployment, switch_system(instance, action, deployment=name), instance.name)
        case RebootHost():
            reboot_host(instance, action, deployment=name, still_wanted=deployment.prove_ours)
        case VerifySystem():
            words = verify_system(instance, action, still_wanted=deployment.prove_ours)
            # smoke tests come next, which do not reach the host in this way, and take their time
            nixos_guard.extend_guard(instance, deployment=name)
            deployment.note("system_verified", words)
        case ConfirmSystem():
            deployment.note("system_confirmed", confirm_system(instance, action, deployment=name))
            deployment.while_held = lambda: None
        case unknown:
            assert_never(unknown)


def _keep_in_touch(deployment: OpenDeployment, instance: Instance, *, guard_s: float) -> None:
    """Have the host hear of the deployment also while a person has paused it, until it is confirmed."""
    heard = time.monotonic()

    def hear() -> None:
        nonlocal heard
        if time.monotonic() - heard < _HEARS_EACH * guard_s:
            return
        heard = time.monotonic()
        try:
            nixos_guard.extend_guard(instance, deployment=deployment.name)
        except CommandError as error:  # the next one may reach it; else it takes itself back
            log.warning("%s does not hear of %s: %s", instance.name, deployment.name, error)

    deployment.while_held = hear


def _note_activation(deployment: OpenDeployment, activation: Activation, host: str) -> None:
    deployment.note("activation", f"{host}: {activation.words}")
