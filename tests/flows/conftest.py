"""What tests of flows share: a site with users, whose deployments run in processes that can be broken."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from lab.prefect_server import PrefectServer, Worker
from lab.processes import clean_environment
from lab.register import register_deployments
from tests.flows.caller import Caller
from tests.flows.site import Site

_POOL = "sovereign"

#: The site of the last test, if any.
Kept = list[Site]


@pytest.fixture(scope="session")
def kept_sites() -> Iterator[Kept]:
    """The site that the next test may have: starting one takes long, and most tests leave all as it was."""
    kept: Kept = []
    yield kept
    for site in kept:
        site.stop()


@pytest.fixture
def site(
    kept_sites: Kept,
    prefect_api: PrefectServer,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """An application with users, in its first release, known to Prefect."""
    while kept_sites and not (kept_sites[0].server is prefect_api and kept_sites[0].is_as_built()):
        kept_sites.pop().stop()
    if kept_sites:
        kept_sites[0].begin()
    else:
        site = Site(tmp_path_factory.mktemp("site"), prefect_api)
        site.start()
        kept_sites.append(site)
    for name, value in kept_sites[0].variables().items():
        monkeypatch.setenv(name, value)
    yield kept_sites[0]
    kept_sites[0].end()


@pytest.fixture(scope="session")
def workers() -> list[Worker]:
    """The worker of this session, once there is one: tests that watch by hand must not have it running."""
    return []


@pytest.fixture(scope="session")
def worker(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer, workers: list[Worker]
) -> Iterator[Worker]:
    """A worker that runs what is registered with the Prefect server that tests share."""
    directory = tmp_path_factory.mktemp("worker")
    settings = {
        **prefect_server.environment(),
        "SOVEREIGN_JOURNAL_DIR": str(directory / "journal"),
        "SOVEREIGN_HOST": "here",
        "SOVEREIGN_BASELINE_S": "0.3",
    }
    pool = {"name": _POOL, "type": "process"}
    httpx.post(f"{prefect_server.api_url}/work_pools/", json=pool, timeout=10).raise_for_status()
    register_deployments(clean_environment(directory, settings))
    with Worker(directory, settings, _POOL) as running:
        workers.append(running)
        yield running


@pytest.fixture
def caller(site: Site, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """A caller of a site whose deployments the worker runs. Its `recover` runs when a test wants it to."""
    monkeypatch.setattr(Site, "journal_dir", worker.directory / "journal")
    caller = Caller(site, worker)
    recover = caller.deployment("recover/recover")
    for schedule in recover["schedules"]:
        path = f"deployments/{recover['id']}/schedules/{schedule['id']}"
        site.ask("PATCH", path, {"active": False}).raise_for_status()
    if worker.process is None:
        worker.start()
    yield caller
    caller.end_monitoring()
