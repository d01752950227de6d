"""Deployments behind nginx and behind an HTTP API are promoted, and taken back, as those behind HAProxy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError
from lab.http_balancer import LabHttpBalancer
from lab.load import Load
from lab.nginx import LabNginx
from lab.register import save_blocks
from lab.releases import Behaviour
from rules.fleet import Fleet
from rules.strategy import BlueGreen, Canary, Rolling, Strategy, Watching
from tasks.fleet import observe_fleet
from tests.flows.site import EASY, Site

QUICK = Watching(tick_s=0.2, deadline_s=30, limits=EASY)
#: The guide's limits, looked at closely.
STRICT = Watching(tick_s=0.2, deadline_s=60)
_RATE_PER_S = 60.0


class Front:
    """A site behind another balancer, with users who come through it."""

    def __init__(self, site: Site, fleet: Fleet, load: Load) -> None:
        self.site, self.fleet, self.load = site, fleet, load

    def failed_requests(self, since: float) -> int:
        """Return how many of its users have had no good answer, from a time of the day on."""
        return sum(row["failed"] for row in self.load.rows() if row["t"] >= since)

    def last_releases(self) -> set[str | None]:
        """Return which releases the newest users met."""
        time.sleep(0.5)
        return {row["release"] for row in self.load.rows() if row["t"] >= time.time() - 0.4}

    def is_taken_back(self) -> None:
        """Deploy a bad release, which is switched to and back."""
        before = observe_fleet(self.fleet)
        with pytest.raises(TakenBackError, match="above the failure limit"):
            deploy(self.site.change("1.9.0", Behaviour(error_ratio=0.4)), BlueGreen(watch=STRICT))

        view = self.site.views()[-1]
        assert view.state == "rolled_back"
        assert view.opened.fleet.route == self.fleet.route
        assert observe_fleet(self.fleet) == before
        assert self.last_releases() == {"1.0.0"}

    def is_promoted(self, strategy: Strategy) -> None:
        """Deploy a good release, and lose nobody."""
        began = time.time()
        deploy(self.site.change("2.0.0"), strategy)

        view = self.site.views()[-1]
        assert view.state == "promoted"
        assert view.plan
        assert observe_fleet(self.fleet) == view.plan.after
        assert self.last_releases() == {"2.0.0"}
        assert self.failed_requests(began) == 0


def behind_nginx(site: Site, directory: Path, parts: ExitStack) -> Front:
    app = site.application
    front = parts.enter_context(
        LabNginx(directory / "nginx", app.backends, route_key=app.name, live="blue", candidate="green")
    )
    load = parts.enter_context(Load(f"{front.url}/", _RATE_PER_S, directory / "users", max_duration_s=600))
    return Front(site, app.fleet.model_copy(update={"route": front.route}), load)


def behind_api(site: Site, directory: Path, parts: ExitStack) -> Front:
    front = parts.enter_context(LabHttpBalancer(directory / "api", site.application.haproxy))
    fleet = site.application.fleet.model_copy(update={"route": front.route})
    return Front(site, fleet, site.load)


@pytest.fixture
def parts(site: Site) -> Iterator[ExitStack]:
    """What a test starts, ended after it."""
    with ExitStack() as started:
        started.callback(site.save)  # the next test finds the block of its own balancer
        yield started


def test_behind_nginx_a_bad_release_is_taken_back_and_a_rolling_one_promoted(
    site: Site, tmp_path: Path, parts: ExitStack
) -> None:
    front = behind_nginx(site, tmp_path, parts)
    save_blocks(front.fleet)
    front.is_taken_back()
    front.is_promoted(Rolling(observe_s=0.3, drain_s=20, limits=EASY))


def test_behind_an_api_a_bad_release_is_taken_back_and_a_canary_promoted(
    site: Site, tmp_path: Path, parts: ExitStack
) -> None:
    front = behind_api(site, tmp_path, parts)
    save_blocks(front.fleet)
    front.is_taken_back()
    # refused when it is planned: it knows whole environments only, and nothing is touched
    before = observe_fleet(front.fleet)
    with pytest.raises(TakenBackError, match=r"whole environments only(.|\n)*Nothing was touched"):
        deploy(site.change("2.0.0"), Rolling(observe_s=0.3, drain_s=20, limits=EASY))
    assert observe_fleet(front.fleet) == before
    front.is_promoted(Canary(steps_percent=(50, 100), watch=QUICK))
