"""The delayed rollback: within an hour, with its impact assessed, planned, told, verified and documented."""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.approval import asked_person
from flows.recover import taken_back
from rules.entries import Noted
from rules.environment import Environment
from rules.errors import InvalidRequestError, RefusedError
from rules.journal import JournalView
from rules.message import Event
from rules.record import DeploymentRecord
from rules.rollback_page import assessment_page
from tasks.aftermath import after_end, services_of, tell
from tasks.assessment import assess
from tasks.known import journal_here
from tasks.monitoring import append_mirrored
from tasks.prefect_api import PrefectApi
from tasks.recover import roll_back_by_person
from tasks.report import publish_page
from tasks.settings import Settings

_TIMEOUT_S = 3600


@flow(name="delayed-roll-back", flow_run_name="{deployment}", timeout_seconds=_TIMEOUT_S)
def delayed_roll_back(
    deployment: str,
    reason: str,
    approval: bool = True,  # noqa: FBT001, FBT002 - a field of the run form
) -> DeploymentRecord:
    """Assess, plan, tell, ask, take back, verify and document: within an hour.

    Args:
        deployment: its id, as in the name of its artifacts.
        reason: why, for the record.
        approval: whether a person is asked once the assessment is there.

    Raises:
        InvalidRequestError: it is not promoted, so there is nothing to take back like this.
        RefusedError: a person refused, or nobody answered; nothing was changed.
        DeployError: it cannot be taken back, or the way back failed; says which state things were left in.
    """
    settings = Settings()
    with PrefectApi(settings) as api:
        journal = journal_here(deployment, api, settings)
        view = journal.read()
        _refuse_unless_promoted(view)
        services = services_of(view, api)
        page = assessment_page(assess(view, services, settings), reason=reason)
        publish_page(api, view, "assessment", page, words="What taking it back means")
        get_run_logger().info("%s", page)
        tell(view, services, Event.ROLLBACK_PROPOSED, reason=reason)
        if approval:
            _approved(page, view.opened.environment)
        words = f"taken back after an assessment: {reason}"
        append_mirrored(
            journal, [Noted(about="delayed_rollback", words=words, by="person")], api=api, settings=settings
        )
        # whoever approved it has seen what is lost
        after = roll_back_by_person(deployment, reason=reason, settings=settings, accept_loss=approval)
        after_end(after, api=api, settings=settings, services=services)
    return taken_back(after)


def _refuse_unless_promoted(view: JournalView) -> None:
    if view.state != "promoted":
        raise InvalidRequestError(
            f"{view.opened.deployment} is {view.state}, not promoted. One that runs is aborted by `control`, "
            "one whose rollback failed is taken back by `roll-back`. Nothing was changed."
        )


def _approved(page: str, environment: Environment) -> None:
    answer = asked_person(page, timeout_s=environment.monitoring.approval_timeout_s)
    if not answer.approved:
        raise RefusedError(
            f"Refused by {answer.by}: {answer.words or 'no reason given'}. Nothing was changed."
        )
