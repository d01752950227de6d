"""Going back to a ZFS snapshot: never under a running server, never over newer snapshots by surprise."""

from __future__ import annotations

import time
from collections.abc import Callable

from rules.backup import BackupTaken, ZfsDataset, zfs_stored
from rules.errors import UndoFailedError
from tasks.settings import Settings
from tasks.zfs import (
    BUSY_PATIENCE_S,
    PAUSE_S,
    clones,
    command,
    identity_fault,
    remove_leftovers,
    snapshots,
)


def roll_back_dataset(
    zfs: ZfsDataset,
    taken: BackupTaken,
    *,
    proven_stopped: Callable[[], bool],
    settings: Settings,
    discard_newer: bool = False,
) -> None:
    """Make the dataset, and with `recursive` those below it, what they were; all written since is lost.

    Doing it again is harmless. Zfs itself would roll back under a running server and so destroy its data:
    it is proven anew before each dataset and each try.

    Args:
        zfs: the dataset.
        taken: the snapshot.
        proven_stopped: whether whoever writes to the dataset is proven to be stopped.
        settings: for how long a command may take.
        discard_newer: destroy snapshots that were taken later, which otherwise forbid it.

    Raises:
        UndoFailedError: refused or not possible; says what the dataset was left as.
        CommandError: the dataset cannot be read.
    """
    _prove_stopped(zfs, proven_stopped)
    if wrong := identity_fault(zfs, taken, settings=settings):
        raise UndoFailedError(f"{wrong}; {zfs.dataset} was left as it is")
    remove_leftovers(zfs, settings=settings)
    label = taken.identity.partition("@")[2]
    chosen = _with_label(zfs, label, settings) if zfs.recursive else (taken.identity,)
    newer = tuple(name for snapshot in chosen for name in _newer(zfs, snapshot, settings))
    if newer and not discard_newer:
        raise UndoFailedError(
            f"{list(newer)} were taken after {taken.identity} and would be destroyed; {zfs.dataset} was left "
            "as it is. Destroy them, or allow that they are."
        )
    if needed := [clone for clone, origin in clones(zfs, settings) if origin in newer]:
        raise UndoFailedError(
            f"{needed} are clones of newer snapshots of {zfs.dataset}, which was left as it is. Promote or "
            "destroy them."
        )
    # only if it may: one that is taken at this very moment makes zfs refuse, as it should
    discarding = ("-r",) if discard_newer else ()
    for snapshot in chosen:
        _roll_back_one(zfs, snapshot, discarding=discarding, proven_stopped=proven_stopped, settings=settings)


def _roll_back_one(
    zfs: ZfsDataset,
    snapshot: str,
    *,
    discarding: tuple[str, ...],
    proven_stopped: Callable[[], bool],
    settings: Settings,
) -> None:
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        _prove_stopped(zfs, proven_stopped)
        finished = command(zfs, ("rollback", *discarding, snapshot), settings, check=False)
        if finished.returncode == 0:
            return
        if "busy" not in finished.stderr or time.monotonic() >= deadline:
            raise UndoFailedError(
                f"going back to {snapshot} failed: {finished.stderr.strip()}. This dataset is as it was, "
                "those before it have gone back already; remove the cause and do it again."
            )
        time.sleep(PAUSE_S)


def _prove_stopped(zfs: ZfsDataset, proven_stopped: Callable[[], bool]) -> None:
    if not proven_stopped():
        raise UndoFailedError(
            f"what writes to {zfs.dataset} is not proven to be stopped, and a rollback under it would "
            "destroy its data: the dataset was left as it is. Stop it, then go back again."
        )


def _with_label(zfs: ZfsDataset, label: str, settings: Settings) -> tuple[str, ...]:
    """Return the snapshots of that label of the dataset and all below it.

    Raises:
        UndoFailedError: one has none: it was made later, and going back would leave the parts at odds.
    """
    argv = ("list", "-H", "-r", "-t", "filesystem,volume,snapshot", "-o", "name", zfs.dataset)
    names = command(zfs, argv, settings).stdout.split()
    datasets = [name for name in names if "@" not in name]
    if missing := [name for name in datasets if f"{name}@{label}" not in names]:
        raise UndoFailedError(
            f"{missing} have no snapshot {label}: made later, or it was destroyed. {zfs.dataset} and those "
            "below it were left as they are; go back by hand, dataset by dataset."
        )
    return tuple(f"{name}@{label}" for name in datasets)


def _newer(zfs: ZfsDataset, snapshot: str, settings: Settings) -> tuple[str, ...]:
    dataset = snapshot.partition("@")[0]
    one = zfs.model_copy(update={"dataset": dataset, "recursive": False})
    names = [each.identity for each in zfs_stored(dataset, snapshots(one, settings), cloned=())]
    return tuple(names[names.index(snapshot) + 1 :])
