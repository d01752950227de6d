"""How the live side is doing, by HAProxy's real counters; no data is never 0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import LabApplication
from lab.load import Load
from lab.releases import Behaviour
from rules.traffic import Traffic
from tasks import haproxy
from tasks.baseline import measure_baseline

RATE = 60.0


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[LabApplication]:
    """An application, one instance a side, of which every third answer is an error and takes 30 ms."""
    behaviour = Behaviour(error_ratio=1 / 3, latency_s=0.03)
    with LabApplication(tmp_path / "web", blue=1, green=1, behaviour=behaviour) as running:
        yield running


def test_measures_what_users_of_the_live_side_get(faulty, tmp_path):
    with Load(faulty.url, RATE, tmp_path / "load", max_duration_s=30):
        time.sleep(0.5)
        measured = measure_baseline(faulty.fleet, window_s=3.0)
    assert measured.window_s == 3.0
    assert measured.requests == pytest.approx(3 * RATE, rel=0.35)
    assert measured.error_ratio == pytest.approx(1 / 3, abs=0.15)
    assert 0.03 <= measured.mean_response_s < 0.3


def test_follows_the_live_side_and_counts_only_its_window(faulty, tmp_path):
    with Load(faulty.url, RATE, tmp_path / "load", max_duration_s=30) as load:
        time.sleep(1.5)
        load.stop()
    haproxy.set_traffic(faulty.fleet.route, Traffic(live="green", candidate="blue"))
    measured = measure_baseline(faulty.fleet, window_s=0.2)
    assert (measured.requests, measured.error_ratio, measured.mean_response_s) == (0, None, None)
    haproxy.set_traffic(faulty.fleet.route, Traffic(live="blue", candidate="green"))
    assert measure_baseline(faulty.fleet, window_s=0.2).requests == 0, (
        "what was answered before is not counted"
    )


def test_without_a_balancer_or_with_a_dead_one_there_is_no_data(faulty):
    route = faulty.fleet.route
    hurried = route.model_copy(update={"balancer": route.balancer.model_copy(update={"timeout_s": 0.2})})
    faulty.haproxy.stop()
    for route in (None, hurried):
        measured = measure_baseline(faulty.fleet.model_copy(update={"route": route}), window_s=0.2)
        assert (measured.requests, measured.error_ratio, measured.mean_response_s) == (0, None, None)
