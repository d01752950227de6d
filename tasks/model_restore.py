"""Bring a model server back to what it had loaded: hot where it was swapped hot, else by a restart."""

from __future__ import annotations

import logging
from pathlib import Path

from rules.errors import DeployError
from rules.fleet import Instance
from rules.serving import ModelServing
from rules.undo import RestoreModel
from tasks import sglang
from tasks.application import (
    restart_service,
    restore_pointer,
    restore_release,
    running_release,
    service_runs,
    wait_until_back,
)
from tasks.model_loaded import compare_with_files
from tasks.model_stage import MODEL, known_facts, release_directory, staged_flags
from tasks.settings import Settings

log = logging.getLogger(__name__)
#: A hot way back takes no more of the rollback's time than this: a restart must fit behind it.
_HOT_SHARE = 0.5


def restore_model(
    instance: Instance, serving: ModelServing | None, step: RestoreModel, *, settings: Settings
) -> None:
    """Have the recorded release pointed to and loaded; does nothing where that is so already.

    A server that may have been swapped hot is swapped in any case: an update that is still under way there
    comes before this one. If it is dead, refuses, or has other weights afterwards, it is restarted.

    Raises:
        UndoFailedError: the recorded release does not come up.
        CommandError: a command on the host failed.
    """
    if step.running is None or not step.hot:
        restore_release(instance, step, settings=settings)
        return
    restore_pointer(instance, step.release)
    if not _swapped_back(instance, serving or ModelServing(), step, settings=settings):
        restart_service(instance, settings=settings)
        wait_until_back(instance, step.running, pointer=step.release)


def _swapped_back(
    instance: Instance, serving: ModelServing, step: RestoreModel, *, settings: Settings
) -> bool:
    """Swap the recorded release into the living server; return whether it has exactly that afterwards."""
    if step.release is None or step.release != step.running or not service_runs(instance):
        return False
    timeout_s = min(
        serving.limits.drain_s + settings.command_timeout_s, _HOT_SHARE * settings.rollback_deadline_s
    )
    server = sglang.server_of(instance, serving)
    try:
        info = sglang.model_info(server)
        if info.served_model_name != info.model_path:  # never swapped: that would have renamed it
            return info.weight_version == step.release
        sglang.update_weights(server, model_path=info.model_path, release=step.release, timeout_s=timeout_s)
        faults = _loaded_faults(instance, serving, step.release)
    except DeployError as error:
        log.warning(
            "%s cannot be swapped back to %s, it is restarted: %s", instance.name, step.release, error
        )
        return False
    if faults:
        log.warning("%s has other weights after the way back, it is restarted: %s", instance.name, faults)
    return not faults and running_release(instance) == step.running


def _loaded_faults(instance: Instance, serving: ModelServing, release: str) -> tuple[str, ...]:
    """Say which loaded tensors differ from the release's files; nothing where that cannot be read here."""
    facts = None if instance.host.address else known_facts(instance, release)
    if facts is None:
        return ()
    dtype = str((staged_flags(instance, release) or {}).get("dtype", "auto"))
    directory = Path(release_directory(instance, release), MODEL)
    return compare_with_files(sglang.server_of(instance, serving), facts, directory, dtype=dtype).faults
