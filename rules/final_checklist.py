"""The final checklist: what of a deployment is shown by its journal to have gone as it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rules.checklist import ChecklistReport, judge
from rules.entries import Decided, Done, Noted
from rules.environment import Stage
from rules.final_items import FINAL_ITEMS
from rules.finding import Finding, Result
from rules.journal import JournalView
from rules.plan import DrainServer, ObserveBatch, Plan, RehearseSwitch, RejoinServer, Step, WatchSide
from rules.verdict import Outcome

__all__ = ["FINAL_ITEMS", "final_findings", "judge_final"]

_UNCHANGED = frozenset({"blocked", "aborted"})
_GOOD_ENDS = frozenset({"promoted", "completed", "superseded"})
_TAKEN_BACK = frozenset({"rolling_back", "rolled_back", "rollback_failed"})
_NOT_ENDED = Finding.unknown("it has not ended yet.")


def judge_final(view: JournalView, stage: Stage) -> ChecklistReport:
    """Return the final checklist of a deployment, from its journal alone.

    It may be asked for at any time: what has not come yet is unknown. A row that blocks says that the
    deployment has not gone as it should where it was deployed to; it stops nothing by itself.

    Args:
        view: the deployment's journal.
        stage: how strict to be; usually `view.opened.environment.stage`.
    """
    return judge(FINAL_ITEMS, final_findings(view), stage=stage)


def final_findings(view: JournalView) -> dict[str, Finding]:
    """Return what the journal says to each of `FINAL_ITEMS`, by the item's id."""
    return {f"final-{name}": find(view) for name, find in _FINDERS.items()}


# --- before ----------------------------------------------------------------------------------------


def _planned(view: JournalView) -> Finding:
    if view.plan is None:
        return _missing(view, "no plan was kept.")
    undoable = sum(step.undo is not None for step in view.plan.steps)
    return Finding.passed(f"{len(view.plan.steps)} steps, {undoable} of them with a way back.")


def _gate_open(view: JournalView) -> Finding:
    if view.gate is None:
        return _missing(view, "no checklist was judged.")
    blocking = ", ".join(check.id for check in view.gate.blocking)
    words = f"{view.gate.summary}{f' ({blocking})' if blocking else ''}."
    return Finding.judged(words, ok=not blocking)


def _approved(view: JournalView) -> Finding:
    if view.approval:
        words = f": {view.approval.words}" if view.approval.words else ""
        return Finding.passed(f"{view.approval.by}{words}.")
    if not view.opened.environment.needs_approval:
        return Finding.not_applicable(f"{view.opened.environment.name} needs no approval.")
    return _missing(view, "nobody approved it.")


def _baseline_measured(view: JournalView) -> Finding:
    before = view.baseline("before")
    if before is None:
        return _missing(view, "nothing was measured.")
    read = [reading.name for reading in before.readings if reading.status in ("ok", "absent")]
    unread = [reading.name for reading in before.readings if reading.name not in read]
    words = f"{len(read)} metrics over {before.window_s:g} s; without data: {', '.join(unread) or 'none'}."
    if read and view.opened.fleet.route and before.reading("error_ratio").status != "ok":
        return Finding.unknown(f"{words} Whether users had errors before is not known.")
    return Finding.judged(words, ok=bool(read))


def _backups_verified(view: JournalView) -> Finding:
    wanted = view.opened.environment.backups
    if not wanted:
        return Finding.not_applicable(f"{view.opened.environment.name} names no backups.")
    newest = {backup.taken.source: backup for backup in view.backups}
    missing = [source for source in wanted if source not in newest]
    bad = [
        f"{source} ({newest[source].verified.evidence})"
        for source in wanted
        if source in newest and newest[source].verified.result is not Result.PASSED
    ]
    taken = ", ".join(newest[source].taken.identity for source in wanted if source in newest) or "none"
    words = f"taken: {taken}; missing: {', '.join(missing) or 'none'}; not good: {', '.join(bad) or 'none'}."
    if missing and not bad:
        return _missing(view, words)
    return Finding.judged(words, ok=not bad)


