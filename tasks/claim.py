"""Whether this process may take a deployment back: is its own process dead, and who has the lock?"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rules.continued import continued
from rules.errors import ApiUnavailableError, CutOffError, FencedError
from rules.journal import JournalView
from tasks.deployment import owner_of
from tasks.journal import JournalFile
from tasks.lease import Holding, Lease, acquire, current_holding, take_over
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)


class StillRunningError(FencedError):
    """The deployment's own process is alive and well; it is left alone."""


def claim(
    journal: JournalFile, view: JournalView, *, api: PrefectApi | None, settings: Settings
) -> Lease | None:
    """Take the target's lock for a recovery; None where there is nothing to guard or no API to ask.

    The caller holds the step lock.

    Raises:
        StillRunningError: a process on another host holds it and renews its lease.
        FencedError: it belongs to another deployment now, or another process was faster.
        CutOffError: the API is away and this host alone may not decide.
    """
    target, owner = view.opened.target, owner_of(view.opened, settings)
    changed_nothing = view.token is None and not view.intents and not view.opened.continues
    _refuse_foreign_database(view, settings)
    if api is None:
        _refuse_cut_off(journal, view, settings=settings, why="PREFECT_API_URL is not set")
        return None
    try:
        held = current_holding(api, target)
        if changed_nothing and (held is None or held.owner.deployment != journal.deployment):
            return None
        if held is None:
            return acquire(api, target, owner)
        _refuse_other_holder(view, held, settings=settings)
        return take_over(api, target, held, owner)
    except ApiUnavailableError as error:
        _refuse_cut_off(journal, view, settings=settings, why=str(error))
        return None


def _refuse_foreign_database(view: JournalView, settings: Settings) -> None:
    """Leave a change alone whose database only its own host reaches: here, the same words mean another one.

    Raises:
        StillRunningError: says which host has to do it.
    """
    database, host = view.opened.database, view.opened.host
    if host != settings.host and database and database.is_local and view.intents:
        raise StillRunningError(
            f"the database {database.name} of {view.opened.deployment} is declared as {host}'s own, so only "
            f"recover on {host} can take it back: left alone. If {host} does not come back, declare the "
            "database's server with a host, and deploy what is wanted."
        )


def refuse_living(journal: JournalFile, api: PrefectApi | None, settings: Settings) -> None:
    """Leave a deployment alone whose own process on this host lives and keeps its lease.

    A process that lives but has let its lease end was stopped: when it wakes, it finds itself fenced.

    Raises:
        StillRunningError: it lives, or it cannot be told that it was given up.
    """
    if not journal.owner_lives() or _is_given_up(journal, api, settings):
        return
    raise StillRunningError(
        f"process {journal.owner_pid()} of {journal.deployment} lives and is left alone; to stop it, cancel "
        "its flow run: it then takes itself back"
    )


def _is_given_up(journal: JournalFile, api: PrefectApi | None, settings: Settings) -> bool:
    """Whether the server, which answers, has not heard of this deployment for longer than its lease."""
    try:
        held = current_holding(api, journal.read().opened.target) if api else None
    except ApiUnavailableError:
        return False
    is_ours = held is not None and held.owner.deployment == journal.deployment
    return held is not None and is_ours and held.has_ended and held.owner.host == settings.host


def _refuse_other_holder(view: JournalView, held: Holding, *, settings: Settings) -> None:
    if held.owner.deployment not in {*continued(view.opened.deployment), view.opened.continues}:
        raise FencedError(
            f"{view.opened.target} belongs to {held.owner.deployment} now, not to {view.opened.deployment}"
        )
    # on this host the file locks have told already that its process is dead or given up
    if held.owner.host != settings.host and not held.has_ended:
        raise StillRunningError(
            f"{held.owner.deployment} is held by process {held.owner.pid} on {held.owner.host}, which "
            f"renewed its lease {held.age_s:.0f} s ago (lease {held.owner.lease_s:g} s): left alone"
        )


def _refuse_cut_off(journal: JournalFile, view: JournalView, *, settings: Settings, why: str) -> None:
    is_here = view.opened.host == settings.host
    if settings.only_host or (is_here and time.time() < journal.lease_until()):
        return
    raise CutOffError(
        f"the lease of {journal.deployment} (of {view.opened.host}) is over and Prefect's API is away, so "
        "another host may have taken over; nothing was changed. Once the API answers, recover goes on by "
        f"itself. If no other host exists, set SOVEREIGN_ONLY_HOST=true and run recover. ({why})"
    )


@contextmanager
def step_lock(journal: JournalFile, api: PrefectApi | None, settings: Settings) -> Iterator[None]:
    """Hold the step lock, if need be by ending a process that was given up for dead in mid-effect."""
    with ExitStack() as stack:
        try:
            stack.enter_context(journal.exclusive(patience_s=settings.takeover_patience_s))
        except TimeoutError:
            _end_given_up(journal, api, settings)
            stack.enter_context(journal.exclusive(patience_s=settings.takeover_patience_s))
        yield


def _end_given_up(journal: JournalFile, api: PrefectApi | None, settings: Settings) -> None:
    """Kill the deployment's own process once its lease is over: stopped in mid-effect, it would wake."""
    pid = journal.owner_pid()
    if pid is None or not _is_given_up(journal, api, settings):
        raise StillRunningError(f"another process is at work on {journal.deployment}: left alone")
    log.warning("ending process %d, which stopped in the middle of a step of %s", pid, journal.deployment)
    os.kill(pid, signal.SIGKILL)
