"""What a caller learns of a run: how far it is, and how it ended, in words and as an exit code."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Literal

from rules.entries import DeploymentState, Done
from rules.frozen import Frozen
from rules.journal import JournalView
from rules.record import DeploymentRecord, record_of

#: Types of Prefect's states after which a run does nothing any more.
RUN_OVER = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})

_RAISED = re.compile(r"^Flow run encountered an exception: (?P<kind>\w+): (?P<words>.*)", re.DOTALL)
#: How Prefect's own words begin when a run ended because it was asked for what cannot be.
_BAD_REQUEST = ("Validation of flow parameters failed", "Unable to find block document")


class Exit(IntEnum):
    """How a script hears what became of a deployment."""

    GOOD = 0
    UNEXPECTED = 1
    BAD_REQUEST = 2
    ROLLED_BACK = 3
    ROLLBACK_FAILED = 4
    BLOCKED = 5
    NOTHING_CHANGED = 6
    GAVE_UP_WAITING = 7
    API_AWAY = 8


_OF_STATE: dict[DeploymentState, Exit] = {
    "promoted": Exit.GOOD,
    "completed": Exit.GOOD,
    "superseded": Exit.GOOD,
    "rolled_back": Exit.ROLLED_BACK,
    "rollback_failed": Exit.ROLLBACK_FAILED,
    "blocked": Exit.BLOCKED,
    "aborted": Exit.NOTHING_CHANGED,
}
#: By what ended a run that left no journal, or that was about another run's deployment.
_OF_ERROR: dict[str, Exit] = {
    "InvalidRequestError": Exit.BAD_REQUEST,
    "NoJournalError": Exit.BAD_REQUEST,
    "ValidationError": Exit.BAD_REQUEST,
    "ParameterTypeError": Exit.BAD_REQUEST,
    "GateBlockedError": Exit.BLOCKED,
    "LockHeldError": Exit.NOTHING_CHANGED,
    "RefusedError": Exit.NOTHING_CHANGED,
    "WorldMovedError": Exit.NOTHING_CHANGED,
    "StillRunningError": Exit.NOTHING_CHANGED,
    "LossNotAcceptedError": Exit.NOTHING_CHANGED,
    "ApiUnavailableError": Exit.API_AWAY,
    "CutOffError": Exit.API_AWAY,
}


class Started(Frozen):
    """A run that was asked for."""

    flow_run_id: str
    is_new: bool = True  # False: the idempotency key was used before, and this is the run of then


class Progress(Frozen):
    """One look at a run, and at the deployment that it is, or is about."""

    flow_run_id: str
    run_state: str  # Prefect's type of state, such as RUNNING; empty: Prefect has forgotten the run
    run_message: str = ""
    flow: str = ""  # name of the flow, such as deploy or roll-back
    deployment: str = ""  # empty until the journal is mirrored
    journal: JournalView | None = None
    asked_run: str = ""  # of a release: the run of its component that waits for a person's answer

    @property
    def state(self) -> DeploymentState | Literal[""]:
        """The deployment's state; empty until its journal is mirrored."""
        return self.journal.state if self.journal else ""

    @property
    def record(self) -> DeploymentRecord | None:
        """The deployment's record as it is now; None until its journal is mirrored."""
        return record_of(self.journal) if self.journal else None

    @property
    def steps(self) -> int:
        """How many steps the plan has; 0 before there is one."""
        return len(self.journal.plan.steps) if self.journal and self.journal.plan else 0

    @property
    def steps_done(self) -> int:
        """How many steps are behind it. Steps that only read are counted with the next one that writes."""
        if self.journal is None:
            return 0
        if self.state in {"promoted", "completed", "superseded"}:
            return self.steps
        return max((e.number + 1 for e in self.journal.entries if isinstance(e, Done)), default=0)

    @property
    def waits_for_approval(self) -> bool:
        """Whether a person has to say yes or no now."""
        return self.run_state == "PAUSED" or bool(self.asked_run)

    @property
    def run_is_over(self) -> bool:
        """Whether the run does nothing any more; another process may still take its deployment back."""
        return self.run_state in RUN_OVER or not self.run_state

    @property
    def is_own(self) -> bool:
        """Whether the deployment is this run's, and not one that it is only about, as a roll-back is."""
        return self.journal is not None and self.journal.opened.flow_run_id == self.flow_run_id

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come of this run.

        A run reads FAILED or CRASHED before its hook, or `recover`, has taken the deployment back: the
        journal decides. What the monitoring of the hours after a promotion finds is not waited for.
        """
        if self.journal is None:
            return self.run_is_over
        if not self.is_own:  # a roll-back whose process died is gone on with by `recover`
            return self.run_is_over and self.state != "rolling_back"
        return self.run_is_over and (self.journal.is_terminal or self.state == "promoted")

    @property
    def in_words(self) -> str:
        """How things are, as a sentence without its full stop."""
        run = f"flow run {self.flow_run_id} is {self.run_state or 'forgotten by Prefect'}"
        if self.journal is None:
            return f"{run}{': ' if self.run_message else ''}{self.run_message}"
        steps = f", {self.steps_done} of {self.steps} steps done" if self.state == "running" else ""
        return f"{self.deployment} is {self.state}{steps}; {run}"


class Ended(Frozen):
    """How a run ended, as a script wants it."""

    flow_run_id: str
    deployment: str
    state: str  # the deployment's; without one: finished, failed, crashed, or aborted: nothing was changed
    reason: str
    exit_code: int
    record: DeploymentRecord | None = None


def ended_as(progress: Progress) -> Ended:
    """Return how a run that is over has ended."""
    code = _exit_of(progress)
    return Ended(
        flow_run_id=progress.flow_run_id,
        deployment=progress.deployment,
        state=progress.state or _state_without_journal(progress, code),
        reason=_reason(progress),
        exit_code=code,
        record=progress.record,
    )


def _exit_of(progress: Progress) -> Exit:
    if progress.is_own:
        if progress.state == "aborted" and progress.run_state == "COMPLETED":
            return Exit.GOOD  # the release was in place already
        return _OF_STATE.get(progress.journal.state, Exit.UNEXPECTED) if progress.journal else Exit.UNEXPECTED
    if progress.run_state == "COMPLETED" or progress.state == "rolled_back":
        return Exit.GOOD  # of a roll-back whose process died: what it was asked for, `recover` has done
    if progress.state == "rollback_failed":
        return Exit.ROLLBACK_FAILED
    if progress.run_state == "CANCELLED":
        return Exit.NOTHING_CHANGED
    raised = _RAISED.match(progress.run_message)
    if (raised["words"] if raised else progress.run_message).startswith(_BAD_REQUEST):
        return Exit.BAD_REQUEST
    return _OF_ERROR.get(raised["kind"], Exit.UNEXPECTED) if raised else Exit.UNEXPECTED


def _state_without_journal(progress: Progress, code: Exit) -> str:
    if code is Exit.NOTHING_CHANGED:
        return "aborted"
    # not "completed": of a deployment that says that its hours of monitoring are over
    return "finished" if progress.run_state == "COMPLETED" else progress.run_state.lower()


def _reason(progress: Progress) -> str:
    """Return why it ended so: the journal's word where the deployment has ended, or else the run's."""
    journal, raised = progress.journal, _RAISED.match(progress.run_message)
    of_run = raised["words"].strip() if raised else progress.run_message
    is_its_doing = progress.is_own or progress.run_state == "COMPLETED" or progress.state == "rolled_back"
    if journal is None or not is_its_doing:
        return of_run
    if journal.state == "promoted" and progress.run_state not in {"COMPLETED", ""}:
        return f"{journal.reason} Its run is {progress.run_state} since: {of_run or 'no message'}".rstrip()
    if journal.state == "rollback_failed" and journal.cause:
        return f"{journal.cause} The way back failed: {journal.reason}"
    return journal.cause or journal.reason or of_run
