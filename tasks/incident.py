"""An incident's life on disk and in Prefect: opened once, told, updated, resolved. Never in the way.

`incident.jsonl` in the deployment's journal directory is append-only and fsynced; the artifact
`incident-<deployment>` shows it to people and carries its lines to other hosts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from rules.entries import Moved
from rules.errors import ApiUnavailableError, DeployError
from rules.incident import (
    IllegalEventError,
    Incident,
    IncidentEvent,
    IncidentState,
    Severity,
    incident_of,
    incident_state,
    parse_events,
    status_page,
)
from rules.journal import JournalView
from rules.pieces import from_pieces, in_pieces
from rules.post_mortem import post_mortem
from tasks.durable import replace_file
from tasks.incident_file import IncidentFile
from tasks.journal import NoJournalError
from tasks.known import journal_here
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)
_NOT_FOUND = frozenset({404})
_PIECES = "events"

#: Opens an issue of that title and body (Markdown) and returns its URL.
OpenIssue = Callable[[str, str], str]
#: Writes what has become of an incident in its issue, and closes that once it is resolved.
WriteIssue = Callable[[IncidentState], None]
#: Tells people of an incident.
Tell = Callable[[IncidentState], None]


class IncidentError(DeployError):
    """That cannot be done to an incident; nothing was noted."""


def open_incident(
    view: JournalView,
    *,
    api: PrefectApi | None,
    settings: Settings,
    now: datetime,
    open_issue: OpenIssue | None = None,
    tell: Tell | None = None,
) -> IncidentState | None:
    """Open the incident that a deployment's end asks for, show it, and tell of it; opening twice is once.

    It never raises: what could not be shown or told is logged, and done by the next call.

    Args:
        view: the journal of a deployment that has ended, or may have.
        api: where it is shown; None: nowhere.
        settings: say where the journal is.
        now: the time, with its zone.
        open_issue: opens an issue, once; it may raise.
        tell: sends a message, once; it may raise.

    Returns:
        The incident; None: there is nothing to tell, or it could not even be written down.
    """
    incident = incident_of(view)
    if incident is None:
        return None
    try:
        file = IncidentFile(settings.journal_dir, incident.deployment)
        with file.exclusive():
            state = _opened(file, view, incident, now=now, api=api)
            state = _with_issue(file, state, open_issue, now=now)
            state = state if state.people_are_told else _told(file, state, tell, now=now)
            _show(file, state, api=api, flow_run_id=view.opened.flow_run_id)
            if state.severity in {Severity.P0, Severity.P1}:
                _draft(file, view, state, api=api)
    except Exception:  # the end of a deployment must not fail for the words about it
        log.exception(
            "the incident of %s is not (wholly) noted; the deployment is as it was", view.opened.target
        )
        return None
    return state


def update_incident(  # noqa: PLR0913 - each is named
    deployment: str,
    *,
    status: Literal["updated", "mitigated", "resolved"],
    words: str,
    by: str,
    now: datetime,
    settings: Settings,
    api: PrefectApi | None,
    tell: Tell | None = None,
    write_issue: WriteIssue | None = None,
) -> IncidentState:
    """Note what a person has done about an incident; resolved, its post-mortem is drafted.

    Its issue says so too, if it has one; what that does not take now is written there by the next call, such
    as one that resolves it again.

    Args:
        deployment: whose incident.
        status: what has become of it.
        words: what was done or found out.
        by: who says so.
        now: the time, with its zone.
        settings: say where the journal is.
        api: where it is shown and, when it was opened on another host, read; None: nowhere.
        tell: sends a message; it may raise.
        write_issue: writes in its issue; it may raise.

    Raises:
        IncidentError: there is no such incident, or it is resolved already; nothing was noted.
        TimeoutError: another process was at work on it; nothing was noted.
    """
    file = IncidentFile(settings.journal_dir, deployment)
    # nothing is made for a deployment that nobody knows
    state = file.read() or incident_state(parse_events(_mirrored(api, deployment)))
    if state is None:
        raise IncidentError(
            f"There is no incident of {deployment}, neither in {settings.journal_dir} nor in Prefect. "
            "See the artifacts named incident-… for those there are."
        )
    event = IncidentEvent(event=status, at=now, by=by, words=words)
    with file.exclusive():
        state = _newest(file, api, deployment)
        try:
            then = file.add(state, event)
        except IllegalEventError as error:
            raise IncidentError(f"{error}. Nothing was noted.") from error
        state = then if then is state else _told(file, then, tell, now=now)
        state = _written(file, state, write_issue, now=now)
        view = _view(deployment, api, settings)
        _show(file, state, api=api, flow_run_id=view.opened.flow_run_id if view else None)
        if view and state.status == "resolved":
            _draft(file, view, state, api=api)
    return state


def _opened(
    file: IncidentFile, view: JournalView, incident: Incident, *, now: datetime, api: PrefectApi | None
) -> IncidentState:
    by = next((entry.by for entry in reversed(view.entries) if isinstance(entry, Moved)), "deployment")
    known = _newest(file, api, incident.deployment)
    opened = IncidentEvent(event="opened", at=now, by=by, words=incident.what_happened, incident=incident)
    state = file.add(known, opened)
    if known is None:
        _log(incident)
    if view.state != "rollback_failed" and state.status == "open":
        state = file.add(state, IncidentEvent(event="mitigated", at=now, by=by, words=incident.left_in))
    return state


def _log(incident: Incident) -> None:
    log.log(
        logging.CRITICAL if incident.severity is Severity.P0 else logging.WARNING,
        "%s %s. %s %s Next: %s",
        incident.severity,
        incident.title,
        incident.what_happened,
        incident.left_in,
        incident.next_step,
    )


def _with_issue(
    file: IncidentFile, state: IncidentState, open_issue: OpenIssue | None, *, now: datetime
) -> IncidentState:
    """Open the issue that nobody has opened yet; what fails is left to the next call."""
    if open_issue is None or state.issue_url:
        return state
    try:
        url = open_issue(f"{state.severity}: {state.incident.title}", status_page(state))
    except Exception:  # a forge that is away, or says no, changes nothing about the incident
        log.exception("no issue was opened for the incident of %s", state.deployment)
        return state
    return file.add(state, _communicated(now, "issue", f"An issue was opened: {url}", url=url))


def _written(
    file: IncidentFile, state: IncidentState, write_issue: WriteIssue | None, *, now: datetime
) -> IncidentState:
    """Have its issue say what has become of it; what fails is left to the next call."""
    if write_issue is None or state.issue_number is None or not state.not_in_issue:
        return state
    try:
        write_issue(state)
    except Exception:  # as when it was opened
        log.exception("the issue %s does not say that it is %s", state.issue_url, state.status)
        return state
    closed = " and is closed" if state.status == "resolved" else ""
    return file.add(state, _communicated(now, "issue", f"Its issue says so{closed}."))


def _told(file: IncidentFile, state: IncidentState, tell: Tell | None, *, now: datetime) -> IncidentState:
    """Tell people what the incident is now; what fails is left to the next call."""
    if tell is None:
        return state
    try:
        tell(state)
    except Exception:  # a dead notification service changes nothing about the incident
        log.exception("nobody was told of the incident of %s", state.deployment)
        return state
    return file.add(state, _communicated(now, "people", f"People were told that it is {state.status}."))


def _communicated(
    now: datetime, channel: Literal["people", "issue"], words: str, *, url: str = ""
) -> IncidentEvent:
    return IncidentEvent(event="communicated", at=now, by="deployment", words=words, channel=channel, url=url)


def _newest(file: IncidentFile, api: PrefectApi | None, deployment: str) -> IncidentState | None:
    """Return the incident as it is here, completed by what another host has noted and shown."""
    here, there = file.lines(), _mirrored(api, deployment)
    if len(there) > len(here) and there.startswith(here):
        file.adopt(there)
    return file.read()


def _mirrored(api: PrefectApi | None, deployment: str) -> bytes:
    if api is None:
        return b""
    try:
        with api.impatient():
            answer = api.request("GET", f"artifacts/{incident_key(deployment)}/latest", accept=_NOT_FOUND)
    except ApiUnavailableError as error:
        log.warning("going by this host's incident of %s alone: %s", deployment, error)
        return b""
    if answer.status_code in _NOT_FOUND:
        return b""
    return from_pieces(answer.json().get("metadata_") or {}, prefix=_PIECES).encode()


def incident_key(deployment: str) -> str:
    """Return the artifact key of a deployment's incident."""
    return f"incident-{deployment}"