def _team_told(view: JournalView) -> Finding:
    rows = [check for check in view.gate.checks if check.id == "team-notified"] if view.gate else []
    if not rows:
        return Finding.unknown("the checklist did not ask.")
    by = f" ({rows[0].result} by {rows[0].by})" if rows[0].by else ""
    words = f"{rows[0].evidence}{by}"
    match rows[0].result:
        case Result.PASSED | Result.ATTESTED:
            return Finding.passed(words)
        case Result.NOT_APPLICABLE | Result.WAIVED:
            return Finding.not_applicable(words)
        case Result.FAILED | Result.UNKNOWN:
            return Finding(result=rows[0].result, evidence=words)


# --- during ----------------------------------------------------------------------------------------


def _switch_rehearsed(view: JournalView) -> Finding:
    """A rolling update's rehearsal is its first batch: the same drain and rejoin that the others get."""
    plan = view.plan
    rehearsal = tuple(_rehearsal(plan)) if plan else ()
    if plan is None or not rehearsal:
        return _unless_unchanged(view, Finding.not_applicable("no traffic is switched by this plan."))
    missing = [step.title for step in rehearsal if step.number not in _done(view)]
    titles = "; ".join(step.title for step in rehearsal)
    words = f"{titles}; not done: {', '.join(missing) or 'none'}."
    return _missing(view, words) if missing else Finding.passed(words)


def _rehearsal(plan: Plan) -> Iterator[Step]:
    batches = [step.action.instances for step in plan.steps if isinstance(step.action, ObserveBatch)]
    for step in plan.steps:
        match step.action:
            case RehearseSwitch():
                yield step
            case DrainServer(instance=name) | RejoinServer(instance=name) if name in batches[0]:
                yield step
            case _:
                pass


def _steps_done(view: JournalView) -> Finding:
    if view.plan is None:
        return _missing(view, "there is no plan.")
    steps = [step for step in view.plan.steps if step.undo is not None]
    missing = [step.title for step in steps if step.number not in _done(view)]
    done = f"{len(steps) - len(missing)} of {len(steps)} steps that change something"
    words = f"{done}; not done: {', '.join(missing) or 'none'}."
    return _missing(view, words) if missing else Finding.passed(words)


def _verdicts_passed(view: JournalView) -> Finding:
    """Whether all watches passed; a batch goes on unless it is bad, which is less than shown to be good."""
    watches = tuple(_counted_watches(view))
    verdicts = {entry.title: entry.outcome for entry in view.entries if isinstance(entry, Decided)}
    outcomes = {step.title: verdicts.get(step.title) for step in watches} | verdicts
    if not outcomes:
        return _unless_unchanged(view, Finding.not_applicable("there are no requests to count by."))
    must_pass = {step.title for step in watches if isinstance(step.action, WatchSide)}
    words = "; ".join(f"{title}: {outcome or 'no verdict'}" for title, outcome in outcomes.items()) + "."
    reached = {title: outcome for title, outcome in outcomes.items() if outcome}
    not_passed = {title for title, outcome in reached.items() if outcome is not Outcome.PASS}
    if not_passed & must_pass or Outcome.FAIL in reached.values():
        return Finding.failed(words)
    if len(reached) < len(outcomes):
        return _missing(view, words)
    return Finding.unknown(words) if not_passed else Finding.passed(words)


def _counted_watches(view: JournalView) -> Iterator[Step]:
    """Yield the steps that end with a verdict; without a balancer batches are only probed."""
    for step in view.plan.steps if view.plan else ():
        is_batch = isinstance(step.action, ObserveBatch) and view.opened.fleet.route is not None
        if is_batch or isinstance(step.action, WatchSide):
            yield step


def _no_pause_open(view: JournalView) -> Finding:
    notes = [e for e in view.entries if isinstance(e, Noted) and e.about in ("paused", "resumed")]
    pauses = sum(note.about == "paused" for note in notes)
    if notes and notes[-1].about == "paused":
        return Finding.failed(f"paused by {notes[-1].by} and never resumed: {notes[-1].words}")
    return Finding.passed(f"{pauses} pauses, none left open.")


