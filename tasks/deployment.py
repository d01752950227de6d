"""An open deployment: its journal, its lock, and the one way to change anything on the live system."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Literal

from rules.entries import Decided, Done, Entry, Intent, Locked, Moved, Noted, Opened, Planned, stamped
from rules.errors import (
    AbortedError,
    ApiUnavailableError,
    CutOffError,
    DeployError,
    FencedError,
    InvalidRequestError,
    LockHeldError,
    RevokedError,
)
from rules.journal import JournalView, check_transition
from rules.plan import Plan, Step
from rules.verdict import CanaryEvidence, Verdict
from tasks.control import Control, forget
from tasks.journal import JournalFile, Mirror
from tasks.known import readable_journals
from tasks.lease import Lease, LeaseKeeper, Owner, acquire
from tasks.monitoring import cancel_monitoring
from tasks.prefect_api import PrefectApi
from tasks.release_lock import is_in_the_way, refuse_held
from tasks.rollback import Rollback
from tasks.settings import Settings

log = logging.getLogger(__name__)
_STEP_PATIENCE_S = 5.0


class OpenDeployment:
    """What a flow holds while it deploys. Only `perform` changes the live system."""

    def __init__(
        self,
        journal: JournalFile,
        mirror: Mirror,
        lease: Lease,
        *,
        keeper: LeaseKeeper,
        api: PrefectApi,
        opened: Opened,
        settings: Settings,
    ) -> None:
        self.journal, self.lease, self.opened, self.settings = journal, lease, opened, settings
        self.fleet = opened.fleet
        self.evidence = CanaryEvidence()
        self.api = api
        #: Instance -> when its service was stopped, by this process's clock, until it answers again.
        self.stopped_at: dict[str, float] = {}
        #: By this process's clock; None: nobody has paused it.
        self.paused_since: float | None = None
        #: Called between steps and at each tick of a watch; raises when the rollout must not go on.
        self.heed: Callable[[], None] = lambda: None
        #: Called before a side is passed; says why it must be held a while, or nothing.
        self.held_by: Callable[[], str] = lambda: ""
        #: Called again and again while it is paused or held: a host may have to hear of it.
        self.while_held: Callable[[], None] = lambda: None
        #: The release that this deployment is a component of, in the same process.
        self.whole: OpenDeployment | None = None
        self._mirror, self._keeper = mirror, keeper
        self._size_bytes = journal.size_bytes
        self._is_in_step = False

    @property
    def name(self) -> str:
        """The deployment's id."""
        return self.journal.deployment

    def perform(self, step: Step, effect: Callable[[], None]) -> None:
        """Run `effect` as `step`: fenced, and with its way back durable in journal and mirror before it.

        Raises:
            FencedError: this deployment was recovered by another process; nothing was done.
            CutOffError: Prefect's API is away; nothing was done.
            RevokedError, AbortedError: it was ended from outside; nothing was done.
        """
        if step.undo is None:
            self.prove_ours()
            effect()
            return
        with self.journal.exclusive(patience_s=_STEP_PATIENCE_S):
            self.prove_ours()
            self.record(Intent(number=step.number, title=step.title, undo=step.undo))
            self._copy_to_mirror()
            self._is_in_step = True
            try:
                effect()
            finally:
                self._is_in_step = False
            self.record(Done(number=step.number))

    def prove_ours(self) -> None:
        """Prove that this deployment is still this process's to go on with; cheap enough for every second.

        Raises:
            FencedError, CutOffError, RevokedError, AbortedError: it is not; see each.
        """
        if self.lease.is_fenced or self.journal.size_bytes != self._size_bytes:
            raise FencedError(
                f"{self.name} was given up for dead and recovered by another process. This one stops and "
                "changes nothing; the journal says how it ended."
            )
        if self.whole:
            self.whole.prove_ours()
        if self._keeper.was_revoked:
            raise RevokedError(f"The flow run is {self._keeper.run_state} by Prefect's word.")
        if self.lease.silent_s > self.settings.cut_off_after_s:
            raise CutOffError(f"Prefect's API has not answered for {self.lease.silent_s:.0f} s.")

        control = self.control
        if control and control.word == "abort":
            raise AbortedError(f"Aborted by {control.by}: {control.reason}")

    def prove_wanted(self) -> None:
        """Raise what ends the deployment: it is another's by now, or what watches beside it objects."""
        self.prove_ours()
        self.heed()

    @property
    def control(self) -> Control | None:
        """The newest word of a person to this deployment, or to its release; None: there is none."""
        return self._keeper.control or (self.whole.control if self.whole else None)

    @property
    def pause(self) -> Control | None:
        """Who has paused this deployment, and why; None: it goes on."""
        return self.control if self.control and self.control.word == "pause" else None

    def record(self, entry: Entry) -> None:
        """Write an entry to the journal, and queue it for the mirror."""
        now = stamped(entry, datetime.now(UTC))
        self.journal.append(now)
        self._mirror.add(now)
        self._size_bytes = self.journal.size_bytes

    def note(self, about: str, words: str) -> None:
        """Write down what people will want to find in the timeline."""
        self.record(Noted(about=about, words=words))

    def decide(self, title: str, verdict: Verdict) -> None:
        """Keep a verdict in the decision log."""
        log.info("%s: %s, %s", title, verdict.outcome, "; ".join(verdict.reasons))
        kept = set(Decided.model_fields) & set(Verdict.model_fields)
        self.record(Decided(title=title, **verdict.model_dump(include=kept)))

    @property
    def plan(self) -> Plan:
        """The plan, as kept in the journal.

        Raises:
            InvalidRequestError: nothing is planned yet.
        """
        plan = self.journal.read().plan
        if plan is None:
            raise InvalidRequestError(f"{self.name} has no plan yet")
        return plan

    def planned(self, plan: Plan) -> None:
        """Keep the plan, and with it the state that a rollback returns to, before anything is done."""
        self.keep(Planned(plan=plan))

    def keep(self, entry: Entry) -> None:
        """Write an entry that others must be able to read at once, and mirror it.

        Raises:
            CutOffError: the mirror did not take it.
        """
        self.record(entry)
        self._copy_to_mirror()

    def promote(self, reason: str) -> None:
        """Declare the change good.

        The mirror learns it first, so that no other host ever takes back what was promoted.

        Raises:
            CutOffError: the mirror cannot be told; the change is not promoted.
        """
        entry = stamped(Moved(state="promoted", reason=reason, by="flow"), datetime.now(UTC))
        with self.journal.exclusive(patience_s=_STEP_PATIENCE_S):
            self.prove_ours()
            check_transition(self.journal.read().state, "promoted")
            self._mirror.add(entry)
            try:
                self._copy_to_mirror()
            except CutOffError:
                self._mirror.withdraw()
                raise
            self.journal.append(entry)
            self._size_bytes = self.journal.size_bytes

    def end_unchanged(self, state: Literal["blocked", "aborted"], reason: str) -> None:
        """End a deployment that has changed nothing."""
        with self.journal.exclusive(patience_s=_STEP_PATIENCE_S):
            self.prove_ours()
            check_transition(self.journal.read().state, state)
            self.record(Moved(state=state, reason=reason, by="flow"))
        try:
            self._mirror.flush()
        except ApiUnavailableError as error:
            log.warning("the end of %s is not mirrored: %s", self.name, error)

    def roll_back(self, cause: str) -> JournalView:
        """Take back what was done, from inside the deployment's own process.

        Raises:
            FencedError, CutOffError: another process has to go on; the journal stays open for it.
        """
        # a release is taken back in the middle of the step in which its component failed
        with nullcontext() if self._is_in_step else self.journal.exclusive(patience_s=_STEP_PATIENCE_S):
            rollback = Rollback(
                self.journal,
                settings=self.settings,
                by="flow",
                mirror=self._mirror,
                lease=self.lease,
                api=self.api,
            )
            return rollback.run(cause)

    def _copy_to_mirror(self) -> None:
        try:
            self._mirror.flush()
        except ApiUnavailableError as error:
            raise CutOffError(f"The journal of {self.name} cannot be mirrored: {error}") from error


