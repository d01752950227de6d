"""Incidents: what a person should know of a deployment, and what has been done about it since."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rules.frozen import Frozen
from rules.impact import Impact, Reach, Scope, reach
from rules.journal import JournalView
from rules.markdown import table
from rules.severity import RESPONSES, Response, Severity, act_by, severity_once_taken_back

__all__ = ["Incident", "IncidentEvent", "IncidentState", "Severity", "incident_of", "incident_state"]


class Incident(Frozen):
    """Something a person should know, with what to do next."""

    deployment: str
    target: str
    severity: Severity
    scope: Scope
    impact: Impact
    impact_in_words: str
    title: str
    what_happened: str
    left_in: str
    next_step: str


def incident_of(journal: JournalView) -> Incident | None:
    """Return what a person should know about a deployment; None when there is nothing to tell."""
    far = reach(journal)
    how_bad = _severity_of(journal, far)
    if how_bad is None:
        return None
    left_in, next_step = _left(journal)
    return Incident(
        deployment=journal.opened.deployment,
        target=journal.opened.target,
        severity=how_bad,
        scope=far.scope,
        impact=far.impact,
        impact_in_words=far.in_words,
        title=f"{journal.opened.deployment} is {journal.state}",
        what_happened=journal.cause or journal.reason,
        left_in=left_in,
        next_step=next_step,
    )


def _severity_of(journal: JournalView, far: Reach) -> Severity | None:
    match journal.state:
        case "rollback_failed":
            return Severity.P0  # whoever notices it now: nothing can be said of what comes next
        case "rolled_back":
            return severity_once_taken_back(far.scope, far.impact)
        case "blocked":
            return Severity.P3
        case "aborted":
            return None if _had_nothing_to_do(journal) else Severity.P3
        case "running" | "promoted" | "rolling_back" | "completed" | "superseded":
            return None


def _had_nothing_to_do(journal: JournalView) -> bool:
    """Whether it ended because the release was there already, or another deployment had the target."""
    return journal.token is None or (journal.plan is not None and not journal.plan.steps)


def _left(journal: JournalView) -> tuple[str, str]:
    """Return what state things were left in, and what to do next."""
    deployment, target = journal.opened.deployment, journal.opened.target
    match journal.state:
        case "rollback_failed":
            return (
                f"{target} is between two states and stays locked. {journal.reason}",
                f"Mend the cause, then run roll-back for {deployment}.",
            )
        case "rolled_back":
            return (
                f"{target} is verified to be as before.",
                "See the decisions and the journal, mend the release, deploy it again.",
            )
        case _:
            return f"{target} was not changed.", "Supply what is missing and deploy again."


EventKind = Literal["opened", "communicated", "updated", "mitigated", "resolved"]
Status = Literal["open", "mitigated", "resolved"]
#: From each status, the events that may come next. Also what is over may still be communicated.
_NEXT: Mapping[Status, frozenset[EventKind]] = {
    "open": frozenset({"communicated", "updated", "mitigated", "resolved"}),
    "mitigated": frozenset({"communicated", "updated", "resolved"}),
    "resolved": frozenset({"communicated"}),
}
#: What its issue says; that people were told is nothing to read there.
_IN_ISSUE = frozenset({"updated", "mitigated", "resolved"})


class IncidentEvent(Frozen):
    """Something was done about an incident: by whom, and what, in words."""

    event: EventKind
    at: datetime
    by: str
    words: str
    incident: Incident | None = Field(default=None, description="what was opened; only in `opened`")
    channel: Literal["people", "issue"] | None = Field(
        default=None, description="how it was communicated: by message, or as an issue"
    )
    url: str = Field(default="", description="where the issue is")


_EVENT: TypeAdapter[IncidentEvent] = TypeAdapter(IncidentEvent)


class IllegalEventError(ValueError):
    """That cannot happen to an incident in its status."""


class IncidentState(Frozen):
    """What an incident's events add up to."""

    incident: Incident
    events: Annotated[tuple[IncidentEvent, ...], Field(min_length=1)]

    @property
    def deployment(self) -> str:
        """The deployment that it is about."""
        return self.incident.deployment

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.incident.severity

    @property
    def response(self) -> Response:
        """What its severity asks for."""
        return RESPONSES[self.severity]

    @property
    def status(self) -> Status:
        """How far it is."""
        if self.at_of("resolved"):
            return "resolved"
        return "mitigated" if self.at_of("mitigated") else "open"

    def at_of(self, kind: EventKind) -> datetime | None:
        """Return when that first happened; None: not yet."""
        return next((event.at for event in self.events if event.event == kind), None)

    @property
    def opened_at(self) -> datetime:
        """When it was opened."""
        return self.events[0].at

    @property
    def issue_url(self) -> str:
        """Where its issue is; empty while there is none."""
        return next((event.url for event in reversed(self.events) if event.url), "")

    @property
    def issue_number(self) -> int | None:
        """The number of its issue, by its address; None: there is no issue, or its address has none."""
        found = re.search(r"/issues/(\d+)/?$", self.issue_url)
        return int(found[1]) if found else None

    @property
    def not_in_issue(self) -> tuple[IncidentEvent, ...]:
        """What has become of it since its issue was opened or last written in, oldest first."""
        written = [number for number, event in enumerate(self.events) if event.channel == "issue"]
        since = self.events[written[-1] + 1 :] if written else ()
        return tuple(event for event in since if event.event in _IN_ISSUE)

    @property
    def people_are_told(self) -> bool:
        """Whether a message about it was accepted."""
        return any(event.channel == "people" for event in self.events)

    @property
    def act_by(self) -> datetime:
        """Until when somebody must have acted."""
        return act_by(self.severity, self.opened_at)

    @property
    def resolve_by(self) -> datetime:
        """Until when it must be resolved: never before it must be acted on."""
        return max(self.act_by, self.opened_at + timedelta(seconds=self.response.resolve_within_s))

    @property
    def next_update_by(self) -> datetime | None:
        """Until when people must hear of it again; None once it is resolved."""
        if self.status == "resolved":
            return None
        return self.events[-1].at + timedelta(seconds=self.response.update_every_s)

    @property
    def post_mortem_by(self) -> datetime | None:
        """Until when the post-mortem is due; None where none is asked for."""
        within_s = self.response.post_mortem_within_s
        return None if within_s is None else self.opened_at + timedelta(seconds=within_s)

    @property
    def next_step(self) -> str:
        """What a person should do now."""
        if self.status == "resolved":
            due = f" by {self.post_mortem_by:%F %T} UTC" if self.post_mortem_by else ""
            return f"Complete the post-mortem{due}." if due else "Nothing."
        then = f"Then run update-incident for {self.deployment} with status resolved."
        return f"{self.incident.next_step} {then}"


