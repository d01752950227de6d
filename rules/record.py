"""What is kept of a deployment, and how a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from rules.checklist import ChecklistReport
from rules.database_plan import ApplyMigration
from rules.entries import (
    Approved,
    BackedUp,
    Compared,
    Decided,
    DeploymentState,
    Done,
    Entry,
    Gated,
    Held,
    Intent,
    Locked,
    Measured,
    Monitored,
    MonitoringScheduled,
    Moved,
    Noted,
    Opened,
    Planned,
    Undone,
)
from rules.frozen import Frozen
from rules.journal import JournalView
from rules.markdown import cell
from rules.plan import Plan
from rules.release import Release
from rules.release_actions import DeployComponent

_SHOWN_ROWS = 25


class DeploymentRecord(Frozen):
    """How a deployment ended, and when what happened. Times are UTC."""

    deployment: str
    target: str
    component: str
    release: str
    strategy: str
    environment: str = "development"
    stage: str = "development"
    change_id: str = ""
    state: DeploymentState
    reason: str
    started_at: datetime
    ended_at: datetime
    promoted_at: datetime | None = None
    rollback_began_at: datetime | None = None
    windows_watched: int | None = Field(
        default=None, description="monitoring runs that ended; None: an older record, which does not say"
    )
    left_to_undo: tuple[str, ...] = ()
    part_of: str = Field(default="", description="the release that it is a component of; empty: none")
    parts: tuple[str, ...] = Field(
        default=(), description="of a release: the deployments of its components, in order"
    )
    later: tuple[str, ...] = Field(
        default=(), description="of a release: components that are deployed after the bake, by themselves"
    )

    @property
    def rolled_back_s(self) -> float | None:
        """Seconds from the decision to take it back until that was verified; None if it never was."""
        if self.rollback_began_at is None or self.state != "rolled_back":
            return None
        return (self.ended_at - self.rollback_began_at).total_seconds()


def record_of(journal: JournalView) -> DeploymentRecord:
    """Return the record that a journal adds up to."""
    plan = journal.plan
    return DeploymentRecord(
        deployment=journal.opened.deployment,
        target=journal.opened.target,
        component=journal.opened.component,
        release=plan.change.release if plan else "",
        strategy=plan.how if plan else "",
        environment=journal.opened.environment.name,
        stage=journal.opened.environment.stage,
        change_id=plan.change.id if plan else "",
        state=journal.state,
        reason=journal.cause or journal.reason,
        started_at=journal.opened.at,
        ended_at=journal.entries[-1].at,
        promoted_at=journal.moved_at("promoted"),
        rollback_began_at=journal.moved_at("rolling_back"),
        windows_watched=len(journal.monitored),
        left_to_undo=tuple(intent.undo.describe() for intent in journal.to_undo),
        part_of=journal.opened.part_of,
        parts=_parts(plan),
        later=_later(plan),
    )


def _parts(plan: Plan | None) -> tuple[str, ...]:
    actions = (step.action for step in plan.steps) if plan else ()
    return tuple(action.deployment for action in actions if isinstance(action, DeployComponent))


def _later(plan: Plan | None) -> tuple[str, ...]:
    change = plan.change if plan else None
    return tuple(one.name for one in change.after_bake) if isinstance(change, Release) else ()


def in_words(entry: Entry) -> str:
    """Return one journal entry as a short sentence."""
    match entry:
        case Opened():
            return f"opened: {entry.summary}"
        case Locked():
            return "took the lock"
        case Planned():
            return f"planned {len(entry.plan.steps)} steps"
        case Intent():
            return f"step {entry.number + 1}: {entry.title} (way back: {entry.undo.describe()})"
        case Done():
            return f"step {entry.number + 1} done"
        case Decided():
            return f"{entry.title}: **{entry.outcome}**, {'; '.join(entry.reasons)}"
        case Undone():
            return f"step {entry.number + 1} taken back"
        case Held():
            return f"step {entry.number + 1} not taken back: {entry.reason}"
        case Moved():
            return f"**{entry.state}** by {entry.by}: {entry.reason}"
        case _:
            return _around_in_words(entry)


def _around_in_words(
    entry: Gated | Approved | Measured | Compared | BackedUp | Noted | MonitoringScheduled | Monitored,
) -> str:
    """Return an entry that stands around the steps: what was checked, measured, backed up and watched."""
    match entry:
        case Gated():
            return f"checklist: {entry.report.summary}"
        case Approved():
            return f"approved by {entry.by}{': ' if entry.words else ''}{entry.words}"
        case Measured():
            return f"measured {entry.moment} the rollout, over {entry.baseline.window_s:g} s"
        case Compared():
            return f"compared with the baseline: {_compared(entry)}"
        case BackedUp():
            return f"backed up: {entry.taken.identity}; {entry.verified.result}, {entry.verified.evidence}"
        case Noted():
            return f"{entry.about.replace('_', ' ')} ({entry.by}): {entry.words}"
        case MonitoringScheduled():
            return f"{entry.runs} monitoring runs until {entry.until:%F %T} UTC"
        case Monitored():
            return f"monitoring run {entry.number + 1}: **{entry.action}**, {'; '.join(entry.reasons)}"


def _compared(entry: Compared) -> str:
    worse = [f"{c.name} {c.change}" for c in entry.comparisons if c.result == "worse"]
    return f"worse: {'; '.join(worse)}" if worse else "nothing is worse"


def progress_page(deployment: str, entries: Sequence[Entry]) -> str:
    """Return the newest entries of a journal as a Markdown page, newest first."""
    newest = list(entries[-_SHOWN_ROWS:])
    rows = [f"| {entry.at:%H:%M:%S} | {cell(in_words(entry))} |" for entry in reversed(newest)]
    hidden = len(entries) - len(newest)
    tail = [f"\n{hidden} earlier entries are not shown."] if hidden else []
    return "\n".join([f"# {deployment}", "", "| time (UTC) | what |", "|---|---|", *rows, *tail])


def plan_page(plan: Plan) -> str:
    """Return a plan as a Markdown page: each step with its way back, and what users will notice."""
    notice = "; ".join(plan.interruptions) or "nothing"
    notes = [*_statements(plan), *(f"\n{note}" for note in plan.notes)]
    head = [
        f"# {plan.change.target}: release {plan.change.release}, {plan.how}",
        "",
        f"Users will notice: {notice}.",
        "",
        "| # | step | way back |",
        "|---|---|---|",
    ]
    rows = [
        f"| {s.number + 1} | {cell(s.title)} | {cell(s.undo.describe()) if s.undo else 'reads only'} |"
        for s in plan.steps
    ]
    return "\n".join([*head, *(rows or ["| | nothing to do: the release is in place already | |"]), *notes])


def _statements(plan: Plan) -> list[str]:
    """Return the very SQL that will be run, and its way down, for whoever approves it."""
    migrations = [step.action.migration for step in plan.steps if isinstance(step.action, ApplyMigration)]
    return [
        "\n".join(
            [
                f"\n## {one.revision}\n",
                "```sql",
                *(f"{statement.strip()};" for statement in one.up),
                "-- its way down" if one.down else "-- it has no way down",
                *(f"{statement.strip()};" for statement in one.down or ()),
                "```",
            ]
        )
        for one in migrations
    ]


def checklist_page(report: ChecklistReport) -> str:
    """Return a checklist as a Markdown page: what blocks first, then every row."""
    head = f"# Checklist: {'blocked' if report.blocking else 'the gate is open'}\n\n{report.summary}."
    needed = [f"- {check.in_words}" for check in report.blocking]
    rows = [
        f"| {c.section} | {c.id} | {'**' if c.blocks else ''}{c.result.replace('_', ' ')}"
        f"{'**' if c.blocks else ''}{f' by {cell(c.by)}' if c.by else ''} | {cell(c.evidence)} |"
        for c in report.checks
    ]
    table = ["| section | row | result | evidence |", "|---|---|---|---|", *rows]
    missing = ["What is missing, and how to supply it:", "", *needed, ""] if needed else []
    return "\n".join([head, "", *missing, *table])


def decision_page(journal: JournalView) -> str:
    """Return every verdict of a deployment as a Markdown page."""
    rows = [
        f"| {e.at:%H:%M:%S} | {cell(e.title)} | **{e.outcome}** "
        f"| {_side(e.canary_requests, e.canary_error_ratio)} "
        f"| {_side(e.stable_requests, e.stable_error_ratio)} "
        f"| {cell('; '.join(e.reasons))} |"
        for e in journal.entries
        if isinstance(e, Decided)
    ]
    head = ["| time (UTC) | watched | verdict | new release | stable | why |", "|---|---|---|---|---|---|"]
    return "\n".join([f"# Decisions of {journal.opened.deployment}", "", *head, *rows])


def _side(requests: int, error_ratio: float | None) -> str:
    return "no requests" if error_ratio is None else f"{error_ratio:.2%} of {requests:,} failed"


def record_page(journal: JournalView) -> str:
    """Return the record of a deployment as a Markdown page."""
    record = record_of(journal)
    taken_s = (record.ended_at - record.started_at).total_seconds()
    rows = {
        "state": f"**{record.state}**",
        "why": record.reason,
        "what": f"{record.target}, release {record.release}, {record.strategy}",
        "began": f"{record.started_at:%F %T} UTC",
        "took": f"{taken_s:.1f} s",
    }
    if record.part_of:
        rows["part of"] = record.part_of
    if record.parts:
        rows["components, in order"] = "; ".join(record.parts)
    if record.later:
        rows["deployed by themselves after the bake"] = "; ".join(record.later)
    if record.rolled_back_s is not None:
        rows["rolled back and verified in"] = f"{record.rolled_back_s:.1f} s"
    if record.left_to_undo and record.state == "rollback_failed":
        rows["not taken back"] = "; ".join(record.left_to_undo)
        rows["next"] = f"mend the cause, then run roll-back for {record.deployment}; the target stays locked"
    body = [f"| {key} | {cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"# {record.deployment}", "", "| | |", "|---|---|", *body])
