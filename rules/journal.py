"""A deployment's journal: what its entries mean, and which state it is in.

Nothing is changed before its undo is in the journal. The journal alone is enough to undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rules.fleet import Fleet
from rules.frozen import Count, Frozen, Ratio
from rules.plan import Plan
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


class Moved(Stamped):
    """The deployment changed its state, and why."""

    entry: Literal["moved"] = "moved"
    state: DeploymentState
    reason: str
    by: str


Entry = Opened | Locked | Planned | Intent | Done | Decided | Undone | Held | Moved
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
