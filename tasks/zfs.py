"""ZFS snapshots of a dataset: taken, read back, measured, and pruned.

Only what OpenZFS 2 and zfs-fuse 0.7 share is used, and what only one of them has is asked for first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rules.backup import (
    MEASURING,
    BackupTaken,
    Loss,
    Stored,
    ZfsDataset,
    backup_name,
    expired,
    from_epoch,
    is_way_back,
    may_snapshot,
    parse_mounts,
    parse_properties,
    zfs_stored,
)
from rules.environment import BlockReference
from rules.errors import CommandError
from rules.finding import Finding
from rules.frozen import Name
from tasks.host import run
from tasks.process import Finished
from tasks.reading import read_sample
from tasks.settings import Settings

_MARKS = ("creation", "createtxg", "guid", "userrefs", "referenced")
#: Zfs says busy for a moment after files were closed.
BUSY_PATIENCE_S = 15.0
PAUSE_S = 0.2
# `wc` ends well also when the sender does not: it says so on the other output, which then is not empty
_SENT_BYTES = '{ zfs send -i "$1" "$2" || echo "zfs send failed" >&2; } | wc -c'


def take(zfs: ZfsDataset, source: BlockReference, *, deployment: Name, settings: Settings) -> BackupTaken:
    """Take the deployment's snapshot, or find the one that it has already; return it.

    Raises:
        CommandError: it could not be taken; nothing was changed.
    """
    snapshot = f"{zfs.dataset}@{backup_name(deployment)}"
    if snapshot not in snapshots(zfs, settings):
        command(zfs, ("snapshot", *_with_those_below(zfs), snapshot), settings)
    marks = snapshots(zfs, settings)[snapshot]
    return BackupTaken(
        source=source,
        kind="zfs_snapshot",
        identity=snapshot,
        taken_at=from_epoch(marks["creation"]),
        size_bytes=int(marks["referenced"]),
        position=marks["createtxg"],
        details={"deployment": deployment, "guid": marks["guid"]},
    )


def verify(zfs: ZfsDataset, taken: BackupTaken, *, settings: Settings) -> Finding:
    """Read a sample of the snapshot's files on a clone, and say whether it is the one that was taken.

    Raises:
        CommandError: it could not be looked at.
    """
    if wrong := identity_fault(zfs, taken, settings=settings):
        return Finding.failed(wrong)
    with reading(zfs, taken.identity, settings=settings) as directory:
        read = read_sample(zfs.host, directory, timeout_s=settings.command_timeout_s)
    words = f"{taken.identity} of {taken.taken_at:%Y-%m-%d %H:%M:%S} UTC, mounted as a clone: {read.evidence}"
    return Finding(result=read.result, evidence=words)


@contextmanager
def reading(zfs: ZfsDataset, snapshot: str, *, settings: Settings) -> Iterator[str]:
    """Mount a read-only clone of `snapshot` and give its directory; it is destroyed afterwards.

    A clone that a killed process left is destroyed first.

    Raises:
        CommandError: it could not be mounted, or is still busy 15 seconds after it was used.
    """
    clone, place = zfs.reading_prefix + snapshot.partition("@")[2], zfs.reading_place
    remove_leftovers(zfs, settings=settings)
    properties = ("-o", "readonly=on", "-o", f"mountpoint={place}")
    try:
        command(zfs, ("clone", *properties, snapshot, clone), settings)
        mounted = command(zfs, ("get", "-Hp", "-o", "value", "mounted", clone), settings).stdout.strip()
        if mounted != "yes":
            mount(zfs, clone, settings=settings)
        yield place
    finally:
        remove_leftovers(zfs, settings=settings)


def remove_leftovers(zfs: ZfsDataset, *, settings: Settings) -> None:
    """Destroy the clones that snapshots of this dataset were read by, and the snapshot it was measured by.

    Raises:
        CommandError: one is still busy after 15 seconds.
    """
    for clone, _ in clones(zfs, settings):
        if clone.startswith(zfs.reading_prefix):
            _patiently(zfs, ("destroy", clone), settings)
            run(zfs.host, ("rmdir", "--", zfs.reading_place), check=False)
    measuring = f"{zfs.dataset}@{MEASURING}"
    if measuring in snapshots(zfs, settings):
        _patiently(zfs, ("destroy", *_with_those_below(zfs), measuring), settings)


def prune(zfs: ZfsDataset, *, now: datetime, keep_s: float, settings: Settings) -> tuple[str, ...]:
    """Destroy the snapshots of ours that are older than `keep_s`; return their names.

    Those that schema changes go back through stay: see `tasks.cluster_prune`.

    Raises:
        CommandError: one could not be destroyed; the others before it are.
    """
    remove_leftovers(zfs, settings=settings)
    backups = [each for each in stored(zfs, settings=settings) if not is_way_back(each.label)]
    return destroy(zfs, expired(backups, now=now, keep_s=keep_s), settings=settings)


def destroy(zfs: ZfsDataset, old: Iterable[Stored], *, settings: Settings) -> tuple[str, ...]:
    """Destroy snapshots of the dataset, in this order; return their names.

    Raises:
        CommandError: one could not be destroyed; the others before it are.
    """
    removed = []
    for each in old:
        _patiently(zfs, ("destroy", *_with_those_below(zfs), each.identity), settings)
        removed.append(each.identity)
    return tuple(removed)


def stored(zfs: ZfsDataset, *, settings: Settings) -> tuple[Stored, ...]:
    """Return the dataset's snapshots, ours and others, oldest first.

    Raises:
        CommandError: they cannot be read.
    """
    cloned = [origin for _, origin in clones(zfs, settings)]
    return zfs_stored(zfs.dataset, snapshots(zfs, settings), cloned=cloned)


def loss(zfs: ZfsDataset, taken: BackupTaken, *, now: datetime, settings: Settings) -> Loss:
    """Return what a rollback to the snapshot would lose: the bytes written to the dataset since.

    Raises:
        CommandError: the snapshot cannot be read.
    """
    return Loss.of(taken, now=now, lost_bytes=_written_bytes(zfs, taken, settings), what="written since")


def plan(zfs: ZfsDataset, *, settings: Settings) -> Finding:
    """Return whether the dataset is there, is a file system, and may be snapshot by us; changes nothing."""
    kind = command(zfs, ("get", "-Hp", "-o", "value", "type", zfs.dataset), settings, check=False)
    if kind.returncode:
        return Finding.failed(f"{zfs.dataset} on {zfs.host.name}: {kind.stderr.strip() or 'no zfs'}")
    if kind.stdout.strip() != "filesystem":
        return Finding.failed(f"{zfs.dataset} is a {kind.stdout.strip()}, not a file system")
    health = _run(zfs, ("zpool", "list", "-H", "-o", "health", zfs.pool), settings).stdout.strip()
    if health not in {"ONLINE", "DEGRADED"}:
        return Finding.failed(f"pool {zfs.pool} is {health}")
    if not _is_allowed(zfs, settings):
        return Finding.failed(
            f"{zfs.dataset}: the user is neither root nor allowed to snapshot and mount (zfs allow)"
        )
    return Finding.passed(f"{zfs.dataset} on {zfs.host.name} can be snapshot; its pool is {health}")


def free_ratio(zfs: ZfsDataset, *, settings: Settings) -> float:
    """Return which part of the dataset's space is still available to it.

    Raises:
        CommandError: it cannot be read.
    """
    argv = ("get", "-Hp", "-o", "name,property,value", "available,used", zfs.dataset)
    values = parse_properties(command(zfs, argv, settings).stdout)[zfs.dataset]
    available, used = int(values["available"]), int(values["used"])
    return available / max(1, available + used)


def mountpoints(zfs: ZfsDataset, *, settings: Settings) -> dict[str, str]:
    """Return dataset -> where it is mounted, of this dataset and those below it that are.

    Raises:
        CommandError: they cannot be read.
    """
    # zfs itself says "legacy" for those that the system's own table mounts
    mounted = parse_mounts(_run(zfs, ("cat", "/proc/self/mounts"), settings).stdout)
    below = f"{zfs.dataset}/"
    return {name: place for name, place in mounted.items() if name == zfs.dataset or name.startswith(below)}


def identity_fault(zfs: ZfsDataset, taken: BackupTaken, *, settings: Settings) -> str:
    """Say why the snapshot is not the one that was taken; empty: it is.

    Raises:
        CommandError: it cannot be read.
    """
    marks = snapshots(zfs, settings).get(taken.identity)
    if marks is None:
        return f"{taken.identity} is not there"
    read = (from_epoch(marks["creation"]), marks["createtxg"], marks["guid"])
    recorded = (taken.taken_at, taken.position, taken.details.get("guid", marks["guid"]))
    return "" if read == recorded else f"{taken.identity} is another one: {read}, taken was {recorded}"


def _written_bytes(zfs: ZfsDataset, taken: BackupTaken, settings: Settings) -> int | None:
    """Return the bytes written since the snapshot, with `recursive` also below; None: cannot be told."""
    # counts only what has reached the disk; without the right to it the newest seconds are missing
    _run(zfs, ("zpool", "sync", zfs.pool), settings, check=False)
    label = taken.identity.partition("@")[2]
    since = [name for name in snapshots(zfs, settings) if name.partition("@")[2] == label]
    asked = [
        command(
            zfs,
            ("get", "-Hp", "-o", "value", f"written@{label}", name.partition("@")[0]),
            settings,
            check=False,
        )
        for name in since
    ]
    if all(each.returncode == 0 and each.stdout.strip().isdigit() for each in asked):
        return sum(int(each.stdout) for each in asked)
    return _sent_bytes(zfs, since, settings)  # zfs-fuse knows no such property


def _sent_bytes(zfs: ZfsDataset, since: list[str], settings: Settings) -> int | None:
    """Return the size of the differences between the snapshots and now, a little over the bytes written."""
    remove_leftovers(zfs, settings=settings)
    command(zfs, ("snapshot", *_with_those_below(zfs), f"{zfs.dataset}@{MEASURING}"), settings)
    sizes: list[int | None] = []
    try:
        for snapshot in since:
            now = f"{snapshot.partition('@')[0]}@{MEASURING}"
            sent = _run(zfs, ("sh", "-c", _SENT_BYTES, "sent-bytes", snapshot, now), settings)
            sizes.append(None if sent.stderr.strip() else int(sent.stdout))
    finally:
        remove_leftovers(zfs, settings=settings)
    return None if None in sizes else sum(size or 0 for size in sizes)


def _with_those_below(zfs: ZfsDataset) -> tuple[str, ...]:
    return ("-r",) if zfs.recursive else ()


def snapshots(zfs: ZfsDataset, settings: Settings) -> dict[str, dict[str, str]]:
    """Return snapshot -> its marks: of the dataset, and with `recursive` of those below it.

    Raises:
        CommandError: they cannot be read.
    """
    depth = () if zfs.recursive else ("-d", "1")
    argv = ("get", "-r", *depth, "-Hp", "-o", "name,property,value", ",".join(_MARKS), zfs.dataset)
    properties = parse_properties(command(zfs, argv, settings).stdout)
    return {name: values for name, values in properties.items() if "@" in name}


def clones(zfs: ZfsDataset, settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return each clone of the pool and the snapshot it depends on.

    Raises:
        CommandError: they cannot be read.
    """
    argv = ("list", "-H", "-r", "-o", "name,origin", zfs.pool)
    rows = (line.split("\t") for line in command(zfs, argv, settings).stdout.splitlines())
    return tuple((name, origin) for name, origin in rows if origin != "-")


