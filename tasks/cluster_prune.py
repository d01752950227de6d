"""Let the snapshots of whole clusters go that no schema change goes back through any more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rules.cluster_loss import expired_ways_back
from rules.database import Database
from tasks import zfs as snapshots
from tasks.cluster_files import Restorable, forget_old_snapshots
from tasks.settings import Settings


def prune_cluster_snapshots(
    database: Database, *, keep: Iterable[str], now: datetime, keep_s: float, settings: Settings
) -> tuple[str, ...]:
    """Destroy the snapshots that no schema change goes back through any more; return their names.

    Repeating it is harmless. Held and cloned ones stay, and so does whatever is not named as ours.

    Args:
        database: which; without a dataset nothing is done.
        keep: dataset@label of the snapshots that deployments may still go back through, however old.
        now: the time.
        keep_s: seconds for which all others are kept.
        settings: for how long a command may take.

    Raises:
        CommandError: one could not be destroyed (the others before it are), or its note not be removed.
    """
    if database.zfs is None:
        return ()
    stored = snapshots.stored(database.zfs, settings=settings)
    old = expired_ways_back(stored, keep=frozenset(keep), now=now, keep_s=keep_s)
    removed = snapshots.destroy(database.zfs, old, settings=settings)
    if removed:
        forget_old_snapshots(Restorable.of(database, removed[0]), settings=settings)
    return removed
