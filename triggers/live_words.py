"""What the view says of each state: how bad it is, what is going on, what a person can do next."""

from __future__ import annotations

from typing import Literal

from rules.entries import DeploymentState, Noted
from rules.journal import JournalView
from rules.record import record_of
from triggers.live_text import clean, clock

Tone = Literal["quiet", "working", "waiting", "good", "bad", "alarm"]

_TONES: dict[DeploymentState, Tone] = {
    "running": "working",
    "promoted": "good",
    "rolling_back": "bad",
    "completed": "good",
    "superseded": "quiet",
    "rolled_back": "bad",
    "rollback_failed": "alarm",
    "blocked": "bad",
    "aborted": "quiet",
}
_OVER = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED", ""})  # empty: Prefect has forgotten the run
_BEFORE = {
    "SCHEDULED": "waits for a worker to take it",
    "PENDING": "a worker starts it",
    "RUNNING": "the run has begun",
    "PAUSED": "waits for a person",
    "CANCELLING": "is being cancelled",
}
_PHASES = {
    "plan": "reading the system, making the plan",
    "checklist": "judging the checklist",
    "approval": "waiting for a person's approval",
    "baseline": "measuring what users have now",
    "backups": "taking backups and reading them back",
    "rollout": "setting out",
    "compare": "comparing with what users had before",
    "promote": "promoting",
}


#: What is said while a component of a release that has begun waits for a person.
COMPONENT_ASKS = "A component asks again: its plan is not the one that was approved with the release."


def tone_of(run_state: str, state: DeploymentState | Literal[""]) -> Tone:
    """Return how bad things are. A deployment that is still open while its run is over waits for help."""
    if not state:
        return "bad" if run_state in _OVER - {"COMPLETED"} else "quiet"
    if state == "running" and (run_state in _OVER or run_state in {"PAUSED", "CANCELLING"}):
        return "waiting"
    return _TONES[state]


def state_in_words(run_state: str, journal: JournalView | None, *, now: str) -> str:
    """Return what is going on.

    Args:
        run_state: Prefect's type of the flow run's state.
        journal: what is known of the deployment.
        now: the step, phase or message that stands for this moment; empty when there is none.
    """
    if journal is None:
        words = _BEFORE.get(run_state, f"the run is {run_state.lower() or 'forgotten by Prefect'}")
        return f"{words}: {now}" if now else words
    match journal.state:
        case "running":
            return _running(run_state, now)
        case "rolling_back":
            return f"taken back, newest first: {_taken_back(journal)}"
        case "promoted":
            return f"users have it; its way back stays armed{_watched(journal, run_state)}"
        case "completed":
            return "it stayed good; its way back is not armed any more"
        case "superseded":
            return "something newer is there; its way back is not armed any more"
        case "rolled_back":
            return f"verified to be as before{_took(journal)}"
        case "rollback_failed":
            return "between two states, and locked"
        case "blocked" | "aborted":
            return "nothing was changed"


def not_heard(away_s: float) -> str:
    """Return what it means that Prefect's API has not answered for so long."""
    return (
        f"Prefect's API has not answered for {clock(away_s)}; what is shown is from before. The deployment "
        "goes on, or takes itself back."
    )


def why(journal: JournalView | None) -> str:
    """Return why it is in its state; empty where that goes without saying."""
    if journal is None or journal.state in {"running", "promoted"}:
        return ""
    if journal.state == "rollback_failed" and journal.reason != journal.cause:
        return clean(f"{journal.cause} The way back failed: {journal.reason}")
    return clean(journal.cause or journal.reason)


def _running(run_state: str, now: str) -> str:
    if run_state in _OVER:
        run = f"its run is {run_state or 'forgotten'} by Prefect's word"
        return f"{run}; what it did is being taken back by its hook or by recover"
    if run_state == "CANCELLING":
        return "being cancelled: what it did is taken back"
    return _PHASES["approval"] if run_state == "PAUSED" else _PHASES.get(now, now)


def _taken_back(journal: JournalView) -> str:
    every, left = len(journal.intents), len(journal.to_undo)
    return f"{every - left} of {every} steps are back"


def _took(journal: JournalView) -> str:
    seconds = record_of(journal).rolled_back_s
    return "" if seconds is None else f", {clock(seconds)} after that was decided"


def _watched(journal: JournalView, run_state: str) -> str:
    scheduled = journal.monitoring
    if scheduled is None:
        return "" if run_state in _OVER else "; its monitoring is being scheduled"
    looks = f"{len(journal.monitored)} of {scheduled.runs} looks"
    return f" and it is watched until {scheduled.until:%F %H:%M} UTC ({looks})"


def newest_note(journal: JournalView, *about: str) -> Noted | None:
    """Return the newest note about one of these; None: there is none."""
    return next((e for e in reversed(journal.entries) if isinstance(e, Noted) and e.about in about), None)


def is_paused(journal: JournalView) -> bool:
    """Whether a person holds it back now."""
    newest = newest_note(journal, "paused", "resumed")
    return newest is not None and newest.about == "paused"


def approve_words(flow_run_id: str) -> str:
    """Return how a run that waits is answered."""
    return f"sovereign approve {flow_run_id[:8]} --by NAME, or with --refuse"


def next_step(flow_run_id: str, run_state: str, journal: JournalView | None) -> str:
    """Return what a person can do now, as a command line; empty when there is nothing to do."""
    if journal is None:
        return "is a worker up? prefect worker start --pool sovereign" if run_state == "SCHEDULED" else ""
    name = journal.opened.deployment
    match journal.state:
        case "running" if run_state == "PAUSED" and journal.intents == ():
            return approve_words(flow_run_id)
        case "running":
            word = "resume" if is_paused(journal) else "abort"
            return f"sovereign {word} {name} --by NAME --reason WHY"
        case "promoted":
            return f"to take it back: sovereign rollback {name} --reason WHY"
        case "rollback_failed":
            return f"mend the cause, then: sovereign rollback {name} --reason WHY"
        case "rolled_back":
            return f"mend the release; what was seen: sovereign show {name}"
        case "blocked":
            return "supply what is missing, or waive it by name in the file, and deploy again"
        case _:
            return ""
