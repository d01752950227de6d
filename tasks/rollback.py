"""Take a deployment back, newest step first, and verify the result by reading the system.

It skips every progressive step, has its own deadline and tries, and needs neither Prefect nor its API:
only the journal, and the lock that the caller holds.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from datetime import UTC, datetime

from rules.content_actions import ContentUndo
from rules.database_undo import DatabaseUndo
from rules.entries import DeploymentState, Entry, Held, Intent, Moved, Noted, Undone, stamped
from rules.errors import ApiUnavailableError, CutOffError, DeployError, FencedError, UndoFailedError
from rules.fleet import FleetState
from rules.journal import JournalView, check_transition
from rules.release_actions import TakeBackDeployment
from rules.release_states import release_of
from rules.undo import RestoreTraffic
from tasks.content_undo import take_content_back
from tasks.database_undo import take_database_back
from tasks.journal import JournalFile, Mirror
from tasks.kubo import KuboUnreachableError
from tasks.lease import Lease
from tasks.observed import differences_from_before
from tasks.postgres import DatabaseUnreachableError
from tasks.prefect_api import PrefectApi
from tasks.release import (
    ComponentNotBackError,
    components_left,
    take_deployment_back,
    taken_back_with,
)
from tasks.settings import Settings
from tasks.undo import TargetDeadError, healthy_share, hold_traffic, take_back

log = logging.getLogger(__name__)
#: The note of a person's word, which a recovery goes by that takes over.
LOSS_ACCEPTED = "loss_accepted"
_PAUSE_S = 0.5
_SETTLE_S = 10.0


class Rollback:
    """One attempt to take a deployment back. The caller holds the step lock and the target's lock."""

    def __init__(
        self,
        journal: JournalFile,
        *,
        settings: Settings,
        by: str,
        mirror: Mirror | None = None,
        lease: Lease | None = None,
        api: PrefectApi | None = None,
        accept_loss: bool = False,
    ) -> None:
        self._journal, self._settings, self._by = journal, settings, by
        self._accept_loss = accept_loss
        self._mirror, self._lease, self._api = mirror, lease, api
        self._mirror_is_away = False
        self._deadline = time.monotonic() + settings.rollback_deadline_s

    def run(self, cause: str) -> JournalView:
        """Take back what was done, and return the journal as it then is.

        Args:
            cause: why: metric, value, threshold, or what happened.

        Raises:
            FencedError, CutOffError: another process has to go on; the journal stays open for it.
        """
        view = self._journal.read()
        if view.is_terminal:
            return view
        after = self._run(view, cause)
        if release_of(after):
            self._tell_of_components(after)
        return after

    def _run(self, view: JournalView, cause: str) -> JournalView:
        with self._api.impatient() if self._api else nullcontext():
            # one that continues another has something to verify, even where all was undone already
            if not view.to_undo and view.state == "running" and not view.opened.continues:
                return self._move("aborted", f"{cause} Nothing had been changed.")
            if view.state != "rolling_back":
                self._move("rolling_back", cause)
            if self._accept_loss:
                self._note(LOSS_ACCEPTED, "whatever the way back loses is accepted")
            try:
                self._undo_all(view)
                left = self._differences(view)
            except (FencedError, CutOffError):
                raise
            except DeployError as error:
                return self._move("rollback_failed", f"{cause} The way back failed: {error}")
            if left:
                return self._move("rollback_failed", f"{cause} After the way back: {'; '.join(left)}")
            return self._move("rolled_back", cause)

    def _tell_of_components(self, view: JournalView) -> None:
        """Have people hear of what went back with its release: last, so that no way back waits for it."""
        # it knows all that is told of deployments, and with it how they are taken back
        from tasks.aftermath import after_end  # noqa: PLC0415

        for part in taken_back_with(view, self._api, self._settings):
            after_end(part, api=self._api, settings=self._settings)

    def _undo_all(self, view: JournalView) -> None:
        for intent in view.to_undo:
            self._prove_ours()
            self._undo_with_tries(view, intent)
            log.info("taken back: %s", intent.undo.describe())
            self._record(Undone(number=intent.number))
            self._copy_to_mirror()

    def _undo_with_tries(self, view: JournalView, intent: Intent) -> None:
        attempt = 1
        while True:
            try:
                return self._take_back(view, intent)
            except TargetDeadError as error:
                self._hold(view, intent, error)
            except (FencedError, CutOffError, ComponentNotBackError):
                raise
            except Exception as error:  # whatever it was, this step is not back: tried again, then said
                # a server that restarts is waited for: it may do so because of what is taken back
                is_away = isinstance(error, DatabaseUnreachableError)
                last_try = attempt == self._settings.undo_attempts and not is_away
                log.warning("try %d to take back %s failed: %s", attempt, intent.title, error)
                if last_try or time.monotonic() > self._deadline:
                    raise UndoFailedError(f"{intent.undo.describe()}: {error}") from error
                time.sleep(_PAUSE_S * attempt)
                attempt += not is_away
            self._prove_ours()

    def _take_back(self, view: JournalView, intent: Intent) -> None:
        if isinstance(intent.undo, TakeBackDeployment):
            take_deployment_back(
                view, intent.undo, self._api, settings=self._settings, accept_loss=self._accept_loss
            )
        elif isinstance(intent.undo, DatabaseUndo):
            take_database_back(
                view, intent.undo, settings=self._settings, accept_loss=self._accept_loss, tell=self._note
            )
        elif isinstance(intent.undo, ContentUndo):
            take_content_back(view.opened, intent.undo, tell=self._note)
        else:
            deployment = view.opened.deployment
            take_back(intent.undo, view.opened.fleet, deployment=deployment, settings=self._settings)

    def _note(self, about: str, words: str) -> None:
        """Write down what people will want to find, before it is done."""
        self._record(Noted(about=about, words=words, by=self._by))
        self._copy_to_mirror()

    def _hold(self, view: JournalView, intent: Intent, error: TargetDeadError) -> None:
        """Keep the users on the side that answers; nothing of it is taken back under them."""
        hold_traffic(view.opened.fleet, error.healthiest)
        reason = f"{error}: all traffic is held on {error.healthiest}"
        self._record(Held(number=intent.number, reason=reason))
        raise UndoFailedError(reason) from error

    def _differences(self, view: JournalView) -> tuple[str, ...]:
        """Say where the system is not as before, once it had time to settle; empty when all is as before."""
        plan = view.plan
        if plan is None:
            return ()
        if release_of(view):
            return components_left(view, self._api, self._settings)
        deadline = time.monotonic() + _SETTLE_S
        while True:
            try:
                left = differences_from_before(view, plan) + self._dead_home(view, plan.before)
            except (DatabaseUnreachableError, KuboUnreachableError) as error:
                if time.monotonic() > self._deadline:
                    raise
                log.warning("what was taken back cannot be read yet: %s", error)
                time.sleep(_PAUSE_S)
                continue
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(_PAUSE_S)

    def _dead_home(self, view: JournalView, before: FleetState) -> tuple[str, ...]:
        if before.traffic is None or not any(isinstance(i.undo, RestoreTraffic) for i in view.intents):
            return ()
        home = before.traffic.live
        if healthy_share(view.opened.fleet, home) > 0:
            return ()
        return (f"no instance of {home}, which has all the traffic, answers its probe",)

    def _move(self, state: DeploymentState, reason: str) -> JournalView:
        check_transition(self._journal.read().state, state)
        self._record(Moved(state=state, reason=reason, by=self._by))
        if state != "rolling_back":  # that one is copied with the first step back, which must not wait
            self._copy_to_mirror(is_last=True)
        log.warning("%s is %s: %s", self._journal.deployment, state, reason)
        return self._journal.read()

    def _record(self, entry: Entry) -> None:
        now = stamped(entry, datetime.now(UTC))
        self._journal.append(now)
        if self._mirror:
            self._mirror.add(now)

    def _copy_to_mirror(self, *, is_last: bool = False) -> None:
        """Mirror what is new. After a failure only the end is tried again: the way back does not wait."""
        if self._mirror is None or (self._mirror_is_away and not is_last):
            return
        try:
            self._mirror.flush()
        except ApiUnavailableError as error:
            self._mirror_is_away = True
            log.warning("the journal is not mirrored: %s", error)

    def _prove_ours(self) -> None:
        """Prove that no other host can be at work on this target.

        Raises:
            FencedError: another process took over.
            CutOffError: the lease is over and the API cannot tell who has it now.
        """
        if self._settings.only_host:
            return
        lease = self._lease
        if lease is None:
            # begun with the API away, on the dead process's lease: it ends for us too
            if time.time() >= self._journal.lease_until():
                raise self._cut_off()
            return
        if lease.is_fenced:
            raise FencedError(f"{self._journal.deployment} was taken over by another process")
        if lease.left_s > 0 or self._api is None:
            return
        try:
            lease.renew(self._api)
        except ApiUnavailableError as error:
            raise self._cut_off() from error

    def _cut_off(self) -> CutOffError:
        return CutOffError(
            f"the lease of {self._journal.deployment} is over and Prefect's API is away: another host "
            "may have taken over, so this one stops here. Once the API answers, recover goes on by itself; "
            "if no other host exists, set SOVEREIGN_ONLY_HOST=true and run recover."
        )