def incident_state(events: Iterable[IncidentEvent]) -> IncidentState | None:
    """Add up `events`; None when there are none.

    Raises:
        IllegalEventError: the first one opens nothing, or one follows that its status does not allow.
    """
    state: IncidentState | None = None
    for event in events:
        state = after(state, event)
    return state


def after(state: IncidentState | None, event: IncidentEvent) -> IncidentState:
    """Return what an incident is after one more event; opening, mitigating and resolving twice is once.

    Raises:
        IllegalEventError: its status does not allow that.
    """
    if state is None:
        if event.event != "opened" or event.incident is None:
            raise IllegalEventError(f"an incident must be opened before it is {event.event}")
        return IncidentState(incident=event.incident, events=(event,))
    if event.event in {"opened", "mitigated", "resolved"} and state.at_of(event.event):
        return state
    if event.event not in _NEXT[state.status]:
        raise IllegalEventError(
            f"the incident of {state.deployment} is {state.status} and cannot be {event.event} any more"
        )
    return state.model_copy(update={"events": (*state.events, event)})


def parse_events(text: bytes) -> tuple[IncidentEvent, ...]:
    """Read event lines; a last line without its newline was torn by a crash and does not count."""
    whole = text[: text.rfind(b"\n") + 1]
    return tuple(_EVENT.validate_json(line) for line in whole.splitlines() if line.strip())


def event_line(event: IncidentEvent) -> bytes:
    """Return `event` as one line."""
    return _EVENT.dump_json(event) + b"\n"


def issue_comment(state: IncidentState) -> str:
    """Return what an incident's issue does not say yet, as Markdown; empty when there is nothing."""
    said = [f"**{e.event}** by {e.by}, {e.at:%F %T} UTC: {e.words}" for e in state.not_in_issue]
    return "\n\n".join([*said, f"**Next.** {state.next_step}"]) if said else ""


def status_page(state: IncidentState) -> str:
    """Return an incident as a Markdown page: what happened, by when what is due, and what was done."""
    incident = state.incident
    update_by, post_mortem_by = state.next_update_by, state.post_mortem_by
    due = [("act", state.act_by), ("resolve", state.resolve_by)]
    due += [("tell people again", update_by)] if update_by else []
    due += [("complete the post-mortem", post_mortem_by)] if post_mortem_by else []
    facts = [
        ("status", f"**{state.status}**"),
        ("who notices what", f"{incident.scope}: {incident.impact}".replace("_", " ")),
        ("in numbers", incident.impact_in_words),
        ("asked for", state.response.in_words),
        *((what, f"by {by:%F %T} UTC") for what, by in due),
        *([("issue", state.issue_url)] if state.issue_url else []),
    ]
    timeline = [(f"{event.at:%F %T}", event.event, event.by, event.words) for event in state.events]
    return "\n\n".join(
        [
            f"# {incident.severity}: {incident.title}",
            f"**What happened.** {incident.what_happened}",
            f"**Left in.** {incident.left_in}",
            f"**Next.** {state.next_step}",
            table(("", ""), facts),
            table(("time (UTC)", "what", "by", "words"), timeline),
        ]
    )
