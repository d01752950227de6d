"""Prefect's server dies: deployments come back without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.postgres import Postgres
from lab.prefect_server import DRIVER, TEMPLATE, PrefectServer
from lab.processes import wait_until
from tests.flows.site import SHORT_LEASE, Site

_DATABASE = "prefect_that_dies"


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server of its own, to be killed."""
    postgres.create_database(_DATABASE, template=TEMPLATE)
    url = postgres.url(_DATABASE, driver=DRIVER)
    with PrefectServer(tmp_path_factory.mktemp("mortal"), url, migrated=True) as server:
        yield server


@pytest.fixture
def prefect_server(mortal_server: PrefectServer) -> PrefectServer:
    """In this file, the server that tests talk to is the one that dies; it is up when a test begins."""
    if mortal_server.process is None:
        mortal_server.start()
    return mortal_server


def test_traffic_goes_back_without_prefects_server(site: Site) -> None:
    process = site.deploying_halfway(site.change(), SHORT_LEASE)
    site.server.kill()
    began = time.monotonic()
    wait_until(lambda: site.view().state != "running", timeout_s=30, what="the way back")
    wait_until(lambda: site.view().state != "rolling_back", timeout_s=30, what="the way back")
    print("rolled back after", time.monotonic() - began, site.view().reason)
    assert site.application.observed() == site.before
    assert site.view().state == "rolled_back"
    print("ended", site.ended(process, within_s=200))
