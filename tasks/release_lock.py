"""Who may deploy to a target while a release of several components is under way: that release alone.

A release's own lock names the targets that it holds. A component's lock is free between the steps of its
release, so whoever has taken one asks here whether a release holds that target. Both sides write first and
look then: of two that begin at once at least one sees the other, and none slips past.
"""

from __future__ import annotations

from rules.continued import continued
from rules.entries import Opened
from rules.errors import LockHeldError
from rules.journal import JournalView
from tasks.lease import Owner, all_holdings, current_holding
from tasks.prefect_api import PrefectApi


def refuse_held(api: PrefectApi, opened: Opened) -> None:
    """Refuse a deployment whose targets another one has, a release or a component; ours is taken already.

    Args:
        api: Prefect's.
        opened: the deployment that has taken its own lock just now.

    Raises:
        LockHeldError: names who has which target; nothing was changed.
        ApiUnavailableError: the API does not answer.
    """
    wanted, ours = targets_of(opened), _ours(opened)
    for holding in all_holdings(api):
        held = wanted.intersection(holding.owner.holds)
        if held and ours.isdisjoint(continued(holding.owner.deployment)):
            raise _held(", ".join(sorted(held)), holding.owner)
    for target in opened.holds:
        now = current_holding(api, target)
        if now and now.owner.deployment != opened.deployment:
            raise _held(target, now.owner)


def targets_of(opened: Opened) -> frozenset[str]:
    """Return all targets that a deployment has while it runs."""
    return frozenset({opened.target, *opened.holds})


def is_in_the_way(view: JournalView, opened: Opened) -> bool:
    """Return whether a journal is that of another deployment, left half-way on one of our targets."""
    if not view.intents or view.state not in ("running", "rolling_back"):
        return False
    return view.opened.deployment not in _ours(opened) and not targets_of(view.opened).isdisjoint(
        targets_of(opened)
    )


def _ours(opened: Opened) -> frozenset[str]:
    """Return the deployments that have the same targets by right: itself, and the release it is part of."""
    return frozenset({*continued(opened.deployment), opened.part_of} - {""})


def _held(target: str, owner: Owner) -> LockHeldError:
    return LockHeldError(
        f"{target} is held by {owner.deployment} (flow run {owner.flow_run_id} on {owner.host} since "
        f"{owner.since:%Y-%m-%d %H:%M:%S} UTC). Nothing was changed. Wait for it, or roll it back; if its "
        "rollback failed, run roll-back for it once the cause is mended."
    )
