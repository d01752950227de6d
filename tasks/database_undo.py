"""Take one step of a change of a database back: from the journal's data alone, with no API."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import assert_never

from rules.change import SchemaChange
from rules.cluster_loss import ClusterLoss, LossNotAcceptedError
from rules.database_undo import DatabaseUndo, RemoveIndex, RestoreIndexNames, RestoreSnapshot, RevertMigration
from rules.journal import JournalView
from rules.schema_plan import serves_all
from tasks.database_snapshot import loss_to_accept, restore_cluster
from tasks.migrate import is_applied, revert_migration
from tasks.postgres import DatabaseUnreachableError
from tasks.settings import Settings
from tasks.sql_statements import destroys_data
from tasks.stranding import refuse_to_strand
from tasks.vector_index import remove_index, restore_index_names


def take_database_back(
    view: JournalView,
    step: DatabaseUndo,
    *,
    settings: Settings,
    accept_loss: bool,
    tell: Callable[[str, str], None],
) -> None:
    """Bring about the state of the database that `step` names. Repeating it changes nothing.

    Args:
        view: the deployment's journal.
        step: what to take back.
        settings: of this host.
        accept_loss: a person has accepted what a way back through a snapshot loses.
        tell: keeps a note, of a kind and in words, before what it says is done.

    Raises:
        DeployError: it did not work; the message says how far it came.
    """
    database, deployment = view.opened.changed_database, view.opened.deployment
    match step:
        case RevertMigration():
            _refuse_to_strand(view, step)
            revert_migration(database, step, deployment=deployment)
        case RestoreSnapshot():
            _refuse_to_strand(view, step)

            def tell_loss(loss: ClusterLoss) -> None:
                tell("loss", loss.in_words)

            restore_cluster(
                database,
                step,
                deployment=deployment,
                settings=settings,
                accept_loss=accept_loss,
                tell=tell_loss,
            )
        case RemoveIndex():
            remove_index(database, step, deployment=deployment)
        case RestoreIndexNames():
            restore_index_names(database, step, deployment=deployment)
        case unknown:
            assert_never(unknown)


def _refuse_to_strand(view: JournalView, step: RevertMigration | RestoreSnapshot) -> None:
    """Refuse to take a migration back that is applied and that an application needs as it runs now.

    Raises:
        InvalidRequestError: says which, and what to do first.
    """
    change, opened = view.plan.change if view.plan else None, view.opened
    if not isinstance(change, SchemaChange) or serves_all(change.serves, back=True):
        return
    try:
        applied = is_applied(
            opened.changed_database, step.migration, step.version_table, deployment=opened.deployment
        )
    except DatabaseUnreachableError:
        return  # stopped by an earlier try, which had asked; or nobody can work with it anyway
    if applied:
        refuse_to_strand(change, opened, back=True)


def refuse_way_back(view: JournalView, *, settings: Settings, accept_loss: bool) -> None:
    """Refuse to begin a way back that strands an application, or loses more than its plan allows.

    Raises:
        InvalidRequestError: an application that runs cannot work with the old schema; nothing was changed.
        LossNotAcceptedError: says what would be lost, which nobody has accepted; nothing was changed.
    """
    change = view.plan.change if view.plan else None
    if not isinstance(change, SchemaChange):
        return
    for step in (intent.undo for intent in view.to_undo):
        if isinstance(step, RevertMigration | RestoreSnapshot):
            _refuse_to_strand(view, step)
    refuse_loss(view, settings=settings, accept_loss=accept_loss)


def refuse_loss(view: JournalView, *, settings: Settings, accept_loss: bool) -> None:
    """Refuse to begin a way back that loses more than its plan allows without asking.

    Raises:
        LossNotAcceptedError: says what would be lost, which nobody has accepted; nothing was changed.
    """
    change = view.plan.change if view.plan else None
    if accept_loss or not isinstance(change, SchemaChange):
        return
    loss = loss_through_snapshot(view, settings=settings)
    words = loss.in_words if loss and loss.lost_s > change.max_loss_s else ""
    if not words and promoted_for_s(view) > change.max_loss_s:
        words = loss_by_way_down(view)
    if words:
        raise LossNotAcceptedError(
            f"{view.opened.deployment} was not taken back, nothing was changed: {words} That is more than "
            f"the {change.max_loss_s:g} s that may be lost without asking. If that is what you want, run "
            "roll-back with accept_loss, or repair the data forward."
        )


def loss_by_way_down(view: JournalView) -> str:
    """Return in words what the ways down take away that users may have written; empty: nothing."""
    taken = [
        " ".join(statement.split())
        for intent in view.to_undo
        if isinstance(intent.undo, RevertMigration)
        for statement in intent.undo.migration.down or ()
        if destroys_data(statement)
    ]
    if not taken:
        return ""
    hours = promoted_for_s(view) / 3600
    return f"The way down takes away what was written there in {hours:.1f} hours: {'; '.join(taken)}."


def promoted_for_s(view: JournalView) -> float:
    """Return for how many seconds users have had the change; 0: they have not."""
    at = view.moved_at("promoted")
    return (datetime.now(UTC) - at).total_seconds() if at else 0.0


def loss_through_snapshot(view: JournalView, *, settings: Settings) -> ClusterLoss | None:
    """Return what taking a deployment back would lose now; None: its way back leads through no snapshot.

    Raises:
        DeployError: it cannot be measured.
    """
    for step in (intent.undo for intent in view.to_undo):
        if isinstance(step, RestoreSnapshot):
            loss = loss_to_accept(
                view.opened.changed_database, step, deployment=view.opened.deployment, settings=settings
            )
            if loss:
                return loss
    return None