def _done(view: JournalView) -> frozenset[int]:
    return frozenset(entry.number for entry in view.entries if isinstance(entry, Done))


def _missing(view: JournalView, words: str) -> Finding:
    """What is not there has failed, unless it may still come, or was not needed as nothing was changed."""
    if view.state == "running":
        return Finding.unknown(words)
    return _unless_unchanged(view, Finding.failed(words))


def _unless_unchanged(view: JournalView, finding: Finding) -> Finding:
    """Where nothing was changed, there was nothing to do right or wrong."""
    if view.state in _UNCHANGED:
        return Finding.not_applicable(f"it was {view.state} before anything was changed.")
    return finding


# --- after -----------------------------------------------------------------------------------------


def _verified(view: JournalView) -> Finding:
    promoted_at = view.moved_at("promoted")
    if view.state in _TAKEN_BACK:
        was = f"promoted at {promoted_at:%F %T} UTC, then taken back" if promoted_at else "not promoted"
        return Finding.failed(f"{was}: {view.cause}")
    if promoted_at is None:
        return _unless_unchanged(view, _NOT_ENDED)
    return Finding.passed(f"read back as planned, and promoted at {promoted_at:%F %T} UTC; {view.state} now.")


def _compared(view: JournalView) -> Finding:
    comparisons = view.comparisons
    if not comparisons:
        if view.state in _GOOD_ENDS:
            return Finding.failed("it was promoted without a comparison.")
        return _unless_unchanged(view, _NOT_ENDED if view.state == "running" else _NOT_COMPARED)
    if back := [f"{c.name} {c.change}" for c in comparisons if c.takes_back]:
        return Finding.failed(f"{'; '.join(back)}.")
    blind = [c.name for c in comparisons if c.rolls_back and c.result in ("no_data", "provider_error")]
    worse = [f"{c.name} {c.change}" for c in comparisons if c.result == "worse"]
    words = f"{len(comparisons)} metrics; worse, but let pass: {'; '.join(worse) or 'none'}"
    if blind:
        return Finding.unknown(f"{words}; without data: {', '.join(blind)}.")
    return Finding.passed(f"{words}.")


_NOT_COMPARED = Finding.not_applicable("it was taken back before it came to a comparison.")


def _monitoring_scheduled(view: JournalView) -> Finding:
    scheduled = view.monitoring
    if scheduled:
        words = (
            f"{scheduled.runs} runs until {scheduled.until:%F %T} UTC, {len(view.monitored)} of them ended."
        )
        nobody_watched = view.state == "completed" and not view.monitored
        return Finding.judged(words, ok=scheduled.runs > 0 and not nobody_watched)
    if view.state in _GOOD_ENDS:
        return Finding.failed("no runs are known to Prefect.")
    if view.state in _TAKEN_BACK:
        return Finding.not_applicable("it was taken back: there is nothing to watch.")
    return _unless_unchanged(view, _NOT_ENDED)


def _rolled_back(view: JournalView) -> Finding:
    began_at = view.moved_at("rolling_back")
    if began_at is None:
        return Finding.not_applicable("it was not taken back.")
    ended_at = view.moved_at("rolled_back")
    if ended_at:
        took_s = (ended_at - began_at).total_seconds()
        return Finding.passed(f"read back as before, {took_s:.1f} s after it began to go back: {view.cause}")
    left = "; ".join(intent.undo.describe() for intent in view.to_undo) or "nothing"
    words = f"{view.reason} Not taken back: {left}."
    return Finding.unknown(words) if view.state == "rolling_back" else Finding.failed(words)


_FINDERS: dict[str, Callable[[JournalView], Finding]] = {
    "planned": _planned,
    "gate-open": _gate_open,
    "approved": _approved,
    "baseline-measured": _baseline_measured,
    "backups-verified": _backups_verified,
    "team-told": _team_told,
    "switch-rehearsed": _switch_rehearsed,
    "steps-done": _steps_done,
    "verdicts-passed": _verdicts_passed,
    "no-pause-open": _no_pause_open,
    "verified": _verified,
    "compared": _compared,
    "monitoring-scheduled": _monitoring_scheduled,
    "rolled-back": _rolled_back,
}
