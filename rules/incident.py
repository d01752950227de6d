"""How bad it is: the severity of what a deployment ended in."""

from __future__ import annotations

from enum import StrEnum

from rules.frozen import Frozen
from rules.journal import DeploymentState


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


def severity(state: DeploymentState, *, users_served: bool) -> Severity | None:
    """Return how bad an end in `state` is; None when there is nothing to tell.

    Args:
        state: what the deployment ended in.
        users_served: whether at least one healthy instance gets the traffic now.
    """
    match state:
        case "rollback_failed":
            return Severity.P0
        case "rolled_back":
            return Severity.P2 if users_served else Severity.P0
        case "blocked" | "aborted":
            return Severity.P3
        case "running" | "promoted" | "rolling_back" | "completed" | "superseded":
            return None
