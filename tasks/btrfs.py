"""btrfs snapshots of a subvolume: taken, read back, measured, pruned, and gone back to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from rules.backup import (
    PREFIX,
    BackupTaken,
    BtrfsSubvolume,
    Loss,
    Stored,
    backup_name,
    expired,
    parse_subvolume,
    written_bytes,
)
from rules.environment import BlockReference
from rules.errors import UndoFailedError
from rules.finding import Finding
from rules.frozen import Name
from tasks.host import exists, run
from tasks.process import Finished
from tasks.reading import read_sample
from tasks.settings import Settings

_TOP_INODE = "256"
#: Beside the subvolume: the one that is being made, and the one that was set aside.
_NEW, _ASIDE = ".sovereign-new", ".sovereign-aside"


def take(
    btrfs: BtrfsSubvolume, source: BlockReference, *, deployment: Name, settings: Settings
) -> BackupTaken:
    """Take the deployment's read-only snapshot, or find the one that it has already; return it.

    Raises:
        CommandError: it could not be taken; nothing was changed.
    """
    snapshot = f"{btrfs.snapshots.rstrip('/')}/{backup_name(deployment)}"
    # a second snapshot of that name would silently be made inside the first one
    if not exists(btrfs.host, snapshot):
        _run(btrfs, ("mkdir", "-p", "-m", "0700", "--", btrfs.snapshots), settings)
        _btrfs(btrfs, ("subvolume", "snapshot", "-r", btrfs.subvolume, snapshot), settings)
    fields = _show(btrfs, snapshot, settings)
    return BackupTaken(
        source=source,
        kind="btrfs_snapshot",
        identity=snapshot,
        taken_at=_created(fields),
        position=fields["Gen at creation"],
        details={"deployment": deployment, "uuid": fields["UUID"]},
    )


def verify(btrfs: BtrfsSubvolume, taken: BackupTaken, *, settings: Settings) -> Finding:
    """Read a sample of the snapshot's files, and say whether it is the one that was taken.

    Raises:
        CommandError: it could not be looked at.
    """
    if wrong := _identity_fault(btrfs, taken, settings):
        return Finding.failed(wrong)
    read = read_sample(btrfs.host, taken.identity, timeout_s=settings.command_timeout_s)
    return Finding(result=read.result, evidence=f"{taken.identity}, read-only: {read.evidence}")


def prune(btrfs: BtrfsSubvolume, *, now: datetime, keep_s: float, settings: Settings) -> tuple[str, ...]:
    """Delete the snapshots of ours that are older than `keep_s`; return their paths.

    Raises:
        CommandError: one could not be deleted; the others before it are.
    """
    removed = []
    for old in expired(stored(btrfs, settings=settings), now=now, keep_s=keep_s):
        _btrfs(btrfs, ("subvolume", "delete", old.identity), settings)
        removed.append(old.identity)
    return tuple(removed)


def stored(btrfs: BtrfsSubvolume, *, settings: Settings) -> tuple[Stored, ...]:
    """Return what lies in the directory of snapshots and bears our prefix, oldest first.

    Raises:
        CommandError: it cannot be read.
    """
    if not exists(btrfs.host, btrfs.snapshots):
        return ()
    pattern = ("-mindepth", "1", "-maxdepth", "1", "-name", f"{PREFIX}*", "-inum", _TOP_INODE)
    paths = _run(btrfs, ("find", btrfs.snapshots, *pattern), settings).stdout.splitlines()
    shown = [(path, _show(btrfs, path, settings)) for path in paths]
    # of snapshots within one second only the generation tells which came first
    shown.sort(key=lambda each: int(each[1]["Gen at creation"]))
    return tuple(
        Stored(identity=path, label=path.rpartition("/")[2], taken_at=_created(fields))
        for path, fields in shown
    )


def loss(btrfs: BtrfsSubvolume, taken: BackupTaken, *, now: datetime, settings: Settings) -> Loss:
    """Return what going back to the snapshot would lose: the bytes of file contents written since.

    Raises:
        CommandError: the subvolume cannot be read.
    """
    _btrfs(btrfs, ("filesystem", "sync", btrfs.subvolume), settings)
    # of the same generation as the snapshot is only what the snapshot has
    after = str(int(taken.position) + 1)
    listed = _btrfs(btrfs, ("subvolume", "find-new", btrfs.subvolume, after), settings)
    # beyond the part of the output that is kept it is no sum
    lost = None if listed.dropped_bytes else written_bytes(listed.stdout)
    return Loss.of(taken, now=now, lost_bytes=lost, what="written since")


def roll_back_subvolume(
    btrfs: BtrfsSubvolume, taken: BackupTaken, *, proven_stopped: Callable[[], bool], settings: Settings
) -> str:
    """Make the subvolume what it was, and return where the one that was there is set aside.

    One that was set aside before is deleted then. Doing it again is harmless, also after it was interrupted.

    Args:
        btrfs: the subvolume.
        taken: the snapshot.
        proven_stopped: whether whoever writes to the subvolume is proven to be stopped.
        settings: for how long a command may take.

    Raises:
        UndoFailedError: refused; the subvolume was left as it is.
        CommandError: a step failed. Without the subvolume under its name, it is complete beside it as
            `….sovereign-new`, and the old one as `….sovereign-aside`; doing it again goes on from there.
    """
    _refuse(btrfs, proven_stopped=proven_stopped, settings=settings)
    if wrong := _identity_fault(btrfs, taken, settings):
        raise UndoFailedError(f"{wrong}; {btrfs.subvolume} was left as it is")
    new, aside = btrfs.subvolume + _NEW, btrfs.subvolume + _ASIDE
    _delete_if_there(btrfs, new, settings)
    _btrfs(btrfs, ("subvolume", "snapshot", taken.identity, new), settings)
    if exists(btrfs.host, btrfs.subvolume):
        _delete_if_there(btrfs, aside, settings)
        _run(btrfs, ("mv", "-T", "--", btrfs.subvolume, aside), settings)
    _run(btrfs, ("mv", "-T", "--", new, btrfs.subvolume), settings)
    _btrfs(btrfs, ("filesystem", "sync", btrfs.subvolume), settings)
    return aside


def plan(btrfs: BtrfsSubvolume, *, settings: Settings) -> Finding:
    """Return whether the subvolume is there, may be snapshot by us and gone back to; changes nothing."""
    subvolume = btrfs.subvolume
    shown = _btrfs(btrfs, ("subvolume", "show", subvolume), settings, check=False)
    if shown.returncode:
        return Finding.failed(f"{subvolume} on {btrfs.host.name}: {shown.output.strip() or 'no btrfs'}")
    if _is_mounted(btrfs, settings):
        return Finding.failed(
            f"{subvolume} is mounted by itself: it cannot be renamed, so there is no way back"
        )
    nested = _btrfs(btrfs, ("subvolume", "list", "-o", subvolume), settings).stdout.splitlines()
    if nested:
        return Finding.failed(f"{subvolume} holds {len(nested)} subvolumes, which its snapshots do not hold")
    if _run(btrfs, ("test", "-w", subvolume), settings, check=False).returncode:
        return Finding.failed(f"{subvolume} cannot be written, or its file system is read-only")
    return Finding.passed(f"{subvolume} on {btrfs.host.name} is a subvolume that can be snapshot")


def _refuse(btrfs: BtrfsSubvolume, *, proven_stopped: Callable[[], bool], settings: Settings) -> None:
    if not proven_stopped():
        raise UndoFailedError(
            f"what writes to {btrfs.subvolume} is not proven to be stopped, and would go on writing to what "
            "is set aside: it was left as it is. Stop it, then go back again."
        )
    if _is_mounted(btrfs, settings):
        raise UndoFailedError(
            f"{btrfs.subvolume} is mounted by itself and cannot be renamed: it was left as it is"
        )


def _identity_fault(btrfs: BtrfsSubvolume, taken: BackupTaken, settings: Settings) -> str:
    """Say why the snapshot is not the one that was taken; empty: it is."""
    if not exists(btrfs.host, taken.identity):
        return f"{taken.identity} is not there"
    fields = _show(btrfs, taken.identity, settings)
    if fields["UUID"] != taken.details["uuid"]:
        return f"{taken.identity} is another one: {fields['UUID']}, taken was {taken.details['uuid']}"
    if "readonly" not in fields["Flags"]:
        return f"{taken.identity} is no longer read-only: it may have been written to"
    return ""


def _delete_if_there(btrfs: BtrfsSubvolume, path: str, settings: Settings) -> None:
    if exists(btrfs.host, path):
        _btrfs(btrfs, ("subvolume", "delete", path), settings)


def _is_mounted(btrfs: BtrfsSubvolume, settings: Settings) -> bool:
    return _run(btrfs, ("mountpoint", "-q", btrfs.subvolume), settings, check=False).returncode == 0


def _show(btrfs: BtrfsSubvolume, path: str, settings: Settings) -> dict[str, str]:
    return parse_subvolume(_btrfs(btrfs, ("subvolume", "show", path), settings).stdout)


def _created(fields: dict[str, str]) -> datetime:
    return datetime.strptime(fields["Creation time"], "%Y-%m-%d %H:%M:%S %z")


def _btrfs(
    btrfs: BtrfsSubvolume, words: tuple[str, ...], settings: Settings, *, check: bool = True
) -> Finished:
    return _run(btrfs, ("btrfs", *words), settings, check=check)


def _run(btrfs: BtrfsSubvolume, argv: tuple[str, ...], settings: Settings, *, check: bool = True) -> Finished:
    # an environment also puts the directory on PATH that btrfs may be in
    environment = {"LC_ALL": "C"}
    return run(btrfs.host, argv, timeout_s=settings.command_timeout_s, env=environment, check=check)
