"""A deployment's journal: what its entries mean, and which state it is in.

Nothing is changed before its undo is in the journal. The journal alone is enough to undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rules.backup import BackupTaken
from rules.baseline import Baseline, Comparison
from rules.checklist import ChecklistReport
from rules.environment import Environment
from rules.finding import Finding
from rules.fleet import Fleet
from rules.frozen import Count, Frozen, Ratio
from rules.plan import Plan
from rules.traffic import Counts
from rules.undo import AnyUndoStep
from rules.verdict import Outcome

DeploymentState = Literal[
    "running",
    "promoted",
    "rolling_back",
    "completed",
    "superseded",
    "rolled_back",
    "rollback_failed",
    "blocked",
    "aborted",
]

#: States that never change.
TERMINAL: frozenset[DeploymentState] = frozenset(
    {"completed", "superseded", "rolled_back", "rollback_failed", "blocked", "aborted"}
)

#: From each state that can change, the states it can change to.
TRANSITIONS: dict[DeploymentState, frozenset[DeploymentState]] = {
    "running": frozenset({"promoted", "rolling_back", "blocked", "aborted"}),
    "rolling_back": frozenset({"rolled_back", "rollback_failed"}),
    "promoted": frozenset({"rolling_back", "completed", "superseded"}),
}


class Stamped(Frozen):
    """What every entry says: when it was written."""

    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)


class Opened(Stamped):
    """The deployment begins: who runs it, against what. The fleet is kept so that undo needs no API."""

    entry: Literal["opened"] = "opened"
    deployment: str
    target: str
    flow_run_id: str
    host: str
    fleet: Fleet
    summary: str
    environment: Environment = Environment()
    continues: str | None = Field(
        default=None, description="the deployment whose failed rollback this repeats"
    )


class Locked(Stamped):
    """The target's lock is ours; `token` is the fence."""

    entry: Literal["locked"] = "locked"
    token: str


class Planned(Stamped):
    """The plan, with the state before it, to which a rollback returns."""

    entry: Literal["planned"] = "planned"
    plan: Plan


class Intent(Stamped):
    """Something will be done now; `undo` takes it back."""

    entry: Literal["intent"] = "intent"
    number: Count
    title: str
    undo: AnyUndoStep


class Done(Stamped):
    """The effect of the intent of this number has happened."""

    entry: Literal["done"] = "done"
    number: Count


class Decided(Stamped):
    """A verdict was reached, with its arithmetic in words."""

    entry: Literal["decided"] = "decided"
    title: str
    outcome: Outcome
    reasons: tuple[str, ...]
    canary_requests: Count = 0
    canary_error_ratio: Ratio | None = None
    stable_requests: Count = 0
    stable_error_ratio: Ratio | None = None


class Undone(Stamped):
    """The intent of this number has been taken back."""

    entry: Literal["undone"] = "undone"
    number: Count


class Held(Stamped):
    """An undo was refused because it would have sent traffic to a dead side."""

    entry: Literal["held"] = "held"
    number: Count
    reason: str


class Gated(Stamped):
    """The checklist was judged, with what persons attested and waived."""

    entry: Literal["gated"] = "gated"
    report: ChecklistReport


class Approved(Stamped):
    """A person approved it, after having seen plan and checklist."""

    entry: Literal["approved"] = "approved"
    by: str
    words: str = ""


class Measured(Stamped):
    """How users and hosts are doing, before and after the rollout."""

    entry: Literal["measured"] = "measured"
    moment: Literal["before", "after"]
    baseline: Baseline


class Compared(Stamped):
    """What was measured before and after, side by side."""

    entry: Literal["compared"] = "compared"
    comparisons: tuple[Comparison, ...]


class BackedUp(Stamped):
    """A backup was taken and read back."""

    entry: Literal["backed_up"] = "backed_up"
    taken: BackupTaken
    verified: Finding


class Noted(Stamped):
    """Something that people should find in the timeline: a pause, an alert, a provider that is away."""

    entry: Literal["noted"] = "noted"
    about: Annotated[str, Field(pattern=r"^[a-z_]+$")]
    words: str
    by: str = "flow"


class MonitoringScheduled(Stamped):
    """The runs that watch the deployment after its promotion are known to Prefect."""

    entry: Literal["monitoring_scheduled"] = "monitoring_scheduled"
    runs: Count
    until: datetime
    counters: Counts | None = Field(
        default=None, description="the live side's answers by the balancer, when the first window began"
    )


class Monitored(Stamped):
    """One monitoring run has ended: what it saw in its window, and what it decided."""

    entry: Literal["monitored"] = "monitored"
    number: Count
    since: datetime
    action: str
    reasons: tuple[str, ...]
    requests: Count = 0
    errors: Count = 0
    counters: Counts | None = Field(default=None, description="the same, when this window ended")


class Moved(Stamped):
    """The deployment changed its state, and why."""

    entry: Literal["moved"] = "moved"
    state: DeploymentState
    reason: str
    by: str


Entry = (
    Opened
    | Locked
    | Planned
    | Gated
    | Approved
    | Measured
    | Compared
    | BackedUp
    | Noted
    | Intent
    | Done
    | Decided
    | Undone
    | Held
    | MonitoringScheduled
    | Monitored
    | Moved
)
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="entry")])


