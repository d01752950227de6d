"""Who may take a deployment back, from outside its own process: hooks, the schedule, a person.

`recover` is idempotent and safe to call from several processes and hosts at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from rules.database_undo import RestoreSnapshot
from rules.entries import Locked, Moved, Noted, stamped
from rules.errors import ApiUnavailableError, DeployError, WorldMovedError
from rules.frozen import Frozen
from rules.journal import JournalView
from rules.release_states import armed_s, release_of
from tasks.again import last_try
from tasks.claim import claim, refuse_living, step_lock
from tasks.control import forget
from tasks.database_undo import refuse_way_back
from tasks.journal import JournalFile, Mirror, NoJournalError, journals, mirrored_lines
from tasks.known import api_if_any, journal_here
from tasks.lease import Holding, Lease, LeaseKeeper, all_holdings, current_holding
from tasks.monitoring import cancel_monitoring, schedule_monitoring
from tasks.observed import differences_from_promised
from tasks.postgres import DatabaseUnreachableError
from tasks.prefect_api import PrefectApi
from tasks.release import refuse_moved_release
from tasks.release_bake import cancel_after_bake, schedule_after_bake
from tasks.release_lock import refuse_held
from tasks.release_settle import follow, is_armed_release
from tasks.rollback import LOSS_ACCEPTED, Rollback
from tasks.settings import Settings

log = logging.getLogger(__name__)

#: Who asks: `dead` recovers only what nobody runs any more, `person` also takes back what was promoted.
Asker = Literal["dead", "person"]


class Recovered(Frozen):
    """What became of one deployment that was looked at."""

    deployment: str
    state: str
    reason: str = ""
    flow_run_id: str = ""
    acted: bool = False


def recover(
    deployment: str,
    *,
    cause: str,
    by: str,
    settings: Settings,
    asker: Asker = "dead",
    accept_loss: bool = False,
) -> JournalView:
    """Bring one deployment to a known good state, if nobody else is doing so.

    Args:
        deployment: its id.
        cause: why, in words, for the journal.
        by: who asks, for the journal.
        settings: of this host.
        asker: see `Asker`.
        accept_loss: a person has accepted what a way back through a snapshot loses, however much.

    Returns:
        The journal as it is afterwards. A deployment that has ended is returned untouched.

    Raises:
        StillRunningError: its process is alive.
        NoJournalError: neither this host nor the mirror knows it.
        FencedError: another process is at it.
        CutOffError: Prefect's API is away and this host alone may not decide.
        LossNotAcceptedError: more would be lost than may be without asking; nothing was changed.
    """
    with api_if_any(settings) as api:
        journal = journal_here(deployment, api, settings)
        view = journal.read()
        if _is_settled(view, asker):
            _clear_up(journal, view, api)
            return view
        refuse_living(journal, api, settings)
        with step_lock(journal, api, settings):
            view = journal.read()
            if view.is_terminal:
                return view
            if view.state == "promoted":
                _refuse_promoted(view, api, settings, accept_loss=accept_loss)
            return _recover_locked(
                journal, view, api=api, cause=cause, by=by, settings=settings, accept_loss=accept_loss
            )


def _refuse_promoted(
    view: JournalView, api: PrefectApi | None, settings: Settings, *, accept_loss: bool
) -> None:
    """Refuse to take back a promotion, before anything is changed, where that would go wrong."""
    if release_of(view):
        refuse_moved_release(view, api, settings, accept_loss=accept_loss)
        return
    _refuse_moved_world(view, accept_loss=accept_loss)
    refuse_way_back(view, settings=settings, accept_loss=accept_loss)


def _is_settled(view: JournalView, asker: Asker) -> bool:
    return view.is_terminal or (view.state == "promoted" and asker != "person")


def _recover_locked(
    journal: JournalFile,
    view: JournalView,
    *,
    api: PrefectApi | None,
    cause: str,
    by: str,
    settings: Settings,
    accept_loss: bool,
) -> JournalView:
    lease = claim(journal, view, api=api, settings=settings)
    if api and lease and view.state == "promoted":
        _refuse_held(view, lease, api)
    entries = list(view.entries)
    if lease:
        journal.append(stamped(Locked(token=lease.token), datetime.now(UTC)))
        entries = list(journal.read().entries)
    flow_run_id = view.opened.flow_run_id
    mirror = Mirror(api, journal.deployment, flow_run_id=flow_run_id, entries=entries) if api else None
    accept_loss = accept_loss or any(isinstance(e, Noted) and e.about == LOSS_ACCEPTED for e in view.entries)
    rollback = Rollback(
        journal, settings=settings, by=by, mirror=mirror, lease=lease, api=api, accept_loss=accept_loss
    )
    with _kept(api, lease, settings):
        after = rollback.run(cause)
    if api and lease and after.state != "rollback_failed":
        _release(lease, api)
    if api:
        _clear_words(journal.deployment, view, api)
    return after


def _refuse_held(view: JournalView, lease: Lease, api: PrefectApi) -> None:
    """Leave a promotion alone whose target a release has now, or the other way round: nothing was changed."""
    try:
        refuse_held(api, view.opened)
    except DeployError:
        _release(lease, api)
        raise


def _clear_words(deployment: str, view: JournalView, api: PrefectApi) -> None:
    """Remove what Prefect still has for a deployment that has ended: persons' words, runs that watch it."""
    try:
        with api.impatient():
            forget(api, deployment)
            if view.monitoring:
                cancel_monitoring(api, deployment)
            if release_of(view):
                cancel_after_bake(api, deployment)
    except ApiUnavailableError as error:
        log.warning("what was scheduled for %s is still there and will end by itself: %s", deployment, error)


