"""What tests of flows share: a site with users, whose deployments run in processes that can be broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lab.prefect_server import PrefectServer, Worker
from lab.processes import clean_environment
from lab.register import register_deployments
from tests.flows.caller import Caller
from tests.flows.site import Site

_POOL = "sovereign"
_MONITOR = "monitor/monitor"
#: What makes a Prefect deployment, of all that its API says of one.
_MADE_OF = {
    "name",
    "flow_id",
    "entrypoint",
    "path",
    "pull_steps",
    "work_pool_name",
    "work_queue_name",
    "parameter_openapi_schema",
    "tags",
}

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


@pytest.fixture(scope="session")
def _monitor(worker: Worker) -> dict[str, Any]:
    """Prefect's deployment of the flow `monitor`, taken away: what makes it.

    The worker would watch whatever is promoted, also by tests that have none, for a quarter of an hour each.
    """
    with httpx.Client(base_url=worker.environment["PREFECT_API_URL"], timeout=10) as http:
        found: dict[str, Any] = http.get(f"/deployments/name/{_MONITOR}").raise_for_status().json()
        http.delete(f"/deployments/{found['id']}").raise_for_status()
    return {name: found[name] for name in _MADE_OF}


@pytest.fixture
def monitored(caller: Caller, _monitor: dict[str, Any]) -> Iterator[None]:
    """Have the worker watch what is promoted."""
    made = caller.site.ask("POST", "deployments/", _monitor).raise_for_status().json()["id"]
    yield
    caller.end_monitoring()
    caller.site.ask("DELETE", f"deployments/{made}").raise_for_status()


@pytest.fixture
def caller(site: Site, worker: Worker, _monitor: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Caller:
    """A caller of a site whose deployments the worker runs. Its `recover` runs when a test wants it to."""
    monkeypatch.setattr(Site, "journal_dir", worker.directory / "journal")
    caller = Caller(site, worker)
    recover = caller.deployment("recover/recover")
    for schedule in recover["schedules"]:
        path = f"deployments/{recover['id']}/schedules/{schedule['id']}"
        site.ask("PATCH", path, {"active": False}).raise_for_status()
    if worker.process is None:
        worker.start()
    return caller