def _show(
    file: IncidentFile, state: IncidentState, *, api: PrefectApi | None, flow_run_id: str | None
) -> None:
    artifact = {
        "key": incident_key(state.deployment),
        "type": "markdown",
        "description": f"{state.severity}, {state.status}: {state.incident.title}",
        "data": status_page(state),
        "metadata_": in_pieces(file.lines().decode(), prefix=_PIECES),
    }
    _send(api, artifact, flow_run_id)


def _draft(file: IncidentFile, view: JournalView, state: IncidentState, *, api: PrefectApi | None) -> None:
    """Write the post-mortem's draft and show it; one that people have written in is left as it is."""
    text = post_mortem(view, state)
    path = file.directory / "post-mortem.md"
    if _is_edited(path):
        path = file.directory / "post-mortem.new.md"
        log.warning(
            "people have written in the post-mortem of %s: the new draft is %s", state.deployment, path
        )
    replace_file(path, f"{text}\n{_seal(text)}\n".encode())
    artifact = {
        "key": f"post-mortem-{state.deployment}",
        "type": "markdown",
        "description": f"Draft of the post-mortem of {state.deployment}; the file is {path}",
        "data": text,
    }
    _send(api, artifact, view.opened.flow_run_id)


def _seal(text: str) -> str:
    return f"<!-- draft {hashlib.sha256(text.encode()).hexdigest()} -->"


def _is_edited(path: Path) -> bool:
    if not path.exists():
        return False
    text, _, seal = path.read_text().rstrip("\n").rpartition("\n")
    return seal != _seal(text)


def _view(deployment: str, api: PrefectApi | None, settings: Settings) -> JournalView | None:
    try:
        return journal_here(deployment, api, settings).read()
    except (NoJournalError, ValueError) as error:
        log.warning("the incident of %s has no journal here: %s", deployment, error)
        return None


def _send(api: PrefectApi | None, artifact: Mapping[str, object], flow_run_id: str | None) -> None:
    if api is None:
        return
    try:
        with api.impatient():
            api.request("POST", "artifacts/", {**artifact, "flow_run_id": flow_run_id})
    except ApiUnavailableError as error:
        log.warning("not shown in Prefect: %s", error)
