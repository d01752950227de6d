"""What waits for the bake of a release is scheduled once, and removed when the release goes back."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from rules.entries import Noted
from rules.environment import Environment, Monitoring
from tasks.lease import current_holding
from tasks.recover import recover_all, roll_back_by_person
from tasks.release_bake import schedule_after_bake
from tests.rules.releases import application, component, schema, whole
from tests.tasks.releases import Left

SHORT = Environment(monitoring=Monitoring(for_s=3600, every_s=60, probe_every_s=30))
LATER = (
    component("gone", schema("3", phase="contract"), "web", when="after_bake"),
    component("tidy", application("tidy"), "gone", when="after_bake"),
)


@pytest.fixture
def ask(prefect_api, api):
    """Ask the server, which knows `deploy/deploy`."""

    def asked(method: str, path: str, body=None):
        answer = httpx.request(method, f"{prefect_api.api_url}/{path}", json=body, timeout=30)
        return answer.raise_for_status().json()

    flow = asked("POST", "flows/", {"name": "deploy"})["id"]
    asked("POST", "deployments/", {"name": "deploy", "flow_id": flow})
    return asked


@pytest.fixture
def left(settings):
    """A release that was promoted half an hour ago, and two components that wait for its bake."""
    release = whole(component("web", application()), *LATER)
    return Left(
        settings,
        {"web": "promoted"},
        state="promoted",
        ago=timedelta(minutes=30),
        environment=SHORT,
        release=release,
    )


def waiting(ask, left: Left):
    wanted = {"flow_runs": {"tags": {"all_": [left.name]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return ask("POST", "flow_runs/filter", wanted)


def test_each_is_a_deployment_of_its_own_once_nothing_can_be_taken_back(api, settings, ask, left):
    assert schedule_after_bake(left.journal(), api, settings)
    runs = waiting(ask, left)
    assert [run["name"] for run in runs] == [f"gone after {left.name}", f"tidy after {left.name}"]
    assert runs[0]["parameters"]["change"]["phase"] == "contract"
    assert runs[0]["parameters"]["environment"] == "development"
    assert set(runs[0]["parameters"]) >= {"strategy", "evidence", "attestations", "waivers"}
    # an hour of monitoring, two looks, ten minutes
    at = left.ended_at + timedelta(seconds=3600 + 60 + 600)
    assert runs[0]["expected_start_time"][:19] == at.isoformat()[:19]
    assert runs[1]["expected_start_time"][:19] == (at + timedelta(hours=1)).isoformat()[:19]
    notes = [e.words for e in left.view().entries if isinstance(e, Noted) and e.about == "after_bake"]
    assert runs[0]["id"] in notes[0]


def test_whoever_looks_again_makes_no_second_ones(api, settings, ask, left):
    recover_all(by="test", settings=settings)
    recover_all(by="test", settings=settings)
    assert len(waiting(ask, left)) == 2


def test_they_are_removed_when_the_release_is_taken_back(api, settings, ask, left):
    schedule_after_bake(left.journal(), api, settings)
    roll_back_by_person(left.name, reason="second thoughts", settings=settings)
    assert waiting(ask, left) == []
    assert current_holding(api, left.opened.target) is None


def test_they_are_removed_when_the_release_is_superseded(api, settings, ask, left):
    schedule_after_bake(left.journal(), api, settings)
    anew = Left(settings, {"web": "superseded"}, state="promoted", environment=SHORT, release=left.release)
    schedule_after_bake(anew.journal(), api, settings)
    recover_all(by="test", settings=settings)
    assert waiting(ask, anew) == []
    assert len(waiting(ask, left)) == 2


def test_a_release_without_any_schedules_nothing(api, settings, ask):
    left = Left(settings, {"web": "promoted"}, state="promoted")
    assert schedule_after_bake(left.journal(), api, settings)
    assert waiting(ask, left) == []
