"""A whole cluster's ZFS snapshot, what going back to it would lose, and the way back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rules.backup import PREFIX, BackupTaken
from rules.cluster_loss import ClusterLoss, LossNotAcceptedError, WalEnd
from rules.database import Database
from rules.database_undo import RestoreSnapshot
from rules.errors import CommandError, DeployError, StepFailedError, UndoFailedError
from tasks import cluster_files, wal
from tasks import zfs as snapshots
from tasks.cluster_files import Restorable, cluster_parts
from tasks.cluster_measure import files, later, measured, snapshots_end, taken
from tasks.cluster_server import comes_up, is_stopped, start_server, stop_server
from tasks.migrate import is_applied
from tasks.postgres import DatabaseUnreachableError, connection, end_sessions, version_rows
from tasks.settings import Settings
from tasks.zfs_rollback import roll_back_dataset

log = logging.getLogger(__name__)

_IDENTITY = "SELECT system_identifier::text, current_setting('fsync') FROM pg_control_system()"


def take_cluster_snapshot(database: Database, snapshot: str, *, settings: Settings) -> BackupTaken:
    """Take the snapshot, or find the one that was taken already; return it.

    It is noted in the cluster's directory that it was taken, which a way back undoes with all the rest: so
    it can always be told whether the cluster is from before or from after the snapshot.

    Args:
        database: which.
        snapshot: `dataset@sovereign-…`, a name that only this deployment uses.
        settings: for how long a command may take.

    Raises:
        StepFailedError: it would not hold all of the cluster, or of another one; nothing was changed.
        CommandError: it could not be taken; nothing was changed.
        DatabaseError: the server does not answer, or not to us; nothing was changed.
    """
    way = Restorable.of(database, snapshot)
    deployment = _deployment(way)
    cluster_parts(way, settings=settings)
    _refuse_another_cluster(way, deployment, settings)
    if noted := cluster_files.noted_snapshot(way):
        if fault := snapshots.identity_fault(way.zfs, noted, settings=settings):
            raise StepFailedError(
                f"{fault}. A snapshot that is taken now may hold the change already: nothing was changed. "
                "Start a new deployment."
            )
        return noted
    source = f"sovereign-database/{database.name}"
    new = snapshots.take(way.zfs, source, deployment=deployment, settings=settings)
    cluster_files.note_snapshot(way, new)
    cluster_files.forget_old_snapshots(way, settings=settings)
    return new


def cluster_loss(database: Database, snapshot: str, *, settings: Settings) -> ClusterLoss:
    """Return what bringing the cluster back to the snapshot would lose now; exact if its server is stopped.

    Whether there is anything to bring back is not asked: see `loss_to_accept`.

    Raises:
        UndoFailedError: there is no such snapshot.
        CommandError: the dataset cannot be read.
    """
    way = Restorable.of(database, snapshot)
    return measured(way, snapshots_end(way, settings=settings), settings=settings)


def loss_to_accept(
    database: Database, step: RestoreSnapshot, *, deployment: str, settings: Settings
) -> ClusterLoss | None:
    """Return what this way back would lose now, also where newer changes have to be taken back before it.

    Nothing is changed but that sessions of the deployment are ended, and the dataset is mounted where it is
    not. A server that does not answer is not started: then it is measured all the same.

    None: it has nothing to bring back, or it is under way already, decided on and with the server stopped.

    Raises:
        UndoFailedError: there is no such snapshot.
        CommandError: the host or the dataset cannot be read, or the dataset not be mounted.
        DatabaseError: the server refuses to be asked.
    """
    way = Restorable.of(database, step.snapshot)
    cluster_files.ensure_mounted(way.zfs, settings=settings)  # what is noted lies in it
    if _is_under_way(way):
        return None
    try:
        may_be_needed = _may_be_needed(way, step, deployment, settings)
    except DatabaseUnreachableError:
        may_be_needed = cluster_files.noted_snapshot(way) is not None
    return cluster_loss(database, step.snapshot, settings=settings) if may_be_needed else None


def restore_cluster(
    database: Database,
    step: RestoreSnapshot,
    *,
    deployment: str,
    settings: Settings,
    accept_loss: bool,
    tell: Callable[[ClusterLoss], None],
) -> None:
    """Bring the whole cluster back to the snapshot, if the migration is applied or may be half applied.

    Repeating it changes nothing, and a try that was killed is taken up where it ended: as long as the
    server is stopped for it, without asking again. Later snapshots of the dataset are destroyed.

    Args:
        database: which.
        step: the snapshot, and the migration that it is from before of.
        deployment: whose sessions are ended first, and who asks.
        settings: for how long a command may take.
        accept_loss: a person accepts whatever is lost; otherwise up to `step.max_loss_s` is.
        tell: is given the exact loss, when the server is stopped and before anything is lost.

    Raises:
        LossNotAcceptedError: more would be lost; nothing was changed.
        UndoFailedError: it did not work; says what was left, and what to do.
        CommandError: the host or the dataset cannot be read, or the service not be stopped.
        DatabaseError: the server refuses to be asked.
    """
    way = Restorable.of(database, step.snapshot)
    cluster_files.ensure_mounted(way.zfs, settings=settings)
    is_decided = _is_under_way(way)
    if not is_decided and not _has_to_go_back(way, step, deployment, settings, may_be_deaf=accept_loss):
        cluster_files.forget_going_back(way)
        return
    end = snapshots_end(way, settings=settings)  # before anybody is cut off
    if not is_decided:
        _refuse_what_stands_in_the_way(way, settings)
        if not accept_loss:
            _refuse_more_than(step.max_loss_s, way, end, settings)
        cluster_files.note_going_back(way)
    stop_server(way, settings=settings)
    try:
        _go_back(way, end, settings, tell)
    except DeployError as error:
        raise UndoFailedError(f"{error} {_start_again(way, settings)}") from error
    cluster_files.ensure_mounted(way.zfs, settings=settings)
    _prove_back(way, step, deployment, settings)


def _deployment(way: Restorable) -> str:
    label = way.snapshot.partition("@")[2]
    if not label.startswith(PREFIX):
        raise StepFailedError(f"{way.snapshot}: ours are named {PREFIX}…; nothing was changed")
    return label.removeprefix(PREFIX)


def _refuse_another_cluster(way: Restorable, deployment: str, settings: Settings) -> None:
    """Refuse a snapshot that would not hold what the server that answers has written."""
    lies = wal.control(files(way), timeout_s=settings.command_timeout_s).system
    with connection(way.database, deployment=deployment, autocommit=True, read_only=True) as session:
        answers, fsync = session.execute(_IDENTITY).fetchone() or ("", "")
    if answers != lies:
        raise StepFailedError(
            f"The server that answers for {way.database.name} is cluster {answers}, but in "
            f"{way.server.cluster} lies cluster {lies}: nothing was changed. Correct the block."
        )
    if fsync != "on":
        raise StepFailedError(
            f"{way.database.name} runs with fsync off: a snapshot of it may not start. Nothing was changed."
        )


# --- what is to be done ----------------------------------------------------------------------------


def _is_under_way(way: Restorable) -> bool:
    """Return whether a try that was killed had decided, and stopped the server, which has not run since."""
    return cluster_files.is_going_back(way) and is_stopped(way)


def _has_to_go_back(
    way: Restorable, step: RestoreSnapshot, deployment: str, settings: Settings, *, may_be_deaf: bool
) -> bool:
    """Return whether there is something to bring back; the server is started if it does not run.

    One that cannot be started may be what the migration has done. One that runs and does not answer, for
    instance because it has no connection left, may be as it should be: only a person gives it up.
    """
    if comes_up(way, deployment=deployment, settings=settings):
        return _is_needed(way, step, deployment)
    if not cluster_files.noted_snapshot(way):
        raise UndoFailedError(
            f"{way.database.name} does not come up, and its files are not from after {way.snapshot}: there "
            f"is nothing to bring back. Look at its log, and start it on {way.server.host.name}."
        )
    if not may_be_deaf and not is_stopped(way):
        raise UndoFailedError(
            f"{way.database.name} runs, but does not answer within {way.server.start_timeout_s:g} s, so that "
            f"it is not known whether {step.migration.revision} is applied; nothing was changed. Make it "
            "answer and roll back again, or accept the loss of what was written since the snapshot "
            "(accept_loss)."
        )
    return True


def _is_needed(way: Restorable, step: RestoreSnapshot, deployment: str) -> bool:
    """Ask the server.

    Raises:
        DatabaseUnreachableError: it does not answer.
    """
    # what a killed deployer left at work could still commit after it was asked
    end_sessions(way.database, deployment=deployment)
    if is_applied(way.database, step.migration, step.version_table, deployment=deployment):
        return True
    may_be_half_applied = not step.migration.is_transactional
    return may_be_half_applied and cluster_files.noted_snapshot(way) is not None


def _may_be_needed(way: Restorable, step: RestoreSnapshot, deployment: str, settings: Settings) -> bool:
    """Return whether there is something to bring back, or may be as soon as newer changes are taken back.

    Alembic's version table holds the newest revision alone: that a migration is not there says nothing yet.

    Raises:
        DatabaseUnreachableError: the server does not answer.
    """
    end_sessions(way.database, deployment=deployment)
    rows = version_rows(way.database, step.version_table, deployment=deployment) or ()
    if step.migration.revision in rows:
        return True
    is_noted = cluster_files.noted_snapshot(way) is not None
    # the note goes with the way back, or with the snapshot: somebody may migrate after either
    if not is_noted and way.snapshot in snapshots.snapshots(way.zfs, settings):
        return False
    may_be_half_applied = is_noted and not step.migration.is_transactional
    return may_be_half_applied or rows != step.revisions


def _refuse_what_stands_in_the_way(way: Restorable, settings: Settings) -> None:
    """Look for what would forbid the rollback, before anybody is cut off for it."""
    if fault := snapshots.identity_fault(way.zfs, taken(way, settings=settings), settings=settings):
        raise UndoFailedError(f"{fault}; nothing was changed. Bring the database back by hand.")
    try:
        snapshots.remove_leftovers(way.zfs, settings=settings)
    except CommandError as error:
        raise UndoFailedError(
            f"A snapshot of {way.zfs.dataset} is still being read, by a backup for instance: {error}. "
            "Nothing was changed. Let that end, or end it, then roll back again."
        ) from error
    if held := [each.identity for each in later(way, settings=settings) if each.is_held]:
        raise UndoFailedError(
            f"{', '.join(held)}: taken after {way.snapshot}, and held or cloned, so that going back cannot "
            "destroy them as it has to. Nothing was changed. Release them (zfs release), or destroy or "
            "promote their clones, then roll back again."
        )


def _refuse_more_than(limit_s: float, way: Restorable, end: WalEnd | str, settings: Settings) -> None:
    loss = measured(way, end, settings=settings)
    if loss.lost_s > limit_s:
        cluster_files.forget_going_back(way)
        raise LossNotAcceptedError(
            f"{loss.in_words} That is more than the {limit_s:g} s that may be lost without asking: nothing "
            "was changed. Accept the loss (accept_loss) and roll back again, or take the migration back by "
            "hand."
        )


# --- doing it --------------------------------------------------------------------------------------


def _go_back(
    way: Restorable, end: WalEnd | str, settings: Settings, tell: Callable[[ClusterLoss], None]
) -> None:
    loss = measured(way, end, settings=settings)
    log.warning("%s", loss.in_words)
    tell(loss)
    roll_back_dataset(
        way.zfs,
        taken(way, settings=settings),
        proven_stopped=lambda: is_stopped(way),
        settings=settings,
        # the hourly snapshot that ran meanwhile must not forbid it: the loss names those that go
        discard_newer=True,
    )


def _start_again(way: Restorable, settings: Settings) -> str:
    """Start the server as it is, since it could not be brought back; return that in words."""
    try:
        start_server(way, settings=settings)
        cluster_files.forget_going_back(way)
    except DeployError as error:
        return f"The server is stopped, and does not start again: {error}"
    return "The server was started again as it was."


def _prove_back(way: Restorable, step: RestoreSnapshot, deployment: str, settings: Settings) -> None:
    if not comes_up(way, deployment=deployment, settings=settings):
        raise UndoFailedError(
            f"{way.server.cluster} is back at {way.snapshot}, but its server does not answer within "
            f"{way.server.start_timeout_s:g} s. Look at its log, and start it."
        )
    if is_applied(way.database, step.migration, step.version_table, deployment=deployment):
        raise UndoFailedError(
            f"{way.server.cluster} is back at {way.snapshot}, but the server that answers still has "
            f"{step.migration.revision} applied: is it the server of this cluster? Compare its "
            "data_directory with the block's."
        )