class IllegalTransitionError(ValueError):
    """A deployment cannot go from its state to that one."""


class JournalView(Frozen):
    """What a journal's entries add up to."""

    opened: Opened
    entries: tuple[Entry, ...]

    @property
    def state(self) -> DeploymentState:
        """The deployment's state now."""
        moves = [entry.state for entry in self.entries if isinstance(entry, Moved)]
        return moves[-1] if moves else "running"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can change any more."""
        return self.state in TERMINAL

    @property
    def reason(self) -> str:
        """Why it is in its state; empty while it runs."""
        reasons = [entry.reason for entry in self.entries if isinstance(entry, Moved)]
        return reasons[-1] if reasons else ""

    @property
    def cause(self) -> str:
        """Why a rollback began; empty when none did."""
        causes = [e.reason for e in self.entries if isinstance(e, Moved) and e.state == "rolling_back"]
        return causes[0] if causes else ""

    @property
    def plan(self) -> Plan | None:
        """The plan, once there is one."""
        plans = [entry.plan for entry in self.entries if isinstance(entry, Planned)]
        return plans[-1] if plans else None

    @property
    def token(self) -> str | None:
        """The newest fence; None before the lock was taken."""
        tokens = [entry.token for entry in self.entries if isinstance(entry, Locked)]
        return tokens[-1] if tokens else None

    @property
    def intents(self) -> tuple[Intent, ...]:
        """Every intent, oldest first."""
        return tuple(entry for entry in self.entries if isinstance(entry, Intent))

    @property
    def touched(self) -> set[str]:
        """The instances that an intent names."""
        names = (getattr(intent.undo, "instance", None) for intent in self.intents)
        return {name for name in names if name is not None}

    @property
    def to_undo(self) -> tuple[Intent, ...]:
        """The intents not taken back yet, newest first."""
        undone = {entry.number for entry in self.entries if isinstance(entry, Undone)}
        return tuple(intent for intent in reversed(self.intents) if intent.number not in undone)

    @property
    def held(self) -> tuple[Held, ...]:
        """Undo steps that were refused because their target is dead."""
        return tuple(entry for entry in self.entries if isinstance(entry, Held))

    @property
    def gate(self) -> ChecklistReport | None:
        """The checklist as it was judged before; None: not yet, or without one."""
        reports = [entry.report for entry in self.entries if isinstance(entry, Gated)]
        return reports[-1] if reports else None

    @property
    def approval(self) -> Approved | None:
        """Who approved it; None when nobody did."""
        approvals = [entry for entry in self.entries if isinstance(entry, Approved)]
        return approvals[-1] if approvals else None

    @property
    def backups(self) -> tuple[BackedUp, ...]:
        """The backups taken before the rollout, oldest first."""
        return tuple(entry for entry in self.entries if isinstance(entry, BackedUp))

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The newest comparison with the baseline; empty before there is one."""
        made = [entry.comparisons for entry in self.entries if isinstance(entry, Compared)]
        return made[-1] if made else ()

    @property
    def monitoring(self) -> MonitoringScheduled | None:
        """The watch after the promotion, once its runs are known to Prefect."""
        scheduled = [entry for entry in self.entries if isinstance(entry, MonitoringScheduled)]
        return scheduled[-1] if scheduled else None

    @property
    def monitored(self) -> tuple[Monitored, ...]:
        """What each monitoring run saw, oldest first."""
        return tuple(entry for entry in self.entries if isinstance(entry, Monitored))

    def baseline(self, moment: Literal["before", "after"]) -> Baseline | None:
        """Return what was measured then; None: nothing was."""
        measured = [e.baseline for e in self.entries if isinstance(e, Measured) and e.moment == moment]
        return measured[-1] if measured else None

    def moved_at(self, state: DeploymentState) -> datetime | None:
        """Return when it first reached `state`; None if it never did."""
        times = [e.at for e in self.entries if isinstance(e, Moved) and e.state == state]
        return times[0] if times else None


def view(entries: Iterable[Entry]) -> JournalView:
    """Add up `entries`.

    Raises:
        ValueError: the first entry does not open a deployment.
    """
    read = tuple(entries)
    if not read or not isinstance(read[0], Opened):
        raise ValueError("a journal must begin with its opening entry")
    return JournalView(opened=read[0], entries=read)


def stamped(entry: Entry, at: datetime) -> Entry:
    """Return `entry` with the time it was written."""
    return entry.model_copy(update={"at": at})


def parse(text: bytes) -> tuple[Entry, ...]:
    """Read journal lines; a last line without its newline was torn by a crash and does not count."""
    whole = text[: text.rfind(b"\n") + 1]
    return tuple(ENTRY.validate_json(line) for line in whole.splitlines() if line.strip())


def line(entry: Entry) -> bytes:
    """Return `entry` as one journal line."""
    return ENTRY.dump_json(entry) + b"\n"


def check_transition(old: DeploymentState, new: DeploymentState) -> None:
    """Refuse a change of state that must not happen.

    Raises:
        IllegalTransitionError: `new` cannot follow `old`.
    """
    if new not in TRANSITIONS.get(old, frozenset()):
        raise IllegalTransitionError(f"a deployment that is {old} cannot become {new}")
