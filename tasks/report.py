"""What a person sees in Prefect: plan, progress, decisions, comparison, record. Never in the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from rules.baseline import Comparison
from rules.checklist import ChecklistReport
from rules.entries import Decided
from rules.errors import ApiUnavailableError
from rules.history import to_metadata
from rules.journal import JournalView
from rules.plan import Plan, Step
from rules.record import checklist_page, decision_page, plan_page, record_of, record_page
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


def publish_build(deployment: OpenDeployment, index: str, done_ratio: float) -> None:
    """Show how far the build of an index is."""
    _publish(deployment, "build", "progress", round(100 * done_ratio, 1), description=f"Building {index}")


def publish_upload(deployment: OpenDeployment, node: str, sent_ratio: float) -> None:
    """Show how much of the content was sent to a node."""
    _publish(deployment, "upload", "progress", round(100 * sent_ratio, 1), description=f"Sending to {node}")


def publish_checklist(deployment: OpenDeployment, report: ChecklistReport) -> None:
    """Show the gate's rows."""
    rows = [
        _first(check.model_dump(mode="json"), "id", "result", "blocks", "evidence") for check in report.checks
    ]
    words = f"Checklist before the deployment: {report.summary}"
    _publish(deployment, "checklist", "table", json.dumps(rows), description=words)
    _publish(deployment, "checklist-page", "markdown", checklist_page(report), description=words)


def publish_comparison(deployment: OpenDeployment, comparisons: tuple[Comparison, ...]) -> None:
    """Show the metrics before and after."""
    rows = [_first(one.model_dump(mode="json"), "name", "result", "change") for one in comparisons]
    _publish(deployment, "comparison", "table", json.dumps(rows), description="Metrics before and after")


def _first(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a table's row with these columns first: the page shows no more than a few without scrolling."""
    return {name: row[name] for name in names} | row


def publish_decisions(deployment: OpenDeployment) -> None:
    """Show every verdict with its arithmetic, where there was one."""
    view = deployment.journal.read()
    if not any(isinstance(entry, Decided) for entry in view.entries):
        return
    page, words = decision_page(view), "Every verdict, with its arithmetic"
    _publish(deployment, "decisions", "markdown", page, description=words)


def publish_record(api: PrefectApi, view: JournalView) -> None:
    """Show the record of a deployment, also one that another process ended.

    The record's data goes along, so that another host can read the history.
    """
    record = record_of(view)
    artifact = _artifact(f"record-{record.deployment}", "markdown", record_page(view), "How it ended")
    further = {"flow_run_id": view.opened.flow_run_id, "metadata_": to_metadata(record)}
    _send(api, {**artifact, **further})


def publish_page(api: PrefectApi, view: JournalView, kind: str, page: str, *, words: str) -> None:
    """Show a Markdown page that belongs to a deployment, from any process."""
    artifact = _artifact(f"{kind}-{view.opened.deployment}", "markdown", page, words)
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
