"""What follows when a deployment has begun or ended: people are told, records and figures are kept.

Nothing here may fail a deployment or hold up its way back: each part is bounded in time, and what does not
work is logged and left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from rules.entries import DeploymentState
from rules.errors import ApiUnavailableError, DeployError
from rules.final_checklist import judge_final
from rules.incident import IncidentState, issue_comment
from rules.journal import JournalView
from rules.message import Event, message_of
from rules.record import checklist_page
from rules.release_states import release_of
from tasks.exposition import expose
from tasks.forgejo import close_issue, comment, open_issue
from tasks.grafana import annotate
from tasks.history import export_record
from tasks.incident import open_incident
from tasks.notify import notify
from tasks.prefect_api import PrefectApi
from tasks.report import publish_page, publish_record
from tasks.services import Services, load_services
from tasks.settings import Settings

log = logging.getLogger(__name__)

_EVENTS: dict[DeploymentState, Event] = {
    "promoted": Event.PROMOTED,
    "completed": Event.MONITORING_ENDED,
    "rolled_back": Event.ROLLED_BACK,
    "rollback_failed": Event.ROLLBACK_FAILED,
    "blocked": Event.BLOCKED,
    "aborted": Event.ABORTED,
}
_INCIDENTS = {"opened": Event.INCIDENT_OPENED, "resolved": Event.INCIDENT_RESOLVED}
_ANNOTATED = frozenset({Event.STARTED, Event.PROMOTED, Event.ROLLED_BACK, Event.ROLLBACK_FAILED})


def tell(view: JournalView, services: Services, event: Event, **facts: str) -> None:
    """Tell people of `event`, and mark it in the dashboards."""
    if services.notifications:
        notify(services.notifications, message_of(event, view, **facts))
    if services.grafana and event in _ANNOTATED:
        grafana, opened = services.grafana, view.opened
        tags = ("sovereign-deploy", str(event), opened.target, opened.environment.name)
        text = f"{opened.deployment} {str(event).replace('_', ' ')}: {opened.summary}"
        _attempt("the annotation", lambda: annotate(grafana, text=text, tags=tags, at=datetime.now(UTC)))


def after_end(
    view: JournalView, *, api: PrefectApi | None, settings: Settings, services: Services | None = None
) -> None:
    """Do all that follows when a deployment has come to an end, or to its promotion.

    Args:
        view: its journal as it is now.
        api: Prefect's; None when it is away.
        settings: of this host.
        services: of its environment; None: they are loaded here, if the API answers.
    """
    known = services or services_of(view, api)
    if api:
        _attempt("the record", lambda: publish_record(api, view))
        if view.intents and release_of(view) is None:  # a release's components have one each
            _attempt("the final checklist", lambda: _publish_final(api, view))
    _attempt("the incident", lambda: _open_incident(view, api, known, settings=settings))
    event = _EVENTS.get(view.state)
    if event:
        tell(view, known, event)
    keep_books(settings, view)


def _publish_final(api: PrefectApi, view: JournalView) -> None:
    report = judge_final(view, view.opened.environment.stage)
    words = f"Final checklist, before, during and after: {report.summary}"
    publish_page(api, view, "final-checklist", checklist_page(report), words=words)


def keep_books(settings: Settings, view: JournalView | None = None) -> None:
    """Export the record and write our own metrics, where the settings want that."""
    records_dir = settings.records_dir
    if view and records_dir:
        _attempt("the exported record", lambda: export_record(view, records_dir))
    if settings.metrics_file:
        _attempt("the metrics", lambda: expose(settings))


def services_of(view: JournalView, api: PrefectApi | None) -> Services:
    """Return the services of a deployment's environment; none where they cannot be had now."""
    if api is None:
        return Services()
    try:
        with api.impatient():  # Prefect's own client would try for minutes
            api.request("GET", "health")
        return load_services(view.opened.environment)
    except (ApiUnavailableError, DeployError) as error:
        log.warning("nobody is told of %s: %s", view.opened.deployment, error)
        return Services()


def _open_incident(
    view: JournalView, api: PrefectApi | None, services: Services, *, settings: Settings
) -> None:
    forgejo = services.forgejo
    issue = (lambda title, body: open_issue(forgejo, title, body)[1]) if forgejo else None
    open_incident(
        view,
        api=api,
        settings=settings,
        now=datetime.now(UTC),
        open_issue=issue,
        tell=incident_teller(view, services),
    )


class NobodyToldError(DeployError):
    """No notification service took the message; it is tried again with the next event."""


def incident_teller(view: JournalView, services: Services) -> Callable[[IncidentState], None] | None:
    """Return what tells people of an incident, and raises when nobody was told; None: nobody to tell."""
    notifications = services.notifications
    if notifications is None:
        return None

    def told(state: IncidentState) -> None:
        event = _INCIDENTS.get(state.status, Event.INCIDENT_UPDATED)
        if not state.people_are_told:
            event = Event.INCIDENT_OPENED
        message = message_of(event, view, severity=str(state.severity), by=state.events[-1].by)
        delivery = notify(notifications, message)
        if not delivery.accepted:
            raise NobodyToldError(f"Nobody was told of {state.deployment}: {delivery.describe()}")

    return told


class OtherForgeError(DeployError):
    """An incident's issue is not in the repository that its environment names; nothing was written."""


def issue_writer(services: Services) -> Callable[[IncidentState], None] | None:
    """Return what comments on an incident's issue, and closes it when it is resolved; None: no forge.

    It raises when the forge does not take that, and where the issue is not in the repository it writes to.
    """
    forgejo = services.forgejo
    if forgejo is None:
        return None

    def write(state: IncidentState) -> None:
        number = state.issue_number
        # an environment may name another repository by now: its issue of that number is about something else
        page = f"/{forgejo.owner}/{forgejo.repository}/issues/{number}"
        if number is None or not state.issue_url.rstrip("/").lower().endswith(page.lower()):
            raise OtherForgeError(f"{state.issue_url} is not {page} of {forgejo.url}. Write there by hand.")
        comment(forgejo, number, issue_comment(state))
        if state.status == "resolved":
            close_issue(forgejo, number)

    return write


def _attempt(what: str, work: Callable[[], object]) -> None:
    """Do `work`; whatever goes wrong with it is no trouble of the deployment's."""
    try:
        work()
    except Exception:
        log.exception("%s could not be kept", what)