def _is_allowed(zfs: ZfsDataset, settings: Settings) -> bool:
    if _run(zfs, ("id", "-u"), settings).stdout.strip() == "0":
        return True
    user = _run(zfs, ("id", "-un"), settings).stdout.strip()
    groups = _run(zfs, ("id", "-Gn"), settings).stdout.split()
    allowed = command(zfs, ("allow", zfs.dataset), settings, check=False).stdout
    return may_snapshot(allowed, user=user, groups=groups)


def mount(zfs: ZfsDataset, dataset: str, *, settings: Settings) -> None:
    """Mount a file system of the dataset's host.

    Raises:
        CommandError: it cannot be mounted, or is still busy after 15 seconds.
    """
    _patiently(zfs, ("mount", dataset), settings, fine="already mounted")


def _patiently(
    zfs: ZfsDataset, words: tuple[str, ...], settings: Settings, *, fine: str = "does not exist"
) -> None:
    """Run `zfs` again while it says busy, which it does for a moment after files were closed."""
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        finished = command(zfs, words, settings, check=False)
        if finished.returncode == 0 or fine in finished.stderr:
            return
        if "busy" not in finished.stderr or time.monotonic() >= deadline:
            raise CommandError(finished.argv, zfs.host.name, finished.returncode, finished.output)
        time.sleep(PAUSE_S)


def command(zfs: ZfsDataset, words: tuple[str, ...], settings: Settings, *, check: bool = True) -> Finished:
    """Run `zfs` on the dataset's host; see `tasks.host.run`."""
    return _run(zfs, ("zfs", *words), settings, check=check)


def _run(zfs: ZfsDataset, argv: tuple[str, ...], settings: Settings, *, check: bool = True) -> Finished:
    # an environment also puts the directory on PATH that zfs is in
    environment = {"LC_ALL": "C"}
    return run(zfs.host, argv, timeout_s=settings.command_timeout_s, env=environment, check=check)
