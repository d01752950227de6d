"""The draft of a post-mortem: what the journal knows is filled in, what only people know is left to them."""

from __future__ import annotations

from datetime import datetime

from rules.entries import Compared, Decided
from rules.frozen import Frozen
from rules.incident import IncidentState
from rules.journal import JournalView
from rules.markdown import table
from rules.record import in_words, record_of
from rules.verdict import Outcome

_FOR_PEOPLE = "> **For people to fill in.**"
_FAILING = frozenset({Outcome.FAIL, Outcome.NO_DATA, Outcome.PROVIDER_ERROR, Outcome.HOLD})
_BAD_WATCHES = frozenset({"immediate", "delayed"})


class Durations(Frozen):
    """How long it took, in seconds; None: that did not happen, or the journal cannot tell.

    `detect_s` is from the first change to the first sign, `decide_s` from there to the decision to take it
    back, `restore_s` from there until the system was verified to be as before.
    """

    detect_s: float | None
    decide_s: float | None
    restore_s: float | None


def durations(view: JournalView) -> Durations:
    """Return how long it took to detect, to decide and to restore."""
    changed = view.intents[0].at if view.intents else None
    decided, restored = view.moved_at("rolling_back"), view.moved_at("rolled_back")
    # what was found without a watch, such as a step that failed, was decided upon at once
    sign = _first_sign(view) or decided
    return Durations(
        detect_s=_between(changed, sign),
        decide_s=_between(sign, decided),
        restore_s=_between(decided, restored),
    )


def _first_sign(view: JournalView) -> datetime | None:
    decided = view.moved_at("rolling_back")
    signs = [e.at for e in view.entries if isinstance(e, Decided) and e.outcome in _FAILING]
    signs += [window.at for window in view.monitored if window.action in _BAD_WATCHES]
    before = [at for at in signs if decided is None or at <= decided]
    return min(before, default=None)


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()


def post_mortem(view: JournalView, incident: IncidentState) -> str:
    """Return the post-mortem's draft as Markdown; times are UTC.

    Args:
        view: the deployment's journal.
        incident: its incident, with all that was done about it so far.
    """
    sections = {
        "Summary": _summary(view, incident),
        "Impact": _impact(incident),
        "Cause": _cause(view),
        "How long it took": _how_long(view, incident),
        "Timeline (UTC)": _timeline(view, incident),
        "What went well": _FOR_PEOPLE,
        "What did not go well": _FOR_PEOPLE,
        "Root cause": f"{_FOR_PEOPLE} The journal knows what was measured, not why.",
        "Action items": f"{_FOR_PEOPLE} Each with an owner and a date.\n\n"
        + table(("what", "who", "until"), [("", "", "")]),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    status = f"Draft, written when the incident was {incident.status}."
    return f"# Post-mortem: {incident.severity}, {incident.incident.title}\n\n{status}\n\n{body}"


def _summary(view: JournalView, incident: IncidentState) -> str:
    record, told = record_of(view), incident.incident
    what = (
        f"Release {record.release} of {record.target}" if record.release else f"A change of {record.target}"
    )
    how = f", {record.strategy}" if record.strategy else ""
    began = (
        f"{what}{how}, was begun in {record.environment} at {record.started_at:%F %T} and is {record.state}."
    )
    return f"{began} {told.what_happened}\n\n{told.left_in}"


def _impact(incident: IncidentState) -> str:
    told = incident.incident
    noticed = f"{told.scope}: {told.impact}".replace("_", " ")
    return f"{noticed}. {told.impact_in_words}"


def _cause(view: JournalView) -> str:
    signs = [e for e in view.entries if isinstance(e, Decided) and e.outcome in _FAILING]
    rows = [
        (sign.title, sign.outcome, _ratio(sign.canary_error_ratio), _ratio(sign.stable_error_ratio), reason)
        for sign in signs
        for reason in sign.reasons
    ]
    parts = [view.cause or view.reason]
    if rows:
        head = ("watched", "verdict", "errors of the new release", "of stable", "value and threshold")
        parts.append(table(head, rows))
    if worse := _worse(view):
        parts.append(table(("metric", "before", "after", "may move by", "in words"), worse))
    parts += [
        f"- monitoring run {window.number + 1}: {reason}"
        for window in view.monitored
        if window.action in _BAD_WATCHES
        for reason in window.reasons
    ]
    return "\n\n".join(part for part in parts if part)


def _worse(view: JournalView) -> list[tuple[str, str, str, str, str]]:
    compared = [entry for entry in view.entries if isinstance(entry, Compared)]
    return [
        (
            one.name,
            "no data" if one.before is None else f"{one.before:.3g}",
            "no data" if one.after is None else f"{one.after:.3g}",
            "" if one.before is None else f"{one.tolerance.allowed(one.before):.3g}",
            one.change,
        )
        for entry in compared[-1:]
        for one in entry.comparisons
        if one.result == "worse"
    ]


def _ratio(value: float | None) -> str:
    return "no requests" if value is None else f"{value:.2%}"


def _how_long(view: JournalView, incident: IncidentState) -> str:
    took = durations(view)
    resolved = _between(incident.opened_at, incident.at_of("resolved"))
    rows = [
        ("to detect: from the first change to the first sign", took.detect_s),
        ("to decide: from the first sign to the decision to take it back", took.decide_s),
        ("to restore: from the decision until verified as before", took.restore_s),
        ("to resolve: from the opening of the incident to its end", resolved),
    ]
    return table(("", ""), [(what, _seconds(value)) for what, value in rows])


def _seconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.1f} s"


def _timeline(view: JournalView, incident: IncidentState) -> str:
    seen = [(entry.at, "journal", in_words(entry)) for entry in view.entries]
    done = [(e.at, "incident", f"**{e.event}** by {e.by}: {e.words}") for e in incident.events]
    # sorted by time alone: what has one time keeps its order
    rows = sorted([*seen, *done], key=lambda row: row[0])
    return table(("time", "from", "what"), [(f"{at:%F %T}", where, what) for at, where, what in rows])
