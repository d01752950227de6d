"""Good releases are promoted, bad ones are taken back, whatever is wrong with them and by any strategy."""

from __future__ import annotations

import re

import pytest

from flows.application import update_application
from flows.deploy import deploy
from flows.guard import TakenBackError
from lab.releases import Behaviour
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Strategy, Watching
from tests.flows.site import EASY, Site

QUICK = Watching(tick_s=0.2, deadline_s=20, limits=EASY)
STRATEGIES: dict[str, Strategy] = {
    "in place": InPlace(instance="blue-1"),
    "blue-green": BlueGreen(watch=QUICK),
    "canary": Canary(steps_percent=(50, 100), watch=QUICK),
    "rolling": Rolling(observe_s=0.3, limits=EASY),
}
#: The guide's limits, watched closely.
STRICT = Watching(tick_s=0.2, deadline_s=60, limits=CanaryLimits(min_observation_s=1))


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_good_release_is_promoted(site: Site, strategy: Strategy) -> None:
    deploy(site.change(), strategy)

    view = site.view()
    assert view.state == "promoted"
    assert view.plan
    assert site.fleet_state() == view.plan.after
    assert site.fleet_state() != view.plan.before
    assert site.owner() is None
    assert site.run_state(view.opened.flow_run_id)[0] == "COMPLETED"
    assert site.failed_requests() == 0 or strategy.strategy == "in_place"


def test_an_update_flow_alone_also_promotes_a_good_release(site: Site) -> None:
    record = update_application(site.change(), STRATEGIES["rolling"])

    assert record.state == site.view().state == "promoted"
    assert site.owner() is None


def test_a_canary_with_errors_is_taken_back_with_metric_value_threshold_and_samples(site: Site) -> None:
    change = site.change(behaviour=Behaviour(error_ratio=0.15))
    with pytest.raises(TakenBackError) as raised:
        deploy(change, Canary(steps_percent=(50, 100), watch=STRICT))

    view = site.view()
    why = re.search(
        r"watch green at 50 %: FAIL: worse than stable: (\d+) errors in (\d+) requests \((0\.\d+)\) "
        r"against 0 errors in \d+ requests .*; odds .* to 1, \d+ needed",
        view.cause,
    )
    assert why, view.cause
    assert 0.05 < int(why[1]) / int(why[2]) < 0.4
    assert_taken_back(site, str(raised.value))
    assert view.cause in site.artifact(f"record-{view.opened.deployment}")
    assert "P2" in site.artifact(f"incident-{view.opened.deployment}")


def test_blue_green_with_errors_is_switched_back(site: Site) -> None:
    change = site.change(behaviour=Behaviour(error_ratio=0.4))
    with pytest.raises(TakenBackError, match="above the failure limit"):
        deploy(change, BlueGreen(watch=STRICT))

    assert_taken_back(site)


@pytest.mark.parametrize(
    ("strategy", "behaviour", "words"),
    [
        pytest.param("canary", Behaviour(fails_to_start=True), "its service has ended", id="fails to start"),
        pytest.param("rolling", Behaviour(ready_after_s=600), "nothing healthy answers", id="never ready"),
        pytest.param("in place", Behaviour(wrong_version=True), "2.0.0-wrong answers", id="other version"),
    ],
)
def test_a_release_that_does_not_come_up_is_taken_back(
    site: Site, strategy: str, behaviour: Behaviour, words: str
) -> None:
    site.save(start_timeout_s=2)
    with pytest.raises(TakenBackError, match=words):
        deploy(site.change(behaviour=behaviour), STRATEGIES[strategy])

    assert_taken_back(site, words)


def test_a_release_that_dies_while_it_is_watched_is_taken_back(site: Site) -> None:
    change = site.change(behaviour=Behaviour(dies_after_s=4))
    patient = Watching(tick_s=0.2, deadline_s=60, limits=CanaryLimits(min_observation_s=30))
    with pytest.raises(TakenBackError, match="watch green at 50 %: FAIL"):
        deploy(change, Canary(steps_percent=(50, 100), watch=patient))

    assert_taken_back(site)


def assert_taken_back(site: Site, words: str = "") -> None:
    """All is as before, the lock is free, and Prefect shows a failed run that says why."""
    view = site.view()
    assert view.state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None
    state, message = site.run_state(view.opened.flow_run_id)
    assert state == "FAILED"
    assert words in message
    assert "Rolled back and verified" in message
