"""Prefect's server dies: deployments come back without it, and tell it once it is there again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from flows.recover import recover
from lab.postgres import Postgres
from lab.prefect_server import PrefectServer, separate_server
from lab.processes import wait_until
from tasks.journal import mirrored_lines
from tasks.prefect_api import PrefectApi
from tests.flows.site import SHORT_LEASE, Site

#: Time enough to come back, also on a busy machine; cut off soon.
_LEASE = {**SHORT_LEASE, "SOVEREIGN_LEASE_S": "30"}


@pytest.fixture(scope="session")
def mortal_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server of its own, to be killed."""
    with separate_server(tmp_path_factory.mktemp("mortal"), postgres, "mortal") as server:
        yield server


@pytest.fixture
def prefect_server(mortal_server: PrefectServer) -> PrefectServer:
    """In this file, the server that tests talk to is the one that dies; a test begins with it up."""
    if mortal_server.process is None:
        mortal_server.start()
        url = f"{mortal_server.api_url}/variables"  # locks of tests that ended without it
        for row in httpx.post(f"{url}/filter", json={}, timeout=10).raise_for_status().json():
            httpx.delete(f"{url}/{row['id']}", timeout=10).raise_for_status()
    return mortal_server


def test_a_canary_is_taken_back_without_prefects_server_which_learns_of_it_later(site: Site) -> None:
    process = site.deploying_halfway(site.change(), _LEASE)
    site.server.kill()
    took_s = wait_until(lambda: site.view().is_terminal, timeout_s=30, what="the way back", process=process)

    assert took_s < 25
    assert site.view().state == "rolled_back"
    assert "Prefect's API has not answered" in site.view().cause
    assert site.application.observed() == site.before

    process.kill()  # it still tries to tell Prefect
    site.server.start()
    assert site.owner() is not None
    (told,) = recover()
    assert told.acted
    assert_told(site)


def test_a_process_killed_while_prefect_is_down_is_recovered_at_once_from_the_journal(site: Site) -> None:
    process = site.deploying_halfway(site.change(), _LEASE)
    site.server.kill()
    process.kill()
    site.run_without_prefect()

    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before
    site.server.start()
    recover()
    assert_told(site)


def test_once_the_lease_is_over_only_the_only_host_goes_on_while_prefect_is_down(site: Site) -> None:
    process = site.deploying_halfway(site.change(), SHORT_LEASE)
    half_way = site.application.observed()
    site.server.kill()
    process.kill()
    time.sleep(float(SHORT_LEASE["SOVEREIGN_LEASE_S"]) + 1)
    said = site.run_without_prefect()

    assert "another host may have taken over; nothing was changed" in said
    assert "set SOVEREIGN_ONLY_HOST=true and run recover" in said
    assert site.view().state == "running"
    assert site.application.observed() == half_way

    site.run_without_prefect({"SOVEREIGN_ONLY_HOST": "true"})
    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before


def assert_told(site: Site) -> None:
    """Prefect knows the whole journal and that the run is over, and the lock is free."""
    view = site.view()
    with PrefectApi(site.settings()) as api:
        mirrored = mirrored_lines(api, view.opened.deployment)
    assert mirrored == (site.journal_dir / view.opened.deployment / "journal.jsonl").read_bytes()
    assert site.owner() is None
    for run in (view.opened.flow_run_id, *site.children(view.opened.flow_run_id)):
        assert site.run_state(run)[0] == "CRASHED"
    assert "P2" in site.artifact(f"incident-{view.opened.deployment}")
