"""What a person sees in Prefect: it is there, it is readable, and it never stands in the way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from rules.baseline import Baseline, Reading, compare
from rules.checklist import judge
from rules.entries import Decided, Intent, Moved, Opened
from rules.environment import Stage
from rules.finding import Finding
from rules.history import from_metadata
from rules.items import RELEASE
from rules.journal import view
from rules.record import record_of
from rules.rollout import plan_rollout
from rules.strategy import Canary
from rules.verdict import Outcome
from tasks.deployment import OpenDeployment, open_deployment
from tasks.prefect_api import PrefectApi
from tasks.report import (
    publish_checklist,
    publish_comparison,
    publish_decisions,
    publish_plan,
    publish_progress,
    publish_record,
)
from tests.rules.builders import CHANGE, fleet, state
from tests.tasks.deploying import STEP, opening, settings_in
from tests.tasks.gateway import Fault, Gateway, api_through

PLAN = plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))
MISSING = Finding.failed("/srv/web.tar.gz is missing.")
CHECKLIST = judge(RELEASE, {"release-present": MISSING}, stage=Stage.STAGING)
BEFORE = Baseline(
    window_s=5,
    at=datetime(2026, 1, 1, tzinfo=UTC),
    readings=(Reading(name="error_ratio", value=0.01, source="balancer"),),
)


@pytest.fixture
def through(prefect_api: PrefectServer, tmp_path: Path) -> Iterator[tuple[PrefectApi, Gateway]]:
    with api_through(prefect_api.api_url, settings_in(tmp_path, api_patience_s=10)) as both:
        yield both


@pytest.fixture
def api(through: tuple[PrefectApi, Gateway]) -> PrefectApi:
    return through[0]


@pytest.fixture
def deployment(api: PrefectApi, tmp_path: Path) -> Iterator[OpenDeployment]:
    with open_deployment(opening(), api, settings_in(tmp_path)) as opened:
        yield opened


def shown(api: PrefectApi, kind: str, deployment: str) -> dict:
    """Return what the UI shows under a key."""
    return api.request("GET", f"artifacts/{kind}-{deployment}/latest").json()


def ended(opened: Opened, state: str, reason: str):
    moves = [Moved(state=name, reason=reason, by="flow") for name in ("rolling_back", state)]
    return view([opened, Intent(number=0, title=STEP.title, undo=STEP.undo), *moves])


def publish_all(deployment: OpenDeployment) -> None:
    publish_plan(deployment, PLAN)
    publish_checklist(deployment, CHECKLIST)
    publish_progress(deployment, PLAN, PLAN.steps[-1])
    publish_comparison(deployment, compare(BEFORE, BEFORE))
    deployment.record(Decided(title="watch", outcome=Outcome.HOLD, reasons=("10 requests, 50 needed",)))
    publish_decisions(deployment)
    publish_record(deployment.api, deployment.journal.read())


def test_everything_is_shown_with_the_flow_run_it_belongs_to(deployment, api):
    publish_all(deployment)
    pages = {
        kind: shown(api, kind, deployment.name)
        for kind in ("plan", "checklist", "progress", "comparison", "decisions", "record")
    }
    assert {page["flow_run_id"] for page in pages.values()} == {deployment.opened.flow_run_id}
    assert all(page["description"] for page in pages.values())
    assert "send 10 % of traffic to green" in pages["plan"]["data"]
    assert json.loads(pages["checklist"]["data"])[0]["result"] == "failed"
    assert pages["progress"]["data"] == 100.0
    compared = {row["name"]: row["result"] for row in json.loads(pages["comparison"]["data"])}
    assert compared["error_ratio"] == "same"
    assert compared["latency_p95_s"] == "no_data"
    assert "**HOLD** |" in pages["decisions"]["data"]
    assert "10 requests, 50 needed" in pages["decisions"]["data"]


def test_a_failed_rollback_says_what_is_left_and_what_to_do(api):
    opened = opening()
    publish_record(api, ended(opened, "rollback_failed", "host gone."))
    page = shown(api, "record", opened.deployment)["data"]
    assert "blue-1: link to 1.0" in page
    assert f"run roll-back for {opened.deployment}" in page


def test_a_record_carries_its_data_for_the_history_of_other_hosts(api):
    opened = opening()
    view = ended(opened, "rolled_back", "15 % errors. " * 80)
    publish_record(api, view)
    assert from_metadata(shown(api, "record", opened.deployment)["metadata_"]) == record_of(view)


@pytest.mark.parametrize("status", [503, 422])
def test_a_prefect_that_takes_nothing_costs_little_time_and_stops_nothing(
    deployment, through, caplog, status
):
    _, between = through
    between.faults = [Fault("artifacts/", status=status)]
    began = time.monotonic()
    publish_all(deployment)
    assert time.monotonic() - began < 8
    assert caplog.text.count("not shown in Prefect") == 7
    between.faults = []