def roll_back_by_person(
    deployment: str, *, reason: str, settings: Settings, accept_loss: bool = False, by: str = "person"
) -> JournalView:
    """Take a deployment back by a person's word, also one that was promoted or whose rollback failed.

    A failed rollback is repeated as a deployment of its own, which continues the failed one: what has
    ended stays in the books as it ended. Asked again, it returns how that one ended.

    Args:
        deployment: its id.
        reason: why, for the record.
        settings: of this host.
        accept_loss: see `recover`.
        by: whose word it is, for the journal: a person's, or that of the release it is part of.

    Raises:
        DeployError: see `recover`.
    """
    with api_if_any(settings) as api:
        deployment = last_try(deployment, api, settings)
    return recover(
        deployment, cause=reason, by=by, settings=settings, asker="person", accept_loss=accept_loss
    )


def recover_all(*, by: str, settings: Settings) -> tuple[Recovered, ...]:
    """Look at every open deployment that this host can know of, and recover those whose run is dead.

    Also ends the time in which a promoted one can be taken back.
    """
    names = dict.fromkeys(journal.deployment for journal in journals(settings.journal_dir))
    with api_if_any(settings) as api:
        held = {holding.owner.deployment: holding for holding in _holdings(api)}
        found = [
            _looked_at(name, held.get(name), by=by, settings=settings)
            for name in dict.fromkeys((*names, *held))
        ]
        for holding in held.values():
            _free_abandoned(holding, api, settings)
        found = [_settled(one, api, by=by, settings=settings) for one in found]
        if api:
            _watch_promoted(found, api, settings)
    return tuple(found)


def _watch_promoted(found: Iterable[Recovered], api: PrefectApi, settings: Settings) -> None:
    """Have promoted deployments watched: whoever promoted one may have died before that."""
    for one in found:
        journal = JournalFile(settings.journal_dir, one.deployment)
        if one.state != "promoted" or not journal.path.exists():
            continue
        if release_of(journal.read()):  # its components are watched
            schedule_after_bake(journal, api, settings)
        else:
            schedule_monitoring(journal, api, settings)


def _settled(one: Recovered, api: PrefectApi | None, *, by: str, settings: Settings) -> Recovered:
    """Have a promoted release follow its components: all of them stay, or all are taken back."""
    journal = JournalFile(settings.journal_dir, one.deployment)
    if one.state != "promoted" or not journal.path.exists():
        return one
    try:
        view = follow(journal, api, settings, by=by)
    except (DeployError, TimeoutError) as error:
        return one.model_copy(update={"reason": str(error)})
    except Exception as error:
        log.exception("what follows for %s from its components is not known", one.deployment)
        return one.model_copy(update={"reason": f"{type(error).__name__}: {error}"})
    is_new = view.state != one.state
    update = {"state": view.state, "reason": view.cause or view.reason, "acted": is_new}
    return one.model_copy(update=update)


def _holdings(api: PrefectApi | None) -> tuple[Holding, ...]:
    try:
        return all_holdings(api) if api else ()
    except ApiUnavailableError as error:
        log.warning("going by this host's journals alone: %s", error)
        return ()


