"""What tests share: one PostgreSQL and Prefect server for each test process, started when first wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import LabApplication
from lab.identity import MARK
from lab.postgres import Postgres
from lab.prefect_server import DATABASE, DRIVER, PrefectServer, migrated_cluster
from lab.processes import end_marked
from lab.systemd import LabSystemd
from tests.requirements import need_systemd


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail at once where xdist cannot keep a group of tests in one process: each would wait for the other."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    apart = [i.nodeid for i in items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
    if apart:
        raise pytest.UsageError(
            f"xdist does not keep groups together: {apart[0]}; see pyproject.toml on pytest"
        )


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session when a process of it still runs at its end."""
    directory = tmp_path_factory.getbasetemp()
    os.environ[MARK] = str(directory)  # inherited by all that tests start, however they do it
    yield
    left = end_marked(directory)
    assert not left, f"still running at the end, now ended: {left}"


@pytest.fixture(scope="session")
def lab_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is kept from one session to the next, where pytest keeps anything."""
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    return cache.mkdir("lab") if cache else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, lab_cache: Path) -> Iterator[Postgres]:
    """A PostgreSQL server with a migrated database for Prefect."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    server.start(template=migrated_cluster(lab_cache))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server on PostgreSQL, shared by the tests of this process."""
    url = postgres.url(DATABASE, driver=DRIVER)
    with PrefectServer(tmp_path_factory.mktemp("prefect"), url, migrated=True) as server:
        yield server


@pytest.fixture
def prefect_api(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefectServer]:
    """This process, and all it starts, as a client of the Prefect server."""
    # tests that need no Prefect do not wait for its import
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_HOME,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    environment = prefect_server.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = {
        PREFECT_API_URL: prefect_server.api_url,
        PREFECT_HOME: Path(environment["PREFECT_HOME"]),
        # each synchronous flow waits a second for its heartbeat's thread to end
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        # the logger outlives the server, and would complain at the end of the session
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings):
        yield prefect_server


@pytest.fixture
def application(tmp_path: Path) -> Iterator[LabApplication]:
    """An application of two blue and two green instances behind HAProxy, in its first release."""
    with LabApplication(tmp_path / "web") as running:
        yield running


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystemd]:
    """A host with a real systemd, reached by ssh; only one is booted at a time."""
    need_systemd()
    with LabSystemd(tmp_path_factory.mktemp("systemd")) as running:
        yield running
