"""What tests of the ways in share: a server of their own, with a worker, and a site that it deploys to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.postgres import Postgres
from lab.prefect_server import PrefectServer, separate_server
from tests.flows.conftest import _monitor, caller, kept_sites, site, worker, workers

__all__ = ["_monitor", "caller", "kept_sites", "prefect_server", "site", "worker", "workers"]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server of this room's own: its worker's journals are not those of the flows' tests."""
    with separate_server(tmp_path_factory.mktemp("ways-in"), postgres, "ways_in") as server:
        yield server
