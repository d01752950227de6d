"""What prefect.yaml cannot say is registered, as often as asked, and is there once."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from lab.postgres import Postgres
from lab.prefect_server import PrefectServer, separate_server
from triggers.register import SILENT_RUNS, register, watch_silent_runs


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server of this file's own: other tests need the deployment that is made and deleted here."""
    with separate_server(tmp_path_factory.mktemp("registering"), postgres, "registering") as server:
        yield server


@pytest.fixture
def http(prefect_api):
    with httpx.Client(base_url=f"{prefect_api.api_url}/", timeout=30) as client:
        yield client


@pytest.fixture
def recover(http) -> str:
    """The id of the deployment `recover/recover`, as `prefect deploy --all` makes it."""
    flow = http.post("flows/", json={"name": "recover"}).raise_for_status().json()
    wanted = {"name": "recover", "flow_id": flow["id"], "entrypoint": "flows.recover.recover"}
    deployment = http.post("deployments/", json=wanted).raise_for_status().json()
    return str(deployment["id"])


def watches(http) -> list[dict]:
    found = http.post("automations/filter", json={}).raise_for_status().json()
    return [automation for automation in found if automation["name"] == SILENT_RUNS]


def test_registering_twice_is_registering_once(http, recover):
    register()
    register()
    assert len(watches(http)) == 1
    types = http.post("block_types/filter", json={}).raise_for_status().json()
    ours = [kind["slug"] for kind in types if kind["slug"].startswith("sovereign-")]
    assert sorted(ours) == [
        "sovereign-alertmanager",
        "sovereign-application",
        "sovereign-btrfs-snapshots",
        "sovereign-database",
        "sovereign-environment",
        "sovereign-forgejo",
        "sovereign-grafana",
        "sovereign-haproxy",
        "sovereign-host",
        "sovereign-http-balancer",
        "sovereign-ipfs-content",
        "sovereign-model",
        "sovereign-nginx",
        "sovereign-nixos-hosts",
        "sovereign-notifications",
        "sovereign-postgres-base-backup",
        "sovereign-prometheus",
        "sovereign-ray-cluster",
        "sovereign-restic-repository",
        "sovereign-zfs-snapshots",
    ]


def test_silent_runs_are_called_crashed_and_recovered_by_one_automation(http, recover):
    watch_silent_runs()
    automation = watches(http)[0]
    assert automation["enabled"]
    assert [action["type"] for action in automation["actions"]] == ["change-flow-run-state", "run-deployment"]
    assert automation["actions"][0]["state"] == "CRASHED"
    assert automation["actions"][1]["deployment_id"] == recover
    trigger = automation["trigger"]
    assert (trigger["posture"], trigger["within"]) == ("Proactive", 90)
    assert trigger["for_each"] == ["prefect.resource.id"]
    assert trigger["match_related"]["prefect.resource.id"] == "prefect.tag.sovereign-change"


def test_without_the_recover_deployment_the_watch_that_is_there_stays(http, recover):
    watch_silent_runs()
    before = watches(http)
    http.delete(f"deployments/{recover}").raise_for_status()
    with pytest.raises(ObjectNotFound):
        watch_silent_runs()
    assert [automation["id"] for automation in watches(http)] == [before[0]["id"]]
