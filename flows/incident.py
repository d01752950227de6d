"""A person says what has become of an incident."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from rules.incident import IncidentState
from tasks.aftermath import incident_teller, issue_writer, services_of
from tasks.incident import Tell, WriteIssue
from tasks.incident import update_incident as note
from tasks.journal import NoJournalError
from tasks.known import api_if_any, journal_here
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

Words = Annotated[str, Field(min_length=3, max_length=2000, description="what was done or found out")]
Person = Annotated[str, Field(min_length=2, max_length=120, description="who says so")]


@flow(name="update-incident", flow_run_name="{deployment} {status}")
def update_incident(
    deployment: str, status: Literal["updated", "mitigated", "resolved"], words: Words, by: Person
) -> IncidentState:
    """Note what was done about a deployment's incident; resolved, its post-mortem is drafted.

    People are told, and its issue, if one was opened, says so; resolved, that is closed.

    Args:
        deployment: its id, as in the name of its artifacts.
        status: updated: it goes on; mitigated: users are well again; resolved: it is over.
        words: what was done or found out.
        by: who says so.

    Raises:
        IncidentError: there is no such incident, or it is resolved already; nothing was noted.
    """
    settings = Settings()
    with api_if_any(settings) as api:
        tell, write_issue = _channels(deployment, api, settings)
        return note(
            deployment,
            status=status,
            words=words,
            by=by,
            now=datetime.now(UTC),
            settings=settings,
            api=api,
            tell=tell,
            write_issue=write_issue,
        )


def _channels(
    deployment: str, api: PrefectApi | None, settings: Settings
) -> tuple[Tell | None, WriteIssue | None]:
    """Return what tells the people whom the deployment's environment names, and what writes in its issue.

    None for each that there is not; both, where the journal, which names the environment, is not here.
    """
    try:
        view = journal_here(deployment, api, settings).read()
    except NoJournalError:
        return None, None
    services = services_of(view, api)
    return incident_teller(view, services), issue_writer(services)
