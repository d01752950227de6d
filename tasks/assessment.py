"""Read what taking a promoted deployment back would mean. Nothing is touched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from rules.backup import Loss
from rules.baseline import Comparison, compare
from rules.errors import DeployError
from rules.journal import JournalView
from rules.rollback_page import Assessment
from tasks.backup import loss_of
from tasks.baseline import measure_baseline
from tasks.database_undo import (
    loss_by_way_down,
    loss_through_snapshot,
    promoted_for_s,
    refuse_way_back,
)
from tasks.observed import differences_from_promised
from tasks.services import Services
from tasks.settings import Settings

log = logging.getLogger(__name__)


def assess(view: JournalView, services: Services, settings: Settings) -> Assessment:
    """Return what a deployment has meant for users so far, and what taking it back would do and lose."""
    plan, opened, now = view.plan, view.opened, datetime.now(UTC)
    promoted_at = view.moved_at("promoted")
    served = sorted(
        {state.release for state in plan.before.instances.values() if state.release} if plan else ()
    )
    return Assessment(
        deployment=opened.deployment,
        target=opened.target,
        release=plan.change.release if plan else "",
        back_to=", ".join(served) or "nothing",
        promoted_for_s=(now - promoted_at).total_seconds() if promoted_at else 0.0,
        comparisons=compared_now(view, services),
        losses=_losses(view, services, settings, now=now),
        steps=tuple(intent.undo.describe() for intent in view.to_undo),
        obstacles=_obstacles(view, settings),
    )


def compared_now(view: JournalView, services: Services) -> tuple[Comparison, ...]:
    """Return how users and hosts are doing now, against the baseline of before the change."""
    before = view.baseline("before")
    if before is None:
        return ()
    metrics = view.opened.environment.metrics
    now = measure_baseline(
        view.opened.fleet,
        database=view.opened.database,
        window_s=before.window_s,
        prometheus=services.prometheus,
        metrics=metrics,
    )
    return compare(before, now, metrics)


def _losses(view: JournalView, services: Services, settings: Settings, *, now: datetime) -> tuple[Loss, ...]:
    losses = []
    for backed_up in view.backups:
        backup = services.backups.get(backed_up.taken.source)
        if backup is None:
            continue
        try:
            losses.append(loss_of(backup, backed_up.taken, now=now, settings=settings))
        except DeployError as error:
            log.warning("what going back to %s would lose is not known: %s", backed_up.taken.identity, error)
    return (*losses, *_losses_in_database(view, settings))


def _losses_in_database(view: JournalView, settings: Settings) -> Iterator[Loss]:
    if view.opened.database is None:
        return
    source = f"sovereign-database/{view.opened.database.name}"
    if cluster := loss_through_snapshot(view, settings=settings):
        kept = cluster.model_dump(include={"lost_s", "lost_bytes", "in_words"})
        yield Loss(source=source, **kept)
    if words := loss_by_way_down(view):
        yield Loss(source=source, lost_s=promoted_for_s(view), lost_bytes=None, in_words=words)


def _obstacles(view: JournalView, settings: Settings) -> tuple[str, ...]:
    """Return why it would be refused: the system is not as it was promoted, or somebody needs it as it is."""
    if view.plan is None:
        return ()
    moved = differences_from_promised(view.opened, view.plan, touched=set())
    try:
        refuse_way_back(view, settings=settings, accept_loss=True)
    except DeployError as error:
        return (*moved, str(error))
    return moved
