"""Who may take a deployment back, from outside its own process: hooks, the schedule, a person.

`recover` is idempotent and safe to call from several processes and hosts at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from rules.errors import ApiUnavailableError, CutOffError, FencedError, WorldMovedError
from rules.frozen import Frozen
from rules.journal import Entry, JournalView, Locked, Moved, Planned, line, stamped
from tasks.claim import claim, refuse_living, step_lock
from tasks.fleet import observe_fleet
from tasks.journal import JournalFile, Mirror, NoJournalError, journals, mirrored_lines
from tasks.lease import Holding, Lease, LeaseKeeper, all_holdings, current_holding
from tasks.prefect_api import PrefectApi
from tasks.rollback import Rollback
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
    deployment: str, *, cause: str, by: str, settings: Settings, asker: Asker = "dead"
) -> JournalView:
    """Bring one deployment to a known good state, if nobody else is doing so.

    Args:
        deployment: its id.
        cause: why, in words, for the journal.
        by: who asks, for the journal.
        settings: of this host.
        asker: see `Asker`.

    Returns:
        The journal as it is afterwards. A deployment that has ended is returned untouched.

    Raises:
        StillRunningError: its process is alive.
        NoJournalError: neither this host nor the mirror knows it.
        FencedError: another process is at it.
        CutOffError: Prefect's API is away and this host alone may not decide.
    """
    api = _api_or_none(settings)
    try:
        journal = _journal_here(deployment, api, settings)
        view = journal.read()
        if view.is_terminal or (view.state == "promoted" and asker != "person"):
            _free_leftover_lock(journal, view, api)
            return view
        refuse_living(journal, api, settings)
        with step_lock(journal, api, settings):
            view = journal.read()
            if view.is_terminal:
                return view
            if view.state == "promoted":
                _refuse_moved_world(view)
            return _recover_locked(journal, view, api=api, cause=cause, by=by, settings=settings)
    finally:
        if api:
            api.close()


def _recover_locked(
    journal: JournalFile,
    view: JournalView,
    *,
    api: PrefectApi | None,
    cause: str,
    by: str,
    settings: Settings,
) -> JournalView:
    lease = claim(journal, view, api=api, settings=settings)
    entries = list(view.entries)
    if lease:
        journal.append(stamped(Locked(token=lease.token), datetime.now(UTC)))
        entries = list(journal.read().entries)
    flow_run_id = view.opened.flow_run_id
    mirror = Mirror(api, journal.deployment, flow_run_id=flow_run_id, entries=entries) if api else None
    rollback = Rollback(journal, settings=settings, by=by, mirror=mirror, lease=lease, api=api)
    with _kept(api, lease, settings):
        after = rollback.run(cause)
    if api and lease and after.state != "rollback_failed":
        _release(lease, api)
    return after


def roll_back_by_person(deployment: str, *, reason: str, settings: Settings) -> JournalView:
    """Take a deployment back by a person's word, also one that was promoted or whose rollback failed.

    A failed rollback is repeated as a deployment of its own, which continues the failed one: what has
    ended stays in the books as it ended.

    Raises:
        DeployError: see `recover`.
    """
    journal = JournalFile(settings.journal_dir, deployment)
    if journal.path.exists() and journal.read().state == "rollback_failed":
        deployment = _begin_again(journal, settings)
    return recover(deployment, cause=reason, by="person", settings=settings, asker="person")


def _begin_again(failed: JournalFile, settings: Settings) -> str:
    """Begin a journal that takes over what `failed` could not undo; return its deployment's id."""
    view = failed.read()
    tries = sum(1 for j in journals(settings.journal_dir) if j.read().opened.continues == failed.deployment)
    again = JournalFile(settings.journal_dir, f"{failed.deployment}-again{tries + 1}")
    opened = view.opened.model_copy(
        update={
            "deployment": again.deployment,
            "continues": failed.deployment,
            "host": settings.host,
            "summary": f"take {failed.deployment} back once more",
        }
    )
    plans = [entry for entry in view.entries if isinstance(entry, Planned)]
    kept: list[Entry] = [opened, *plans, *reversed(view.to_undo)]
    again.adopt(b"".join(line(entry) for entry in kept))
    return again.deployment


