"""What becomes of a release as its components' deployments go on: all of them stay, or all are taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from rules.entries import DeploymentState
from rules.environment import Monitoring
from rules.journal import JournalView
from rules.release import Release
from rules.release_actions import TakeBackDeployment

#: Nothing of the component is changed: it was taken back, never came that far, or was in place already.
NOT_CHANGED: frozenset[DeploymentState] = frozenset({"rolled_back", "aborted", "blocked"})
#: Its process is gone or at work: nothing follows from that yet.
_UNDER_WAY: frozenset[DeploymentState] = frozenset({"running", "rolling_back"})
#: A component that was deployed is one of these; one that was in place already has ended `aborted`.
_STANDS: frozenset[DeploymentState] = frozenset({"promoted", "completed", "aborted"})


class Decision(NamedTuple):
    """What is done about a promoted release now, and why."""

    what: Literal["keep", "complete", "supersede", "take_back"]
    why: str = ""


def release_of(view: JournalView) -> Release | None:
    """Return the release that a deployment is about; None: it is about one component, or not planned yet."""
    change = view.plan.change if view.plan else None
    return change if isinstance(change, Release) else None


def parts_of(view: JournalView) -> dict[str, str]:
    """Return component -> id of its deployment for each that a release has begun with, oldest first."""
    steps = (intent.undo for intent in view.intents)
    return {undo.component: undo.deployment for undo in steps if isinstance(undo, TakeBackDeployment)}


def armed_s(policy: Monitoring) -> float:
    """Return for how many seconds after its promotion a deployment can be taken back."""
    return policy.for_s + 2 * policy.probe_every_s


def decide(states: Mapping[str, DeploymentState], *, is_over: bool) -> Decision:
    """Return what follows for a promoted release from the states of its components.

    Args:
        states: component -> state of its deployment, or of the newest one that continues it.
        is_over: whether the time is over in which it can be taken back.
    """
    superseded = _those(states, "superseded")
    if superseded:
        return Decision("supersede", f"{superseded} was deployed anew.")
    if set(states.values()) & _UNDER_WAY:
        return Decision("keep")
    # their times end together: what is left when that was cut short is over as well
    is_over = is_over or bool(_those(states, "completed"))
    for name, state in states.items():
        if state in ("rolled_back", "rollback_failed") and not is_over:
            return Decision("take_back", f"Its component {name} is {state}.")
    if is_over:
        return Decision("complete", "Its time is over, and its undo is disarmed.")
    return Decision("keep")


def _those(states: Mapping[str, DeploymentState], wanted: DeploymentState) -> str:
    return ", ".join(name for name, state in states.items() if state == wanted)


def fallen(states: Mapping[str, DeploymentState]) -> str:
    """Say which of the deployed components do not stand any more; empty: all do.

    Args:
        states: component -> state, of those whose deployment ended well.
    """
    return ", ".join(f"{name} is {state}" for name, state in states.items() if state not in _STANDS)


def why_not_back(states: Mapping[str, DeploymentState]) -> str:
    """Say which components of a promoted release cannot be taken back any more; empty: all can."""
    lost = ("superseded", "completed")
    return ", ".join(f"{name} is {state}" for name, state in states.items() if state in lost)
