"""The approval gate: a person sees plan and checklist, and says yes or no."""

from __future__ import annotations

from prefect import get_run_logger, pause_flow_run
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from pydantic import Field

from rules.entries import Approved
from rules.errors import RefusedError
from rules.message import Event
from rules.plan import Plan
from rules.record import checklist_page, plan_page
from tasks.aftermath import tell
from tasks.deployment import OpenDeployment
from tasks.services import Services

_POLL_S = 2


class Approval(RunInput):
    """A person's answer to a deployment that waits."""

    approved: bool = Field(default=False, description="go on with it")
    by: str = Field(min_length=2, max_length=120, description="who says so")
    words: str = Field(default="", max_length=2000, description="why, for the record")


def approve(deployment: OpenDeployment, plan: Plan, services: Services) -> None:
    """Wait until a person approves, where the environment wants that; nothing was changed until then.

    The process stays, so a cancellation works; the lease is kept meanwhile.

    Raises:
        RefusedError: a person refused, or nobody answered in time.
    """
    environment = deployment.opened.environment
    if not environment.needs_approval:
        return
    view = deployment.journal.read()
    tell(view, services, Event.APPROVAL_NEEDED)
    get_run_logger().info("waiting for approval, %g s at most", environment.approval_timeout_s)
    question = _question(plan, checklist_page(view.gate) if view.gate else "")
    answer = asked_person(question, timeout_s=environment.approval_timeout_s)
    if not answer.approved:
        raise RefusedError(f"Refused by {answer.by}: {answer.words or 'no reason given'}.")
    deployment.prove_ours()
    deployment.keep(Approved(by=answer.by, words=answer.words))


def asked_person(question: str, *, timeout_s: float) -> Approval:
    """Show `question` (Markdown) with the run in Prefect, and return what a person answers.

    Raises:
        RefusedError: nobody answered within `timeout_s`.
    """
    wanted = Approval.with_initial_data(description=question)
    try:
        return pause_flow_run(wait_for_input=wanted, timeout=round(timeout_s), poll_interval=_POLL_S)
    except FlowPauseTimeout as error:
        raise RefusedError(f"Nobody approved it within {timeout_s:g} s.") from error


def _question(plan: Plan, checklist: str) -> str:
    head = f"Approve {plan.change.target}, release {plan.change.release}?"
    return "\n\n".join([head, plan_page(plan), checklist])
