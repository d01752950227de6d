"""What a person sees in Prefect: it is there, it is readable, and it never stands in the way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from rules.baseline import Baseline, compare
from rules.checklist import ChecklistReport, artefact_check
from rules.journal import Decided, Intent, Moved, Opened, view
from rules.rollout import plan_rollout
from rules.strategy import Canary
from rules.verdict import Outcome
from tasks.deployment import OpenDeployment, open_deployment
from tasks.prefect_api import PrefectApi
from tasks.report import (
    publish_checklist,
    publish_comparison,
    publish_end,
    publish_plan,
    publish_progress,
    publish_record,
)
from tests.rules.builders import CHANGE, fleet, state
from tests.tasks.deploying import STEP, opening, settings_in
from tests.tasks.gateway import Fault, Gateway, api_through

PLAN = plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))
CHECKLIST = ChecklistReport(checks=(artefact_check(found=None, wanted="a" * 64, where="/srv/web.tar.gz"),))
BEFORE = Baseline(window_s=5, requests=100, error_ratio=0.01, mean_response_s=0.02)


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
    publish_end(deployment)


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
    assert [row["result"] for row in json.loads(pages["comparison"]["data"])] == ["same"] * 3
    assert "**HOLD** |" in pages["decisions"]["data"]
    assert "10 requests, 50 needed" in pages["decisions"]["data"]


def test_a_failed_rollback_wakes_a_person_and_says_what_to_do(api, caplog):
    opened = opening()
    with caplog.at_level(logging.WARNING):
        publish_record(api, ended(opened, "rollback_failed", "host gone."))
    urgent = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(urgent) == 1
    assert urgent[0].getMessage().startswith(f"P0 {opened.deployment} is rollback_failed. host gone.")
    page = shown(api, "incident", opened.deployment)["data"]
    assert f"run roll-back for {opened.deployment}" in page
    assert "stays locked" in page
    assert "blue-1: link to 1.0" in shown(api, "record", opened.deployment)["data"]


def test_a_verified_rollback_is_told_without_waking_anybody(api, caplog):
    opened = opening()
    with caplog.at_level(logging.WARNING):
        publish_record(api, ended(opened, "rolled_back", "15 % errors."))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert shown(api, "incident", opened.deployment)["data"].startswith("# P2")


def test_what_went_well_is_no_incident(api, prefect_api):
    opened = opening()
    publish_record(api, view([opened, Moved(state="promoted", reason="all well", by="flow")]))
    assert "**promoted**" in shown(api, "record", opened.deployment)["data"]
    found = api.request("POST", "artifacts/filter", {"artifacts": {"key": {"like_": "incident-%"}}}).json()
    assert not [page for page in found if page["key"].endswith(opened.deployment)]


@pytest.mark.parametrize("status", [503, 422])
def test_a_prefect_that_takes_nothing_costs_little_time_and_stops_nothing(
    deployment, through, caplog, status
):
    _, between = through
    between.faults = [Fault("artifacts/", status=status)]
    began = time.monotonic()
    publish_all(deployment)
    assert time.monotonic() - began < 8
    assert caplog.text.count("not shown in Prefect") == 6
    between.faults = []