def recover_all(*, by: str, settings: Settings) -> tuple[Recovered, ...]:
    """Look at every open deployment that this host can know of, and recover those whose run is dead.

    Also ends the time in which a promoted one can be taken back.
    """
    names = dict.fromkeys(journal.deployment for journal in journals(settings.journal_dir))
    api = _api_or_none(settings)
    if api:
        with api:
            names |= dict.fromkeys(holding.owner.deployment for holding in _holdings(api))
    return tuple(_looked_at(name, by=by, settings=settings) for name in names)


def _holdings(api: PrefectApi) -> tuple[Holding, ...]:
    try:
        return all_holdings(api)
    except ApiUnavailableError as error:
        log.warning("going by this host's journals alone: %s", error)
        return ()


def _looked_at(deployment: str, *, by: str, settings: Settings) -> Recovered:
    journal = JournalFile(settings.journal_dir, deployment)
    known = journal.read() if journal.path.exists() else None
    state = known.state if known else "unknown"
    if known:
        _complete_if_due(journal, settings)
    try:
        view = recover(deployment, cause="The process that ran it is gone.", by=by, settings=settings)
    except (NoJournalError, FencedError, CutOffError, TimeoutError, ApiUnavailableError) as error:
        return Recovered(deployment=deployment, state=state, reason=str(error))
    return Recovered(
        deployment=deployment,
        state=view.state,
        reason=view.cause or view.reason,
        flow_run_id=view.opened.flow_run_id,
        acted=view.state != state,
    )


def _complete_if_due(journal: JournalFile, settings: Settings) -> None:
    if not journal.path.exists():
        return
    view = journal.read()
    promoted_at = view.moved_at("promoted")
    if view.state != "promoted" or promoted_at is None:
        return
    if (datetime.now(UTC) - promoted_at).total_seconds() > settings.armed_s:
        entry = Moved(state="completed", reason="the time its undo stays armed is over", by="recover")
        journal.append(stamped(entry, datetime.now(UTC)))


def _journal_here(deployment: str, api: PrefectApi | None, settings: Settings) -> JournalFile:
    """Return the deployment's journal, completed from its mirror when another host wrote (more of) it."""
    journal = JournalFile(settings.journal_dir, deployment)
    here = journal.path.read_bytes() if journal.path.exists() else b""
    if here and (journal.read().is_terminal or journal.owner_lives()):
        return journal
    try:
        lines = mirrored_lines(api, deployment) if api else b""
    except ApiUnavailableError as error:
        log.warning("going by this host's journal of %s alone: %s", deployment, error)
        lines = b""
    if not here and not lines:
        raise NoJournalError(
            f"neither {settings.journal_dir} nor Prefect's API has a journal of {deployment}: it never got "
            "as far as changing anything"
        )
    if len(lines) > len(here) and lines.startswith(here):
        journal.adopt(lines)
    return journal


def _refuse_moved_world(view: JournalView) -> None:
    """Refuse to take back a promotion that something newer was built upon."""
    if view.plan is None:
        return
    after, now = view.plan.after, observe_fleet(view.opened.fleet)
    moved = now.differences(after.with_health_of(now, except_for=set()))
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


def _free_leftover_lock(journal: JournalFile, view: JournalView, api: PrefectApi | None) -> None:
    """Free the lock of a deployment that ended while the API was away; a failed rollback keeps its own."""
    if api is None or view.state == "rollback_failed":
        return
    held = current_holding(api, view.opened.target)
    if held and held.owner.deployment == journal.deployment and not journal.owner_lives():
        api.request("DELETE", f"variables/{held.token}", accept=frozenset({404}))


def _release(lease: Lease, api: PrefectApi) -> None:
    try:
        lease.release(api)
    except ApiUnavailableError as error:
        log.warning("the lock is not released, the next recover will: %s", error)


def _api_or_none(settings: Settings) -> PrefectApi | None:
    try:
        api = PrefectApi(settings)
    except ApiUnavailableError:
        return None
    api.patience_s = settings.api_patience_undoing_s
    return api