@contextmanager
def open_deployment(opened: Opened, api: PrefectApi, settings: Settings) -> Iterator[OpenDeployment]:
    """Begin a deployment's journal and take its target's lock; free the lock when it has ended well.

    Raises:
        LockHeldError: another deployment has the target; the journal says `aborted`.
        ApiUnavailableError: Prefect's API is away; nothing was changed.
    """
    journal = JournalFile(settings.journal_dir, opened.deployment)
    opened = opened.model_copy(update={"at": datetime.now(UTC)})
    mirror = Mirror(api, opened.deployment, flow_run_id=opened.flow_run_id, entries=[opened])
    with journal.begun(opened):
        try:
            lease = _lock(opened, api, settings)
        except DeployError as error:
            journal.append(stamped(Moved(state="aborted", reason=str(error), by="flow"), datetime.now(UTC)))
            raise
        keeper = LeaseKeeper(api, lease, every_s=settings.renew_every_s, on_renewal=journal.note_lease)
        deployment = OpenDeployment(
            journal, mirror, lease, keeper=keeper, api=api, opened=opened, settings=settings
        )
        deployment.record(Locked(token=lease.token))
        keeper.start()
        try:
            yield deployment
        finally:
            keeper.stop()
            _free_lock(journal, lease, api)
            _forget_words(keeper, opened.deployment, api)


