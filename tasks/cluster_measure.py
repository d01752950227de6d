"""What bringing a cluster back to a snapshot would lose, measured; what cannot be measured stops nobody."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from rules.backup import BackupTaken, Stored, from_epoch, moved
from rules.cluster_loss import ClusterLoss, Commits, WalEnd
from rules.errors import CommandError, StepFailedError, UndoFailedError
from tasks import wal
from tasks import zfs as snapshots
from tasks.cluster_files import Restorable, cluster_parts, noted_snapshot
from tasks.settings import Settings
from tasks.wal import ClusterFiles

log = logging.getLogger(__name__)


def snapshots_end(way: Restorable, *, settings: Settings) -> WalEnd | str:
    """Return where the snapshot's own WAL ends; or why that cannot be told."""
    try:
        parts = cluster_parts(way, settings=settings)
        with snapshots.reading(way.zfs, way.snapshot, settings=settings) as place:
            # the real places are looked for there: a link within the copy leads to the live cluster
            cluster, log_directory = (moved(p, parts.mountpoint, place) for p in (parts.cluster, parts.wal))
            copy = files(way).model_copy(update={"cluster": cluster, "wal": log_directory})
            return wal.end(copy, timeout_s=settings.command_timeout_s)
    except (CommandError, StepFailedError, ValueError) as error:
        log.warning("where %s ends cannot be told: %s", way.snapshot, error)
        return str(error)


def measured(way: Restorable, end: WalEnd | str, *, settings: Settings) -> ClusterLoss:
    """Return what going back would lose now; exact once the server is stopped.

    Args:
        way: which cluster, to which snapshot.
        end: see `snapshots_end`.
        settings: for how long a command may take.

    Raises:
        UndoFailedError: the snapshot is not there.
        CommandError: the dataset cannot be read.
    """
    snapshot, now = taken(way, settings=settings), datetime.now(UTC)
    return ClusterLoss.of(
        way.snapshot,
        _commits(way, end, settings),
        taken_at=snapshot.taken_at,
        now=now,
        lost_bytes=_lost_bytes(way, snapshot, now, settings),
        discarded=tuple(each.identity for each in later(way, settings=settings)),
    )


def taken(way: Restorable, *, settings: Settings) -> BackupTaken:
    """Return the snapshot as it was when it was taken; where that was not noted, as it is.

    Raises:
        UndoFailedError: it is not there.
        CommandError: it cannot be read.
    """
    if noted := noted_snapshot(way):
        return noted
    marks = snapshots.snapshots(way.zfs, settings).get(way.snapshot)
    if marks is None:
        raise UndoFailedError(f"{way.snapshot} is not there: {way.database.name} was left as it is")
    return BackupTaken(
        source=f"sovereign-database/{way.database.name}",
        kind="zfs_snapshot",
        identity=way.snapshot,
        taken_at=from_epoch(marks["creation"]),
        position=marks["createtxg"],
        details={"guid": marks["guid"]},
    )


def later(way: Restorable, *, settings: Settings) -> tuple[Stored, ...]:
    """Return the snapshots that were taken after this one, and are destroyed by going back to it.

    Raises:
        CommandError: they cannot be read.
    """
    stored = snapshots.stored(way.zfs, settings=settings)
    names = [each.identity for each in stored]
    return stored[names.index(way.snapshot) + 1 :] if way.snapshot in names else ()


def files(way: Restorable) -> ClusterFiles:
    """Return where the live cluster's files lie."""
    cluster = way.server.cluster
    return ClusterFiles(
        host=way.server.host, cluster=cluster, wal=f"{cluster}/pg_wal", programs=way.database.programs
    )


def _commits(way: Restorable, end: WalEnd | str, settings: Settings) -> Commits:
    if isinstance(end, str):
        return Commits.unknown(end)
    try:
        return wal.commits_since(files(way), end, timeout_s=settings.command_timeout_s)
    except (CommandError, ValueError) as error:
        return Commits.unknown(str(error))


def _lost_bytes(way: Restorable, snapshot: BackupTaken, now: datetime, settings: Settings) -> int | None:
    try:
        return snapshots.loss(way.zfs, snapshot, now=now, settings=settings).lost_bytes
    except CommandError as error:
        log.warning("the bytes written since %s cannot be told: %s", way.snapshot, error)
        return None
