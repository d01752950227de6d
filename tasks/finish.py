"""What is left to do once the undo of a deployment is disarmed: remove what was kept for it."""

from __future__ import annotations

import logging

from rules.errors import DeployError
from rules.journal import JournalView
from tasks.journal import JournalFile
from tasks.known import readable_journals
from tasks.settings import Settings
from tasks.vector_index import drop_old_index

log = logging.getLogger(__name__)
_FINISHED = "finished"
#: Its undo is disarmed for ever, and what was kept for it is in nobody's way back.
_DISARMED = frozenset({"completed", "superseded"})


def finish_due(settings: Settings, *, again: bool = False) -> tuple[str, ...]:
    """Remove what deployments whose undo is disarmed have kept, and return what that was.

    Repeating it is harmless; what does not work is logged and tried again the next time.

    Args:
        settings: of this host.
        again: look also at those that are finished already: a way back through a snapshot of the whole
            cluster brings back what had been removed.
    """
    removed: list[str] = []
    for journal, view in readable_journals(settings):
        if view.state not in _DISARMED or view.plan is None or not view.plan.finish:
            continue
        if again or not (journal.directory / _FINISHED).exists():
            removed += _finish(journal, view)
    return tuple(removed)


def _finish(journal: JournalFile, view: JournalView) -> list[str]:
    database, plan = view.opened.database, view.plan
    if database is None or plan is None:
        return []
    try:
        for old in plan.finish:
            drop_old_index(database, old, deployment=view.opened.deployment)
            log.info("%s: index %s, kept until now, is gone", view.opened.deployment, old.index)
    except DeployError as error:
        log.warning("what %s kept is still there and is removed later: %s", view.opened.deployment, error)
        return []
    (journal.directory / _FINISHED).touch()
    return [old.index for old in plan.finish]
