"""Annotations and dashboards by Grafana's HTTP API, against a server that follows its published form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest
from pydantic import SecretStr

from blocks.grafana import Grafana
from lab.grafana import LabGrafana
from lab.ports import free_port, give_back
from rules.errors import DeployError
from tasks.grafana import GrafanaError, annotate, missing_dashboards, save_dashboard

TOKEN = "glsa_t0psecret"  # noqa: S105 - of the lab
AT = datetime(2026, 11, 25, 14, 0, 0, 250_000, tzinfo=UTC)
MODEL = {"uid": "web", "title": "Web servers", "panels": [], "schemaVersion": 36, "id": 17}


@pytest.fixture
def server() -> Iterator[LabGrafana]:
    with LabGrafana(token=TOKEN) as running:
        yield running


@pytest.fixture
def grafana(server: LabGrafana) -> Grafana:
    return Grafana(url=server.url, token=SecretStr(TOKEN), timeout_s=2)


def mark(grafana: Grafana, **changes: object) -> None:
    annotate(grafana, **{"text": "web 2.0 began", "tags": ("sovereign-deploy", "web"), "at": AT, **changes})


def test_a_moment_is_marked_in_milliseconds(server, grafana):
    mark(grafana)
    (kept,) = server.annotations
    assert (kept["text"], kept["tags"], kept["time"]) == (
        "web 2.0 began",
        ["sovereign-deploy", "web"],
        1_795_615_200_250,
    )
    assert kept["dashboardUID"] is None


def test_a_span_has_an_end_and_time_zones_do_not_matter(server, grafana):
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    mark(grafana, at=elsewhere, until=AT + timedelta(seconds=90))
    assert server.annotations[0]["timeEnd"] - server.annotations[0]["time"] == 90_000
    assert server.annotations[0]["time"] == 1_795_615_200_250


def test_grafana_finds_it_by_its_tags_as_the_dashboard_asks(server, grafana):
    mark(grafana)
    mark(grafana, tags=("other",))
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
    ) as http:
        found = http.get("/api/annotations", params={"tags": "sovereign-deploy"}).json()
    assert [one["text"] for one in found] == ["web 2.0 began"]
    assert found[0]["tags"] == ["sovereign-deploy", "web"]


def test_an_annotation_belongs_to_the_dashboard_that_the_block_names(server, grafana):
    save_dashboard(grafana, MODEL)
    mark(grafana.model_copy(update={"dashboard_uid": "web"}))
    assert server.annotations[0]["dashboardUID"] == "web"


def test_a_dashboard_is_saved_anew_over_the_old_one(server, grafana):
    assert save_dashboard(grafana, MODEL) == "/d/web/web-servers"
    save_dashboard(grafana, {**MODEL, "title": "Web"})
    assert (server.dashboards["web"]["title"], server.dashboards["web"]["version"]) == ("Web", 2)
    assert list(server.dashboards) == ["web"]


def test_the_missing_dashboards_are_named(server, grafana):
    assert missing_dashboards(grafana, ("web", "db")) == ("web", "db")
    save_dashboard(grafana, MODEL)
    assert missing_dashboards(grafana, ("web", "db")) == ("db",)
    assert missing_dashboards(grafana, ()) == ()


def test_a_grafana_without_accounts_needs_no_token():
    with LabGrafana(token=None) as server:
        mark(Grafana(url=f"{server.url}/"))
        assert len(server.annotations) == 1


@pytest.mark.parametrize("token", [None, SecretStr("wrong-but-secret")])
def test_a_wrong_token_is_said_without_it(server, token):
    with pytest.raises(GrafanaError, match="check the token of the Sovereign Grafana block") as caught:
        mark(Grafana(url=server.url, token=token))
    assert isinstance(caught.value, DeployError)
    assert "wrong-but-secret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert "No deployed system was touched" in str(caught.value)
    assert server.requests == 1  # a second time would change nothing


@pytest.mark.parametrize("token", ["t0p\nsecret", "t0p secret", "t0psécret", " ", "t0p\x00secret"])
def test_what_is_no_token_is_not_sent_and_not_shown(server, token):
    with pytest.raises(GrafanaError, match="Paste it anew") as caught:
        mark(Grafana(url=server.url, token=SecretStr(token)))
    assert "t0p" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert server.requests == 0


def test_a_token_pasted_with_its_line_end_is_taken(server, grafana):
    mark(grafana.model_copy(update={"token": SecretStr(f"{TOKEN}\n")}))
    assert len(server.annotations) == 1


def test_an_account_that_may_only_read_is_said(server, grafana):
    server.role = "Viewer"
    with pytest.raises(GrafanaError, match="the role Editor"):
        save_dashboard(grafana, MODEL)
    assert server.dashboards == {}


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_failure_is_tried_once_more(server, grafana, status):
    server.fail(status)
    mark(grafana)
    assert len(server.annotations) == 1


def test_a_lasting_failure_ends_after_two_tries(server, grafana):
    server.fail(502, 502, 502)
    with pytest.raises(GrafanaError, match=r"answered POST /api/annotations with 502 .*Bad gateway"):
        mark(grafana)
    assert server.requests == 2


def test_a_grafana_that_hangs_costs_no_more_than_its_timeout(server, grafana):
    began = time.monotonic()
    with server.hanging(), pytest.raises(GrafanaError, match="does not answer"):
        mark(grafana.model_copy(update={"timeout_s": 0.7}))
    assert time.monotonic() - began < 1.5


def test_a_grafana_that_is_down_is_an_error_of_ours():
    port = free_port()
    with pytest.raises(GrafanaError, match="does not answer"):
        missing_dashboards(Grafana(url=f"http://127.0.0.1:{port}", timeout_s=1), ("web",))
    give_back(port)


def test_a_dashboard_that_grafana_does_not_know_is_an_error(grafana):
    with pytest.raises(GrafanaError, match="Dashboard not found"):
        mark(grafana.model_copy(update={"dashboard_uid": "nowhere"}))


def test_a_dashboard_without_a_title_is_refused(grafana):
    with pytest.raises(GrafanaError, match="title cannot be empty"):
        save_dashboard(grafana, {"uid": "web"})


def test_another_server_is_told_from_grafana(server, grafana):
    with pytest.raises(GrafanaError, match="404"):
        mark(grafana.model_copy(update={"url": f"{server.url}/elsewhere"}))


def test_a_moment_without_a_time_zone_is_refused(server, grafana):
    with pytest.raises(GrafanaError, match="has no time zone"):
        mark(grafana, at=datetime(2026, 1, 1))  # noqa: DTZ001
    assert server.requests == 0


def test_the_lab_answers_health_without_a_token(server):
    with httpx.Client(trust_env=False) as http:
        assert http.get(f"{server.url}/api/health").json()["database"] == "ok"