def _looked_at(deployment: str, held: Holding | None, *, by: str, settings: Settings) -> Recovered:
    """Recover one deployment if need be; whatever is wrong with it must not keep the others waiting."""
    journal = JournalFile(settings.journal_dir, deployment)
    state = "unknown"
    try:
        if journal.path.exists():
            _complete_if_due(journal, settings)
            known = journal.read()
            state = known.state
            if held is None and _is_settled(known, "dead"):
                return Recovered(deployment=deployment, state=state, reason=known.reason)
        view = recover(deployment, cause="The process that ran it is gone.", by=by, settings=settings)
    except (DeployError, TimeoutError) as error:
        return Recovered(deployment=deployment, state=state, reason=str(error))
    except Exception as error:
        log.exception("%s could not be looked at", deployment)
        return Recovered(deployment=deployment, state=state, reason=f"{type(error).__name__}: {error}")
    was_left = held is not None and view.state != "rollback_failed" and not journal.owner_lives()
    return Recovered(
        deployment=deployment,
        state=view.state,
        reason=view.cause or view.reason,
        flow_run_id=view.opened.flow_run_id,
        acted=view.state != state or was_left,
    )


def _complete_if_due(journal: JournalFile, settings: Settings) -> None:
    """End the time in which a promoted deployment is watched and can be taken back.

    Its last monitoring run does so first, where there is one.
    """
    view = journal.read()
    promoted_at = view.moved_at("promoted")
    if view.state != "promoted" or promoted_at is None:
        return
    if release_of(view) or is_armed_release(view.opened.part_of, settings):
        return  # the components of a release stay armed together: see tasks.release_settle
    policy = view.opened.environment.monitoring
    limit_s = armed_s(policy)
    if any(isinstance(entry, Noted) and entry.about == "rollback_proposed" for entry in view.entries):
        limit_s += policy.approval_timeout_s  # nobody has answered yet
    if (datetime.now(UTC) - promoted_at).total_seconds() > limit_s:
        entry = Moved(state="completed", reason="the time its undo stays armed is over", by="recover")
        with journal.exclusive(patience_s=settings.takeover_patience_s):
            if journal.read().state == "promoted":
                journal.append(stamped(entry, datetime.now(UTC)))


def _free_abandoned(holding: Holding, api: PrefectApi | None, settings: Settings) -> None:
    """Free the lock of another host's deployment that died before it had told anybody of a plan.

    Its journal is in no mirror, and no effect starts before its intent is there: it has changed nothing.
    """
    if api is None or not holding.has_ended or holding.owner.host == settings.host:
        return
    try:
        journal_here(holding.owner.deployment, api, settings)
    except NoJournalError:
        log.warning("freeing the lock of %s, which never changed anything", holding.owner.deployment)
        _free(holding, api)


def _refuse_moved_world(view: JournalView, *, accept_loss: bool) -> None:
    """Refuse to take back a promotion that something newer was built upon."""
    if view.plan is None:
        return
    try:
        moved = differences_from_promised(view.opened, view.plan, touched=set())
    except DatabaseUnreachableError:
        # a server that does not come up any more may be what the change has done: the snapshot brings it back
        if accept_loss and any(isinstance(intent.undo, RestoreSnapshot) for intent in view.to_undo):
            return
        raise
    if moved:
        raise WorldMovedError(
            f"{view.opened.deployment} cannot be taken back, because the system has changed since it was "
            f"promoted: {'; '.join(moved)}. Nothing was changed. Deploy the release you want instead."
        )


@contextmanager
def _kept(api: PrefectApi | None, lease: Lease | None, settings: Settings) -> Iterator[None]:
    if api is None or lease is None:
        yield
        return
    keeper = LeaseKeeper(api, lease, every_s=settings.renew_every_s)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def _clear_up(journal: JournalFile, view: JournalView, api: PrefectApi | None) -> None:
    """Mirror the end of a deployment that ended while the API was away, and free its lock.

    A failed rollback keeps its lock.
    """
    if api is None or journal.owner_lives():
        return
    held = current_holding(api, view.opened.target)
    if held is None or held.owner.deployment != journal.deployment:
        return
    if mirrored_lines(api, journal.deployment) != journal.path.read_bytes():
        flow_run_id = view.opened.flow_run_id
        Mirror(api, journal.deployment, flow_run_id=flow_run_id, entries=view.entries).flush()
    if view.state != "rollback_failed":
        _free(held, api)


def _free(held: Holding, api: PrefectApi) -> None:
    api.request("DELETE", f"variables/{held.token}", accept=frozenset({404}))


def _release(lease: Lease, api: PrefectApi) -> None:
    try:
        lease.release(api)
    except ApiUnavailableError as error:
        log.warning("the lock is not released, the next recover will: %s", error)
