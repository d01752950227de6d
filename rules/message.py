"""What people are told about a deployment: what happened, which state it is in, what to do next."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal

from rules.frozen import Frozen
from rules.incident import incident_of
from rules.journal import JournalView

MessageSeverity = Literal["info", "success", "warning", "failure"]

_LONGEST_TITLE = 120
_LONGEST_FACT = 600
#: Looked through for secrets: what is cut off after that never goes out, and an endless text costs no time.
_LONGEST_READ = 20_000
#: What looks like a secret in words that came from elsewhere, such as the end of a command's output.
_SECRETS = (
    (re.compile(r"(\w[\w+.-]{0,30}://)[^\s/@]{1,500}@"), r"\1***@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|token|api[_-]?key)[\"']?\s{0,9}[=:]\s{0,9})"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        "***",
    ),
    (re.compile(r"AGE-SECRET-KEY-1[A-Z0-9]+"), "***"),
)


class Event(StrEnum):
    """What a message is about."""

    PLANNED = "planned"
    APPROVAL_NEEDED = "approval_needed"
    STARTED = "started"
    HELD = "held"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    BLOCKED = "blocked"
    ABORTED = "aborted"
    MONITORING_ENDED = "monitoring_ended"
    ROLLBACK_PROPOSED = "rollback_proposed"
    INCIDENT_OPENED = "incident_opened"
    INCIDENT_UPDATED = "incident_updated"
    INCIDENT_RESOLVED = "incident_resolved"


class Message(Frozen):
    """One message; `body` is Markdown, `title` plain text of one line."""

    title: str
    body: str
    severity: MessageSeverity


class _Words(Frozen):
    """What is said of an event: its severity, its name, the state things are in, what to do next."""

    severity: MessageSeverity
    name: str
    state: str
    next_step: str


_WORDS = {
    Event.PLANNED: _Words(
        severity="info",
        name="Planned",
        state="Nothing was changed yet.",
        next_step="Nothing; the start and the end are told.",
    ),
    Event.APPROVAL_NEEDED: _Words(
        severity="warning",
        name="Approval needed",
        state="Nothing was changed yet; the deployment waits.",
        next_step="Read plan and checklist of the flow run in Prefect, then approve or refuse there.",
    ),
    Event.STARTED: _Words(
        severity="info",
        name="Started",
        state="It is being changed step by step; the way back of each step is written down before it.",
        next_step="Nothing; the end is told.",
    ),
    Event.HELD: _Words(
        severity="warning",
        name="Held",
        state="Traffic stays as it is; nothing more is changed meanwhile.",
        next_step="Mend what it waits for; if that takes too long, the environment's policy decides.",
    ),
    Event.PROMOTED: _Words(
        severity="success",
        name="Promoted",
        state="The new release has all the traffic; it is monitored, and can be taken back meanwhile.",
        next_step="Nothing; the end of the monitoring is told. To take it back: run roll-back.",
    ),
    Event.ROLLED_BACK: _Words(
        severity="warning",
        name="Rolled back",
        state="It is verified to be as before.",
        next_step="Read the decisions and the journal, mend the release, deploy it again.",
    ),
    Event.ROLLBACK_FAILED: _Words(
        severity="failure",
        name="ROLLBACK FAILED",
        state="It is between two states and stays locked.",
        next_step="Act now: mend the cause, then run roll-back for this deployment.",
    ),
    Event.BLOCKED: _Words(
        severity="warning",
        name="Blocked",
        state="Nothing was changed.",
        next_step="Supply what the checklist misses, or waive it by name, and deploy again.",
    ),
    Event.ABORTED: _Words(
        severity="info",
        name="Aborted",
        state="Nothing was changed.",
        next_step="Deploy again if it is still wanted.",
    ),
    Event.MONITORING_ENDED: _Words(
        severity="success",
        name="Monitoring ended",
        state="The release is good; its way back is no longer armed.",
        next_step="Nothing.",
    ),
    Event.ROLLBACK_PROPOSED: _Words(
        severity="warning",
        name="Rollback proposed",
        state="The new release still has the traffic.",
        next_step="Read the reasons and what would be lost, then approve or refuse the rollback in Prefect.",
    ),
    Event.INCIDENT_OPENED: _Words(
        severity="failure",
        name="Incident opened",
        state="See the incident.",
        next_step="Take it over and say so in the incident.",
    ),
    Event.INCIDENT_UPDATED: _Words(
        severity="warning",
        name="Incident updated",
        state="See the incident.",
        next_step="Nothing new, unless it is yours.",
    ),
    Event.INCIDENT_RESOLVED: _Words(
        severity="success",
        name="Incident resolved",
        state="See the incident.",
        next_step="Complete its post-mortem.",
    ),
}

_INCIDENTS = frozenset({Event.INCIDENT_OPENED, Event.INCIDENT_UPDATED, Event.INCIDENT_RESOLVED})


def message_of(event: Event, view: JournalView | None, **facts: object) -> Message:
    """Return what people are told about `event`.

    Args:
        event: what happened.
        view: the deployment's journal; None where there is none yet.
        facts: `deployment`, `what`, `reason`, `state` and `next_step` replace the words that the journal and
            the event give; each other fact becomes a line of its own under its name. A fact that is None
            or empty is left out.
    """
    words = _WORDS[event]
    said = {**_from_journal(event, view), **_in_words(facts)}
    lead = [said.pop(key, "") for key in ("severity", "what", "deployment")]
    title = f"{' '.join(filter(None, [lead[0], words.name]))}: {lead[1] or lead[2] or 'a deployment'}"
    lines = [
        ("What", said.pop("reason", "")),
        ("State", said.pop("state", words.state)),
        ("Next", said.pop("next_step", words.next_step)),
    ]
    body = [f"**{name}:** {text}" for name, text in lines if text]
    rest = {"deployment": lead[2], **said}
    listed = [f"- {name.replace('_', ' ')}: {text}" for name, text in rest.items() if text]
    return Message(
        title=_cut(" ".join(title.split()), _LONGEST_TITLE),
        body="\n\n".join([*body, "\n".join(listed)]).strip(),
        severity=words.severity,
    )


def without_secrets(text: str) -> str:
    """Return `text` without what looks like a secret: user parts of URLs, tokens, passwords, private keys.

    A second net only: secrets must not get into reasons and errors in the first place.
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _from_journal(event: Event, view: JournalView | None) -> dict[str, str]:
    if view is None:
        return {}
    known = {
        "what": view.opened.summary,
        "deployment": view.opened.deployment,
        "target": view.opened.target,
        "environment": view.opened.environment.name,
        "reason": view.cause or view.reason,
    }
    incident = incident_of(view) if event in _INCIDENTS | {Event.ROLLBACK_FAILED} else None
    if incident:
        known |= {"severity": str(incident.severity), "state": incident.left_in}
        known |= {"next_step": incident.next_step} if event is not Event.INCIDENT_RESOLVED else {}
    return _in_words(known)


def _in_words(facts: dict[str, object] | dict[str, str]) -> dict[str, str]:
    words = {name: "" if value is None else str(value).strip() for name, value in facts.items()}
    return {
        name: _cut(without_secrets(text[:_LONGEST_READ]), _LONGEST_FACT)
        for name, text in words.items()
        if text
    }


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
