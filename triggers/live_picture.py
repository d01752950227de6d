"""What is shown of a deployment: worked out from its journal alone, before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from rules.checklist import Check
from rules.entries import Compared, Decided, Done, Held, Intent, Measured
from rules.frozen import Frozen
from rules.journal import JournalView
from rules.plan import Plan, Step
from rules.verdict import Outcome
from triggers.live_notes import Banner, Look, Note, banners_of, notes_of
from triggers.live_text import clean
from triggers.live_traffic import Split, split_of, taken_out
from triggers.live_words import (
    Tone,
    approve_words,
    next_step,
    state_in_words,
    tone_of,
    why,
)

Status = Literal["done", "now", "to_come", "failed", "taken_back", "left"]
_WENT_WELL = frozenset({"promoted", "completed", "superseded"})
_NOTHING_DONE = frozenset({"blocked", "aborted"})


class Row(Frozen):
    """A step of the plan, or of the way back."""

    number: int
    title: str
    status: Status
    began: datetime | None = None
    took_s: float | None = None


class Phase(Frozen):
    """A part of the way of one deployment."""

    name: str
    status: Status


class Picture(Frozen):
    """All that is shown, in words and numbers; nothing depends on the terminal or the time of day."""

    title: str
    details: tuple[str, ...]
    names: tuple[str, ...]
    state: str
    tone: Tone
    words: str
    why: str = ""
    began: datetime | None = None
    ended: datetime | None = None
    phases: tuple[Phase, ...] = ()
    rows: tuple[Row, ...] = ()
    is_way_back: bool = False
    traffic: Split | None = None
    out: tuple[str, ...] = ()
    verdict: Decided | None = None
    gate: str = ""
    gate_rows: tuple[Check, ...] = ()
    banners: tuple[Banner, ...] = ()
    notes: tuple[Note, ...] = ()
    next_step: str = ""


def picture(look: Look) -> Picture:
    """Return what is shown of a deployment; right for any beginning of any journal."""
    journal = look.journal
    if journal is None:
        return _before_the_journal(look)
    opened, plan, walked = journal.opened, journal.plan, steps_walked(look)
    is_way_back = journal.state in {"rolling_back", "rolled_back", "rollback_failed"}
    rows = _way_back(journal) if is_way_back else _steps(journal, plan, walked)
    phases = _phases(journal, walked)
    return Picture(
        title=_title(journal),
        details=(*([plan.how] if plan else []), opened.environment.name),
        names=(opened.deployment, f"run {look.flow_run_id[:8]}"),
        state=journal.state,
        tone=tone_of(look.run_state, journal.state),
        words=state_in_words(look.run_state, journal, now=_now_in_words(phases, rows)),
        why=why(journal),
        began=opened.at,
        ended=journal.entries[-1].at if journal.is_terminal else journal.moved_at("promoted"),
        phases=phases,
        rows=rows,
        is_way_back=is_way_back,
        traffic=split_of(journal),
        out=taken_out(journal),
        verdict=next((e for e in reversed(journal.entries) if isinstance(e, Decided)), None),
        gate=journal.gate.summary if journal.gate else "",
        gate_rows=(*journal.gate.blocking, *journal.gate.warnings) if journal.gate else (),
        banners=tuple(banners_of(look)),
        notes=tuple(notes_of(journal)),
        next_step=approve_words(look.asked_run)
        if look.asked_run
        else next_step(look.flow_run_id, look.run_state, journal),
    )


def _before_the_journal(look: Look) -> Picture:
    return Picture(
        title="deployment",
        details=(),
        names=(f"run {look.flow_run_id[:8]}",),
        state=look.run_state.lower(),
        tone=tone_of(look.run_state, ""),
        words=state_in_words(look.run_state, None, now=clean(look.run_message)),
        began=look.since,
        banners=tuple(banners_of(look)),
        phases=tuple(_until_it_begins(look.run_state)),
        next_step=next_step(look.flow_run_id, look.run_state, None),
    )


def _until_it_begins(run_state: str) -> Iterator[Phase]:
    """Yield what stands for a run that has shown nothing yet, so that it can be seen to be waited for."""
    for name, states in (("worker", {"SCHEDULED"}), ("start", {"PENDING"}), ("plan", {"RUNNING", "PAUSED"})):
        is_now = run_state in states
        yield Phase(name=name, status="now" if is_now else "to_come")


def _title(journal: JournalView) -> str:
    plan = journal.plan
    if plan:
        return f"{plan.change.subject} {plan.change.release}"
    return clean(journal.opened.summary)


def steps_walked(look: Look) -> int:
    """Return how many of the plan's first steps are over, as far as anybody can tell."""
    journal = look.journal
    if journal is None or journal.plan is None:
        return 0
    steps = journal.plan.steps
    if journal.state in _WENT_WELL:
        return len(steps)
    over = look.steps_done
    numbers = {step.title: step.number for step in steps}
    for entry in journal.entries:
        match entry:
            case Intent():  # what is before it is over: steps are done one after the other
                over = max(over, entry.number)
            case Done():
                over = max(over, entry.number + 1)
            case Decided(outcome=Outcome.PASS) if entry.title in numbers:
                over = max(over, numbers[entry.title] + 1)
            case Compared() | Measured(moment="after"):
                over = len(steps)
            case _:
                pass
    return min(over, len(steps))