def _lock(opened: Opened, api: PrefectApi, settings: Settings) -> Lease:
    """Take the target's lock, unless an earlier deployment of it has still to be recovered.

    That one's lock can be gone: a recovery that is killed while it takes the lock over leaves none.

    Raises:
        LockHeldError: another deployment has the target, or left it half-way.
    """
    lease = acquire(api, opened.target, owner_of(opened, settings))
    try:
        refuse_held(api, opened)
        _refuse_left_half_way(opened, settings)
    except DeployError:
        lease.release(api)
        raise
    return lease


def _refuse_left_half_way(opened: Opened, settings: Settings) -> None:
    for other, view in readable_journals(settings):
        if is_in_the_way(view, opened):
            raise LockHeldError(
                f"{other.deployment} was left {view.state} on {view.opened.target} and has to be recovered "
                "first: `recover` does so within a minute. Nothing was changed; then deploy again."
            )


def supersede_promoted(opened: Opened, api: PrefectApi, settings: Settings) -> None:
    """Disarm the undo of earlier promotions on this target: their way back would lead past this one.

    Components of one release are taken back newest first, so one that changes the same target stays armed.
    """
    for earlier, view in readable_journals(settings):
        is_older = earlier.deployment != opened.deployment and view.opened.target == opened.target
        goes_with_it = opened.part_of != "" and view.opened.part_of == opened.part_of
        if not is_older or goes_with_it or view.state != "promoted":
            continue
        reason = f"{opened.deployment} was deployed on the same target."
        earlier.append(stamped(Moved(state="superseded", reason=reason, by="flow"), datetime.now(UTC)))
        entries = earlier.read().entries
        try:
            Mirror(api, earlier.deployment, flow_run_id=view.opened.flow_run_id, entries=entries).flush()
            if view.monitoring:
                cancel_monitoring(api, earlier.deployment)
        except ApiUnavailableError as error:
            log.warning("that %s is superseded is not mirrored: %s", earlier.deployment, error)


def owner_of(opened: Opened, settings: Settings) -> Owner:
    """Return how this process signs the lock that it takes for a deployment."""
    return Owner(
        deployment=opened.deployment,
        flow_run_id=opened.flow_run_id,
        host=settings.host,
        pid=os.getpid(),
        since=datetime.now(UTC),
        lease_s=settings.lease_s,
        holds=opened.holds,
    )


def _forget_words(keeper: LeaseKeeper, deployment: str, api: PrefectApi) -> None:
    if keeper.control is None:
        return
    try:
        forget(api, deployment)
    except ApiUnavailableError as error:
        log.warning("what was asked of %s is not removed: %s", deployment, error)


def _free_lock(journal: JournalFile, lease: Lease, api: PrefectApi) -> None:
    """Free the target unless a person has to look first, or another process has to go on."""
    view = journal.read()
    if view.state == "rollback_failed" or not (view.is_terminal or view.state == "promoted"):
        return
    try:
        lease.release(api)
    except ApiUnavailableError as error:
        log.warning("the lock of %s is not freed, the next recover will: %s", journal.deployment, error)
