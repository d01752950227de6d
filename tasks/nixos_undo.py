"""Take one step of a change of a NixOS host back: from the journal's data alone, with no API."""

from __future__ import annotations

from typing import assert_never

from rules.continued import continued
from rules.fleet import Instance
from rules.nixos_actions import DisarmGuard, DropRoots, NixosUndo, RestoreChannel, RestoreSystem
from tasks.nixos_channel import restore_channel
from tasks.nixos_guard import disarm_guard
from tasks.nixos_restore import restore_system
from tasks.nixos_roots import drop_roots
from tasks.settings import Settings


def take_system_back(instance: Instance, step: NixosUndo, *, deployment: str, settings: Settings) -> None:
    """Bring about the state of the host that `step` names. Repeating it changes nothing.

    Raises:
        DeployError: it did not work; the message says how far it came.
    """
    match step:
        case RestoreSystem():
            restore_system(instance, step, deployment=deployment, settings=settings)
        case RestoreChannel():
            restore_channel(instance, step)
        case DisarmGuard():
            # what a failed rollback has left has the name of the deployment that this one continues
            for name in continued(deployment):
                disarm_guard(instance, deployment=name)
        case DropRoots():
            for name in continued(deployment):
                drop_roots(instance, deployment=name)
        case unknown:
            assert_never(unknown)
