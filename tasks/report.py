"""What a person sees in Prefect: plan, progress, decisions, comparison, record. Never in the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from rules.baseline import Comparison
from rules.checklist import ChecklistReport
from rules.errors import ApiUnavailableError
from rules.incident import Severity, incident_of
from rules.journal import Decided, JournalView
from rules.plan import Plan, Step
from rules.record import decision_page, incident_page, plan_page, record_of, record_page
from tasks.deployment import OpenDeployment
from tasks.prefect_api import PrefectApi

log = logging.getLogger(__name__)


def publish_plan(deployment: OpenDeployment, plan: Plan) -> None:
    """Show what will be done, each step with its way back."""
    _publish(
        deployment,
        "plan",
        "markdown",
        plan_page(plan),
        description="What will be done, and each step's way back",
    )


def publish_progress(deployment: OpenDeployment, plan: Plan, step: Step) -> None:
    """Show how far the rollout is."""
    percent, before = (100.0 * done / len(plan.steps) for done in (step.number + 1, step.number))
    if int(percent) == int(before):
        return  # a long plan must not cost more to show than to do
    _publish(deployment, "progress", "progress", percent, description=step.title)


def publish_checklist(deployment: OpenDeployment, report: ChecklistReport) -> None:
    """Show the gate's rows."""
    rows = [check.model_dump(mode="json") for check in report.checks]
    _publish(
        deployment, "checklist", "table", json.dumps(rows), description="Checklist before the deployment"
    )


def publish_comparison(deployment: OpenDeployment, comparisons: tuple[Comparison, ...]) -> None:
    """Show the metrics before and after."""
    rows = [comparison.model_dump(mode="json") for comparison in comparisons]
    _publish(deployment, "comparison", "table", json.dumps(rows), description="Metrics before and after")


def publish_end(deployment: OpenDeployment) -> None:
    """Show how it ended, and every verdict with its arithmetic."""
    view = deployment.journal.read()
    if any(isinstance(entry, Decided) for entry in view.entries):
        _publish(
            deployment,
            "decisions",
            "markdown",
            decision_page(view),
            description="Every verdict, with its arithmetic",
        )
    publish_record(deployment.api, view)


def publish_record(api: PrefectApi, view: JournalView) -> None:
    """Show the record of a deployment, also one that another process ended."""
    record = record_of(view)
    artifact = _artifact(f"record-{record.deployment}", "markdown", record_page(view), "How it ended")
    _send(api, {**artifact, "flow_run_id": view.opened.flow_run_id})
    incident = incident_of(view)
    if incident is None:
        return
    log.log(
        logging.CRITICAL if incident.severity is Severity.P0 else logging.WARNING,
        "%s %s. %s %s Next: %s",
        incident.severity,
        incident.title,
        incident.what_happened,
        incident.left_in,
        incident.next_step,
    )
    artifact = _artifact(f"incident-{record.deployment}", "markdown", incident_page(incident), incident.title)
    _send(api, {**artifact, "flow_run_id": view.opened.flow_run_id})


def _publish(
    deployment: OpenDeployment, kind: str, form: str, data: str | float, *, description: str
) -> None:
    artifact = _artifact(f"{kind}-{deployment.name}", form, data, description)
    _send(deployment.api, {**artifact, "flow_run_id": deployment.opened.flow_run_id})


def _artifact(key: str, form: str, data: str | float, description: str) -> dict[str, Any]:
    return {"key": key, "type": form, "data": data, "description": description}


def _send(api: PrefectApi, artifact: Mapping[str, Any]) -> None:
    try:
        with api.impatient():
            api.request("POST", "artifacts/", artifact)
    except ApiUnavailableError as error:
        log.warning("not shown in Prefect: %s", error)
