"""What tests of flows share: a site with users, whose deployments run in processes that can be broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.prefect_server import PrefectServer
from tests.flows.site import Site

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
