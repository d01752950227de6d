"""What is left to do once the undo of a deployment is disarmed: remove what was kept for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, assert_never

from rules.content_actions import UnpinOld
from rules.database_plan import DropOldIndex
from rules.database_undo import RestoreSnapshot
from rules.entries import Opened
from rules.errors import DeployError, WorldMovedError
from rules.journal import JournalView
from rules.nixos_actions import ReleaseRoots
from rules.plan import Finish
from tasks.cluster_prune import prune_cluster_snapshots
from tasks.ipfs_content import unpin_old
from tasks.journal import JournalFile
from tasks.known import readable_journals
from tasks.nixos_roots import drop_roots
from tasks.rehearsal import remove_rehearsals
from tasks.settings import Settings
from tasks.vector_index import drop_old_index

log = logging.getLogger(__name__)
_FINISHED = "finished"
#: Its undo is disarmed for ever, and what was kept for it is in nobody's way back.
_DISARMED = frozenset({"completed", "superseded"})
#: Nothing leads back any more, or all of it has.
_ENDED = frozenset({*_DISARMED, "rolled_back", "blocked", "aborted"})


class _Armed(NamedTuple):
    """What deployments lead back to that are under way, or can still be taken back."""

    targets: frozenset[str]
    kept: frozenset[str]
    databases: frozenset[str]  # that go back as a whole, with all that their rows refer to

    def needs(self, view: JournalView) -> bool:
        """Return whether what a deployment has kept is part of a state that one of them returns to."""
        opened = view.opened
        return (
            opened.target in self.targets
            or not self.kept.isdisjoint(_kept_by(view))
            or (opened.content is not None and opened.changed_database.name in self.databases)
        )


def finish_due(settings: Settings, *, again: bool = False) -> tuple[str, ...]:
    """Remove what deployments whose undo is disarmed have kept, and return what that was.

    Repeating it is harmless; what does not work is logged and tried again the next time. As long as a later
    change of the same target can be taken back it waits: what was kept is part of the state that one goes
    back to.

    Args:
        settings: of this host.
        again: look also at indexes whose deployment is finished already: a way back through a snapshot of
            the whole cluster brings back what had been removed.
    """
    removed: list[str] = []
    known = tuple(readable_journals(settings))
    armed = _armed(tuple(view for _, view in known))
    for journal, view in known:
        if view.state not in _DISARMED or not view.plan or not view.plan.finish or armed.needs(view):
            continue
        comes_back = again and any(isinstance(kept, DropOldIndex) for kept in view.plan.finish)
        if comes_back or not (journal.directory / _FINISHED).exists():
            removed += _finish(journal, view, settings)
    return tuple(removed)


def prune_ways_back(settings: Settings) -> tuple[str, ...]:
    """Let the snapshots go that schema changes of this host went or could go back through; return which.

    They are kept as long as their environment keeps backups, and as long as their deployment can be taken
    back. What killed rehearsals have left goes too. What does not work is logged and tried again later.
    """
    views = tuple(view for _, view in readable_journals(settings))
    needed = {undo.snapshot for view in views if view.state not in _ENDED for undo in _snapshots(view)}
    newest = {
        view.opened.database.name: view.opened
        for view in sorted(views, key=lambda view: view.opened.at)
        if view.opened.database
    }
    gone: list[str] = []
    for opened in newest.values():
        gone += _pruned(opened, needed, settings)
    return tuple(gone)


def _pruned(opened: Opened, needed: set[str], settings: Settings) -> tuple[str, ...]:
    database, keep_s = opened.database, opened.environment.backup_keep_s
    if database is None:
        return ()
    try:
        remove_rehearsals(database, settings=settings)
        return prune_cluster_snapshots(
            database, keep=needed, now=datetime.now(UTC), keep_s=keep_s, settings=settings
        )
    except DeployError as error:
        log.warning("snapshots of %s are pruned later: %s", database.name, error)
        return ()


def _snapshots(view: JournalView) -> tuple[RestoreSnapshot, ...]:
    return tuple(i.undo for i in view.intents if isinstance(i.undo, RestoreSnapshot))


def _armed(views: tuple[JournalView, ...]) -> _Armed:
    continued = {view.opened.continues for view in views}
    armed = [
        view
        for view in views
        if not view.is_terminal
        or (view.state == "rollback_failed" and view.opened.deployment not in continued)
    ]
    return _Armed(
        targets=frozenset(view.opened.target for view in armed),
        kept=frozenset(name for view in armed for name in _kept_by(view)),
        databases=frozenset(view.opened.changed_database.name for view in armed if _snapshots(view)),
    )


def _kept_by(view: JournalView) -> tuple[str, ...]:
    return tuple(_name(view, kept) for kept in view.plan.finish) if view.plan else ()


def _name(view: JournalView, kept: Finish) -> str:
    match kept:
        case DropOldIndex():
            return kept.index
        case ReleaseRoots():
            return f"{kept.instance}: systems kept for {view.opened.deployment}"
        case UnpinOld():
            return f"{kept.node}: {', '.join(kept.cids)}"
        case unknown:
            assert_never(unknown)


def _finish(journal: JournalFile, view: JournalView, settings: Settings) -> list[str]:
    removed: list[str] = []
    if view.plan is None:
        return removed

    def heed() -> None:
        """Leave it to a change that has begun since the journals were read."""
        if _armed(tuple(other for _, other in readable_journals(settings))).needs(view):
            raise WorldMovedError(f"a change of {view.opened.target} has begun, and may return to it")

    for kept in view.plan.finish:  # one host that is gone for ever keeps no other waiting
        try:
            heed()
            _let_go(view.opened, kept, heed=heed)
        except (DeployError, OSError) as error:
            log.warning("what %s kept is still there and is removed later: %s", view.opened.deployment, error)
        else:
            log.info("%s: kept until now, and gone: %s", view.opened.deployment, _name(view, kept))
            removed.append(_name(view, kept))
    if len(removed) == len(view.plan.finish):
        _note_finished(journal)
    return removed


def _let_go(opened: Opened, kept: Finish, *, heed: Callable[[], None]) -> None:
    match kept:
        case DropOldIndex():
            drop_old_index(opened.changed_database, kept, deployment=opened.deployment, heed=heed)
        case ReleaseRoots():
            drop_roots(opened.fleet.instance(kept.instance), deployment=opened.deployment)
        case UnpinOld():
            unpin_old(opened.changed_content, opened.changed_database, kept, deployment=opened.deployment)
        case unknown:
            assert_never(unknown)


def _note_finished(journal: JournalFile) -> None:
    """Have it not looked at each minute; on a full disk it is, and whoever recovers goes on."""
    try:
        (journal.directory / _FINISHED).touch()
    except OSError as error:
        log.warning("what %s kept is gone, and looked for again later: %s", journal.deployment, error)
