"""A deployment's journal: what its entries add up to, and which state it is in.

Nothing is changed before its undo is in the journal. The journal alone is enough to undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from rules.baseline import Baseline, Comparison
from rules.checklist import ChecklistReport
from rules.entries import (
    Approved,
    BackedUp,
    Compared,
    DeploymentState,
    Entry,
    Gated,
    Held,
    Intent,
    Locked,
    Measured,
    Monitored,
    MonitoringScheduled,
    Moved,
    Opened,
    Planned,
    Undone,
)
from rules.frozen import Frozen
from rules.plan import Plan

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


def check_transition(old: DeploymentState, new: DeploymentState) -> None:
    """Refuse a change of state that must not happen.

    Raises:
        IllegalTransitionError: `new` cannot follow `old`.
    """
    if new not in TRANSITIONS.get(old, frozenset()):
        raise IllegalTransitionError(f"a deployment that is {old} cannot become {new}")
