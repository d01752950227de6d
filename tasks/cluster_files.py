"""Where the parts of a cluster lie on its host, and what is noted beside them across a way back."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from rules.backup import PREFIX, BackupTaken, ZfsDataset
from rules.database import Database, DatabaseServer
from rules.errors import InvalidRequestError, StepFailedError
from rules.frozen import AbsolutePath, Frozen
from tasks import zfs as snapshots
from tasks.host import exists, run, write_file
from tasks.settings import Settings

# Each part's real place and the file system that holds it, the same of our journal, and what is mounted
# below the cluster.
_PARTS = """\
cluster=$(readlink -f -- "$1") || exit
[ -f "$cluster/PG_VERSION" ] && [ -e "$cluster/pg_wal" ] || { echo "$1 holds no cluster" >&2; exit 1; }
for part in "$cluster" "$cluster/pg_wal" "$cluster"/pg_tblspc/*; do
    [ -e "$part" ] || [ -L "$part" ] || continue
    place=$(readlink -e -- "$part") || { echo "$part leads nowhere" >&2; exit 1; }
    printf 'part\\t%s\\t%s\\n' "$place" "$(df --output=source -- "$place" | tail -n 1)"
done
while read -r source target rest; do
    case $target in "$cluster"/*) printf 'below\\t%s\\t%s\\n' "$target" "$source" ;; esac
done </proc/self/mounts
journal=$2
while [ "$journal" ] && [ ! -e "$journal" ]; do journal=${journal%/*}; done
[ ! "$2" ] || printf 'journal\\t%s\\t%s\\n' "$2" "$(df --output=source -- "${journal:-/}" | tail -n 1)"
"""
#: The snapshot that was taken of this cluster; it is not in that snapshot, so a way back takes it away.
_TAKEN = "snapshot"
#: A way back was decided on; taken away by it likewise.
_GOING_BACK = "going-back"


class Restorable(Frozen):
    """A database whose whole cluster can be brought back to a snapshot."""

    database: Database
    server: DatabaseServer
    zfs: ZfsDataset
    snapshot: str = Field(description="dataset@label")

    @classmethod
    def of(cls, database: Database, snapshot: str) -> Self:
        """Return it.

        Raises:
            InvalidRequestError: its cluster has no dataset, or the snapshot is none of that.
        """
        zfs = database.zfs
        if database.server is None or zfs is None:
            raise InvalidRequestError(f"{database.name} declares no ZFS dataset; nothing was touched")
        if snapshot.partition("@")[0] != zfs.dataset:
            raise InvalidRequestError(f"{snapshot} is no snapshot of {zfs.dataset}; nothing was touched")
        return cls(database=database, server=database.server, zfs=zfs, snapshot=snapshot)


class ClusterParts(Frozen):
    """The real places of a cluster that lies in one dataset as a whole."""

    cluster: AbsolutePath
    wal: AbsolutePath
    mountpoint: AbsolutePath


def cluster_parts(way: Restorable, *, settings: Settings) -> ClusterParts:
    """Return where the cluster lies.

    Raises:
        StepFailedError: a part of it does not lie in the dataset itself: a snapshot would miss that.
        CommandError: it cannot be told.
    """
    server, zfs = way.server, way.zfs
    mountpoint = snapshots.mountpoints(zfs, settings=settings).get(zfs.dataset)
    if mountpoint is None:
        raise StepFailedError(f"{zfs.dataset} is not mounted on {zfs.host.name}; nothing was changed")
    journal = "" if server.host.address else str(settings.journal_dir.resolve())
    argv = ("sh", "-c", _PARTS, "cluster-parts", server.cluster, journal)
    printed = run(server.host, argv, timeout_s=settings.command_timeout_s, env={"LC_ALL": "C"}).stdout
    rows = [line.split("\t") for line in printed.splitlines()]
    _refuse_wrong_places(rows, server, zfs)
    places = [place for kind, place, _ in rows if kind == "part"]
    return ClusterParts(cluster=places[0], wal=places[1], mountpoint=mountpoint)


def _refuse_wrong_places(rows: list[list[str]], server: DatabaseServer, zfs: ZfsDataset) -> None:
    outside = [
        f"{place} (on {held})"
        for kind, place, held in rows
        if kind == "below" or (kind == "part" and held != zfs.dataset)
    ]
    if outside:
        raise StepFailedError(
            f"{', '.join(outside)} would not be in a snapshot of {zfs.dataset}, and the cluster "
            f"{server.cluster} cannot be started without it. Nothing was changed. Move it into the dataset."
        )
    if ours := [place for kind, place, held in rows if kind == "journal" and held == zfs.dataset]:
        raise StepFailedError(
            f"Our own journal {ours[0]} lies in {zfs.dataset}: going back to a snapshot would take the "
            "journal back too. Nothing was changed. Give the cluster a dataset of its own."
        )


def ensure_mounted(zfs: ZfsDataset, *, settings: Settings) -> None:
    """Mount the dataset where it is not: a killed rollback may have left it so.

    Raises:
        CommandError: it cannot be mounted.
    """
    if zfs.dataset not in snapshots.mountpoints(zfs, settings=settings):
        snapshots.mount(zfs, zfs.dataset, settings=settings)


# --- notes in the cluster's directory --------------------------------------------------------------


def noted_snapshot(way: Restorable) -> BackupTaken | None:
    """Return the snapshot as it was taken of this very cluster; None: the cluster is from before it.

    Going back takes the note away, in the same moment: as long as it is there, nothing was brought back.

    Raises:
        CommandError: the note cannot be read.
    """
    path = _note(way, _TAKEN)
    if not exists(way.server.host, path):
        return None
    return BackupTaken.model_validate_json(run(way.server.host, ("cat", "--", path)).stdout)


def note_snapshot(way: Restorable, taken: BackupTaken) -> None:
    """Note durably that the snapshot was taken of this cluster.

    Raises:
        CommandError: it could not be written.
    """
    write_file(way.server.host, _note(way, _TAKEN), taken.model_dump_json().encode())


def is_going_back(way: Restorable) -> bool:
    """Return whether a way back to the snapshot was decided on, and has not yet happened.

    Raises:
        CommandError: it cannot be told.
    """
    return exists(way.server.host, _note(way, _GOING_BACK))


def note_going_back(way: Restorable) -> None:
    """Note durably that the way back is decided on: it goes on from here, whoever is killed.

    Raises:
        CommandError: it could not be written.
    """
    write_file(way.server.host, _note(way, _GOING_BACK), b"")


def forget_going_back(way: Restorable) -> None:
    """Note that no way back is under way.

    Raises:
        CommandError: the note could not be removed.
    """
    run(way.server.host, ("rm", "-f", "--", _note(way, _GOING_BACK)))


def forget_old_snapshots(way: Restorable, *, settings: Settings) -> None:
    """Remove all notes on snapshots that are gone.

    Raises:
        CommandError: they could not be removed.
    """
    host, cluster = way.server.host, way.server.cluster
    kept = {name.partition("@")[2] for name in snapshots.snapshots(way.zfs, settings)}
    ours = ("(", "-name", f"{PREFIX}*.{_TAKEN}", "-o", "-name", f"{PREFIX}*.{_GOING_BACK}", ")")
    names = run(host, ("find", "-H", cluster, "-maxdepth", "1", *ours, "-printf", "%f\n")).stdout.splitlines()
    if old := [name for name in names if name.rpartition(".")[0] not in kept]:
        run(host, ("rm", "-f", "--", *(f"{cluster}/{name}" for name in old)))


def _note(way: Restorable, kind: str) -> str:
    return f"{way.server.cluster}/{way.snapshot.partition('@')[2]}.{kind}"
