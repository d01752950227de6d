"""Who gets the traffic at this moment of a deployment, as its journal tells it."""

from __future__ import annotations

from collections.abc import Iterator

from rules.entries import Intent, Undone
from rules.frozen import Frozen, Ratio
from rules.journal import JournalView
from rules.plan import Action, DrainServer, RejoinServer, SetTraffic
from rules.undo import RestoreServer, RestoreTraffic, UndoStep

_ALL = 10_000


class Split(Frozen):
    """`share` of the traffic goes to `right`, the rest to `left`; the sides keep their places."""

    left: str
    right: str
    share: Ratio


def split_of(journal: JournalView) -> Split | None:
    """Return the newest split; None: there is no plan yet, or no balancer."""
    before = journal.plan.before.traffic if journal.plan else None
    if before is None:
        return None
    now = before
    for change in _changes(journal):
        if isinstance(change, SetTraffic | RestoreTraffic):
            now = change.traffic
    share = now.canary_basis_points / _ALL
    is_switched = now.live != before.live
    return Split(left=before.live, right=before.candidate, share=1 - share if is_switched else share)


def taken_out(journal: JournalView) -> tuple[str, ...]:
    """Return the instances that this deployment has out of the balancer now, sorted."""
    out: set[str] = set()
    for change in _changes(journal):
        match change:
            case DrainServer():
                out.add(change.instance)
            case RejoinServer():
                out.discard(change.instance)
            case RestoreServer():
                (out.discard if change.admin == "ready" else out.add)(change.instance)
            case _:
                pass
    return tuple(sorted(out))


def _changes(journal: JournalView) -> Iterator[Action | UndoStep]:
    """Yield what was done, oldest first; what is being done counts: its effect takes no time to be seen."""
    actions = {step.number: step.action for step in journal.plan.steps} if journal.plan else {}
    undos = {intent.number: intent.undo for intent in journal.intents}
    for entry in journal.entries:
        match entry:
            case Intent() if entry.number in actions:
                yield actions[entry.number]
            case Undone() if entry.number in undos:
                yield undos[entry.number]
            case _:
                pass