def _steps(journal: JournalView, plan: Plan | None, walked: int) -> tuple[Row, ...]:
    if plan is None or journal.state in _NOTHING_DONE:
        return ()
    began = {e.number: e.at for e in journal.entries if isinstance(e, Intent)}
    done = {e.number: e.at for e in journal.entries if isinstance(e, Done)}
    is_walking = journal.state == "running" and _has_set_out(journal, walked)
    # of steps that only read, no journal knows the beginning: it is the end of what came before
    ends = [e.at for e in journal.entries if isinstance(e, Intent | Done | Decided)]
    newest = max(ends, default=journal.entries[-1].at)

    def row(step: Step) -> Row:
        n = step.number
        status: Status = "done" if n < walked else "now" if n == walked and is_walking else "to_come"
        since = began.get(n) or (newest if status == "now" else None)
        took_s = (done[n] - began[n]).total_seconds() if n in done and n in began else None
        return Row(number=n, title=clean(step.title), status=status, began=since, took_s=took_s)

    return tuple(row(step) for step in plan.steps)


def _has_set_out(journal: JournalView, walked: int) -> bool:
    """Whether the rollout itself has begun: what comes before it is known by its own entries."""
    return walked > 0 or bool(journal.intents)


def _way_back(journal: JournalView) -> tuple[Row, ...]:
    """Return the steps to take back, newest first: that is the order in which it is done."""
    left = {intent.number for intent in journal.to_undo}
    held = {entry.number for entry in journal.entries if isinstance(entry, Held)}
    first = next(iter(journal.to_undo), None)

    def status(intent: Intent) -> Status:
        if intent.number not in left:
            return "taken_back"
        if journal.state == "rollback_failed":
            return "failed" if intent.number in held or intent == first else "left"
        return "now" if intent == first else "to_come"

    back_since = journal.moved_at("rolling_back")
    return tuple(
        Row(
            number=intent.number,
            title=clean(intent.undo.describe()),
            status=status(intent),
            began=back_since if status(intent) == "now" else None,
        )
        for intent in reversed(journal.intents)
    )


def _phases(journal: JournalView, walked: int) -> tuple[Phase, ...]:
    plan, environment = journal.plan, journal.opened.environment
    rollout_over = plan is not None and walked >= len(plan.steps) and bool(plan.steps)
    reached = {
        "plan": plan is not None,
        "checklist": journal.gate is not None,
        "approval": journal.approval is not None,
        "baseline": journal.baseline("before") is not None,
        "backups": bool(journal.backups),
        "rollout": rollout_over,
        "compare": bool(journal.comparisons),
    }
    wanted = {"approval": environment.needs_approval, "backups": bool(environment.backups)}
    set_out = _has_set_out(journal, walked)
    if journal.opened.component == "release":  # each component measures and compares for itself
        wanted |= {"baseline": False, "backups": False, "compare": False}
        reached["checklist"] = reached["approval"] or set_out
    names = [name for name in reached if reached[name] or wanted.get(name, True)]
    if set_out:  # an update flow alone has no checklist and no baseline
        at = names.index("rollout")
        names = [name for n, name in enumerate(names) if n >= at or reached[name]]
    if journal.state in _WENT_WELL:
        return tuple(Phase(name=name, status="done") for name in names if reached[name])
    is_running = journal.state == "running"
    # the backups are over with the first step only: how many there will be, the journal does not say
    over = [name for name in names if reached[name] and (name != "backups" or set_out)]
    now = next((name for name in names if name not in over), "promote")
    return tuple(
        Phase(
            name=name, status="done" if name in over else "now" if name == now and is_running else "to_come"
        )
        for name in (*names, "promote")
    )


def _now_in_words(phases: tuple[Phase, ...], rows: tuple[Row, ...]) -> str:
    row = next((row for row in rows if row.status == "now"), None)
    if row:
        return f"step {row.number + 1} of {len(rows)}: {row.title}"
    return next((phase.name for phase in phases if phase.status == "now"), "")
