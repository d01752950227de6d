"""Prefect's server dies in the middle of a release: all of it goes back without the server, at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.postgres import Postgres
from lab.prefect_server import PrefectServer, separate_server
from lab.processes import wait_until
from rules.release import Release
from rules.strategy import Canary, Watching
from tests.flows.site import EASY, ENDLESS, PATIENCE_S, Site
from tests.rules.releases import component

QUICK = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=30, limits=EASY))
#: Cut off soon, and time enough to come back, also on a busy machine.
_LEASE = {
    "SOVEREIGN_LEASE_S": "60",
    "SOVEREIGN_RENEW_EVERY_S": "0.5",
    "SOVEREIGN_CUT_OFF_AFTER_S": "3",
}


@pytest.fixture
def prefect_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """A Prefect server of its own, to be killed."""
    with separate_server(tmp_path_factory.mktemp("mortal"), postgres, "mortal_release") as server:
        yield server


def test_what_was_promoted_before_goes_back_within_the_lease_of_its_release(site: Site) -> None:
    """Two releases of one application stand for two components: the second is built upon the first."""
    first = component("first", site.change("2.0.0"), strategy=QUICK)
    second = component("second", site.change("3.0.0"), "first", strategy=ENDLESS)
    wanted = Release(name=site.application.name, release="3.0.0", components=(first, second))
    process = site.run("flows.release.release", {"change": wanted.model_dump(mode="json")}, _LEASE)
    wait_until(
        lambda: any(site.journal_dir.glob("*-2-second/samples.jsonl")),
        timeout_s=4 * PATIENCE_S,
        what="the second component to be watched",
        process=process,
    )
    site.server.kill()
    wait_until(
        lambda: all(view.is_terminal for view in site.views()),
        timeout_s=50,
        what="the way back",
        process=process,
    )
    assert {view.state for view in site.views()} == {"rolled_back"}
    assert site.application.observed() == site.before
    assert process.is_alive()  # it still tries to tell Prefect
