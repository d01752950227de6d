"""What tests of flows share: a site with users, whose deployments run in processes that can be broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.prefect_server import PrefectServer
from tests.flows.site import Site


@pytest.fixture
def site(tmp_path: Path, prefect_api: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An application with users, known to the Prefect server that these tests share."""
    with Site(tmp_path, prefect_api) as running:
        for name, value in running.variables().items():
            monkeypatch.setenv(name, value)
        yield running
