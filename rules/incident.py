"""How bad it is: the severity of what a deployment ended in."""

from __future__ import annotations

from enum import StrEnum

from rules.frozen import Frozen
from rules.journal import DeploymentState, JournalView


class Severity(StrEnum):
    """P0 wakes a person now; P3 is read in the morning."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"
    P3 = "P3"


class Incident(Frozen):
    """Something a person should know, with what to do next."""

    severity: Severity
    title: str
    what_happened: str
    left_in: str
    next_step: str


def severity(state: DeploymentState) -> Severity | None:
    """Return how bad it is that a deployment is in `state`; None when there is nothing to tell."""
    match state:
        case "rollback_failed":
            return Severity.P0
        case "rolled_back":
            return Severity.P2
        case "blocked":
            return Severity.P3
        case "running" | "promoted" | "rolling_back" | "completed" | "superseded" | "aborted":
            return None


def incident_of(journal: JournalView) -> Incident | None:
    """Return what a person should know about a deployment; None when there is nothing to tell."""
    how_bad = severity(journal.state)
    if how_bad is None:
        return None
    deployment, target = journal.opened.deployment, journal.opened.target
    left_in, next_step = {
        Severity.P0: (
            f"{target} is between two states and stays locked. {journal.reason}",
            f"Mend the cause, then run roll-back for {deployment}.",
        ),
        Severity.P2: (
            f"{target} is verified to be as before.",
            "See the decisions and the journal, mend the release, deploy it again.",
        ),
    }.get(how_bad, (f"{target} was not changed.", "Supply what is missing and deploy again."))
    return Incident(
        severity=how_bad,
        title=f"{deployment} is {journal.state}",
        what_happened=journal.cause or journal.reason,
        left_in=left_in,
        next_step=next_step,
    )
