"""Where copies to rehearse on lie, whose turn it is, and how all of it is removed, whoever left it."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rules.backup import ZfsDataset
from rules.database import Database
from rules.errors import CommandError, DeployError
from tasks import zfs
from tasks.settings import Settings
from tasks.throwaway_server import PRIVATE_PREFIX, end_servers_in

#: What all that we make for a rehearsal is called by.
MARK = "sovereign_rehearsal"

_POLL_S = 0.2
_PATIENCE_S = 5.0


def remove_rehearsals(database: Database, *, settings: Settings) -> None:
    """Remove what a killed rehearsal of this database left: server, clone, snapshot and files.

    One that goes on is left alone.

    Raises:
        DeployError: something cannot be removed; it holds space, and is tried again by the next rehearsal.
    """
    with turn(database, settings, patience_s=0) as is_ours:
        if is_ours:
            remove_left(database, settings)


def place(settings: Settings) -> Path:
    """Return where copies lie: beside the journal, which has a disk of some size."""
    return settings.journal_dir.resolve().parent / "rehearsals"


@contextmanager
def turn(database: Database, settings: Settings, *, patience_s: float) -> Iterator[bool]:
    """Give whether no other process of this host is at it; none is while the block lasts."""
    directory = place(settings)
    directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    deadline = time.monotonic() + patience_s
    with (directory / f"{database.name}.lock").open("w") as lock:  # freed by the kernel when we are killed
        while not (is_ours := _has_locked(lock.fileno())) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield is_ours


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_left(database: Database, settings: Settings) -> None:
    """Remove what rehearsals of this database left; for whom has the turn.

    Raises:
        DeployError: something cannot be removed.
    """
    left = sorted(place(settings).glob(f"{database.name}_*"))
    for directory in left:
        end_servers_in(directory)
    if dataset := dataset_here(database):
        clones, labels = clone_prefix(database, dataset), f"{dataset.dataset}@{label_prefix(database)}"
        for clone, _ in zfs.clones(dataset, settings):
            if clone.startswith(clones):
                destroy(dataset, clone, settings)
        for snapshot in zfs.snapshots(dataset, settings):
            if snapshot.startswith(labels):
                destroy(dataset, snapshot, settings)
    for directory in left:
        remove_directory(directory)


def remove_directory(directory: Path) -> None:
    """Remove a copy's directory, and the one of its server's socket that it names.

    Raises:
        DeployError: a clone is still mounted there, and nothing of it was removed; or a file resists.
    """
    private = directory / "private"
    if private.is_symlink() and private.readlink().name.startswith(PRIVATE_PREFIX):
        shutil.rmtree(private.readlink(), ignore_errors=True)
    if (directory / "data").is_mount():
        raise DeployError(f"{directory}/data is still mounted: destroy that clone, then remove {directory}")
    deadline = time.monotonic() + _PATIENCE_S
    while directory.exists():
        try:
            shutil.rmtree(directory)
        except OSError as error:  # whoever is just being ended there may remove files too
            if time.monotonic() > deadline:
                raise DeployError(f"{directory} cannot be removed: {error}. Remove it by hand.") from error
            time.sleep(_POLL_S)


def dataset_here(database: Database) -> ZfsDataset | None:
    """Return the dataset that holds the cluster, if it is one of this machine."""
    is_here = database.server and not database.server.host.address
    return database.zfs if is_here else None


def label_prefix(database: Database) -> str:
    """Return how our snapshots' labels begin, of this database alone: its name has no underscore."""
    return f"{MARK}_{database.name}_"


def clone_prefix(database: Database, dataset: ZfsDataset) -> str:
    """Return how our clones' names begin: beside the dataset in its pool, and of this database alone."""
    short = dataset.reading_prefix.removeprefix(f"{dataset.pool}/sovereign_read_")
    return f"{dataset.pool}/{MARK}_{short}{database.name}_"


def destroy(dataset: ZfsDataset, name: str, settings: Settings) -> None:
    """Destroy a clone or snapshot of ours; zfs says busy for a moment after files were closed.

    Raises:
        CommandError: it is still there after 15 seconds.
    """
    deadline = time.monotonic() + zfs.BUSY_PATIENCE_S
    while True:
        finished = zfs.command(dataset, ("destroy", name), settings, check=False)
        if finished.returncode == 0 or "does not exist" in finished.stderr or "not found" in finished.stderr:
            return
        if time.monotonic() >= deadline:
            raise CommandError(finished.argv, dataset.host.name, finished.returncode, finished.output)
        time.sleep(zfs.PAUSE_S)
