"""Watching a side by HAProxy's real counters: no data, no answer and no balancer are never a pass."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lab.application import LabApplication
from lab.load import Load
from lab.prefect_server import PrefectServer
from lab.releases import Behaviour
from rules.entries import Moved
from rules.errors import FencedError, StepFailedError
from rules.fleet import Fleet
from rules.plan import ObserveBatch, WatchSide
from rules.strategy import CanaryLimits, Watching
from rules.traffic import Counts, Traffic
from rules.verdict import Outcome, Verdict
from tasks import haproxy
from tasks.application import restart_service, switch_release, wait_until_ready
from tasks.deployment import OpenDeployment, open_deployment
from tasks.journal import JournalFile
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tasks.watch import observe_batch, watch_side
from tests.tasks.deploying import opening, settings_in
from tests.tasks.updating import NEXT_RELEASE, SETTINGS, stage

HALF = Traffic(live="blue", candidate="green", canary_basis_points=5_000)
#: Few requests are enough to pass: what is tested is the watching, not the statistics.
LENIENT = CanaryLimits(success_error_ratio=0.5, failure_error_ratio=0.8, min_observation_s=0.5)
STRICT = CanaryLimits(min_requests=30)
REQUESTS_PER_S = 80.0


def behave(trio: LabApplication, behaviour: Behaviour, *names: str) -> None:
    """Bring instances to a release that behaves so."""
    change = trio.change(NEXT_RELEASE, behaviour)
    for instance in map(trio.fleet.instance, names):
        stage(instance, change)
        switch_release(instance, NEXT_RELEASE)
        restart_service(instance, settings=SETTINGS)
        wait_until_ready(instance, NEXT_RELEASE, timeout_s=20)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[LabApplication]:
    """One blue and two green instances behind HAProxy; each side has half of the requests."""
    with LabApplication(tmp_path / "web", blue=1, green=2) as running:
        haproxy.set_traffic(running.fleet.route, HALF)
        yield running


@pytest.fixture
def users(trio: LabApplication, tmp_path: Path) -> Iterator[Load]:
    with Load(trio.url, REQUESTS_PER_S, tmp_path / "load", max_duration_s=60) as load:
        yield load


@pytest.fixture
def deployment(
    prefect_api: PrefectServer, trio: LabApplication, settings: Settings
) -> Iterator[OpenDeployment]:
    with PrefectApi(settings) as api, open_deployment(opening(hurried(trio.fleet)), api, settings) as opened:
        yield opened


def hurried(fleet: Fleet) -> Fleet:
    """Return the fleet with a balancer that is not waited for."""
    address = fleet.route.balancer.model_copy(update={"timeout_s": 0.2})
    return fleet.model_copy(update={"route": fleet.route.model_copy(update={"balancer": address})})


def watch(
    deployment: OpenDeployment, limits: CanaryLimits, *, deadline_s: float = 15, bake_s: float = 0.0
) -> Verdict:
    watching = Watching(tick_s=0.2, deadline_s=deadline_s, limits=limits)
    action = WatchSide(side="green", stable="blue", share=5_000, watch=watching, bake_s=bake_s)
    return watch_side(deployment, action, title="watch green")


def observe(deployment: OpenDeployment, observe_s: float = 1.0, limits: CanaryLimits = LENIENT):
    action = ObserveBatch(instances=("green-1",), observe_s=observe_s, limits=limits)
    return observe_batch(deployment, action, title="observe green-1")


def samples(deployment: OpenDeployment) -> list[dict]:
    text = (deployment.journal.directory / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def later(after_s: float, work) -> Iterator[None]:
    """Do `work` in mid-watch, and wait for it at the end."""
    timer = threading.Timer(after_s, work)
    timer.start()
    yield
    timer.join()


def test_a_good_release_under_users_passes(deployment, users):
    verdict = watch(deployment, LENIENT)
    assert verdict.outcome is Outcome.PASS
    kept = samples(deployment)
    assert sum(sample["canary"]["requests"] for sample in kept) == verdict.canary_requests
    assert kept[-1]["outcome"] == "PASS"


def test_a_bad_release_under_users_fails_with_its_arithmetic(deployment, trio, users):
    behave(trio, Behaviour(error_ratio=0.4), "green-1", "green-2")
    verdict = watch(deployment, STRICT)
    assert verdict.outcome is Outcome.FAIL
    assert "worse than stable" in verdict.reasons[0]
    assert verdict.canary_error_ratio > 0.2
    assert verdict.stable_error_ratio == 0


def test_a_pass_is_kept_under_watch_until_the_bake_is_over(deployment, users):
    began = time.monotonic()
    assert watch(deployment, LENIENT, bake_s=1.5).outcome is Outcome.PASS
    assert time.monotonic() - began >= 2.0


def test_without_a_request_there_is_no_data(deployment):
    limits = LENIENT.model_copy(update={"no_data_after_s": 0.7})
    verdict = watch(deployment, limits)
    assert verdict.outcome is Outcome.NO_DATA
    assert verdict.canary_requests == 0


def test_not_shown_to_be_good_in_time_is_no_pass(deployment, users):
    verdict = watch(deployment, LENIENT.model_copy(update={"min_observation_s": 60}), deadline_s=1)
    assert verdict.outcome is Outcome.HOLD
    assert verdict.reasons[0] == "not shown to be good within 1 s"


def test_a_balancer_that_dies_in_mid_watch_is_held_and_never_passed(deployment, trio, users):
    patient = LENIENT.model_copy(update={"min_observation_s": 1.5})
    with later(0.7, trio.haproxy.stop):
        verdict = watch(deployment, patient, deadline_s=3)
    assert verdict.outcome is Outcome.HOLD
    assert "the balancer does not answer" in verdict.reasons[1]
    outcomes = [sample["outcome"] for sample in samples(deployment)]
    assert outcomes[0] == "HOLD"
    assert outcomes[-1] == "PROVIDER_ERROR"
    assert "PASS" not in outcomes


def test_a_balancer_that_was_never_there_is_an_error_and_no_verdict(deployment, trio):
    trio.haproxy.stop()
    with pytest.raises(haproxy.BalancerError, match="HAProxy did not answer"):
        watch(deployment, LENIENT)


def test_counters_that_a_restart_set_to_zero_do_not_confuse_the_watch(deployment, trio, users):
    patient = LENIENT.model_copy(update={"min_observation_s": 3.0})
    with later(1.2, trio.haproxy.restart):
        verdict = watch(deployment, patient)
    assert verdict.outcome is Outcome.PASS
    seen = [Counts(**sample["canary"]) for sample in samples(deployment) if sample["canary"]]
    assert max(tick.requests for tick in seen) < REQUESTS_PER_S
    users.stop()
    sent = users.summary().by_side["green"]
    assert 0 < verdict.canary_requests <= sent


def test_a_watch_ends_when_another_process_takes_the_deployment_over(deployment, settings, users):
    journal = JournalFile(settings.journal_dir, deployment.name)
    moved = Moved(state="rolling_back", reason="it seemed dead", by="recover")
    began = time.monotonic()
    with later(0.5, lambda: journal.append(moved)), pytest.raises(FencedError):
        watch(deployment, LENIENT.model_copy(update={"min_observation_s": 60}))
    assert time.monotonic() - began < 3


# --- a batch of a rolling update -------------------------------------------------------------------


def test_a_batch_is_judged_by_its_own_servers(deployment, users):
    verdict = observe(deployment, 1.5)
    assert verdict.outcome is Outcome.PASS
    assert verdict.canary_requests > 0
    assert verdict.stable_requests > 0


def test_a_bad_batch_stops_before_its_time_is_over(deployment, trio, users):
    behave(trio, Behaviour(error_ratio=0.9), "green-1")
    began = time.monotonic()
    assert observe(deployment, 30, STRICT).outcome is Outcome.FAIL
    assert time.monotonic() - began < 15


def test_a_batch_without_traffic_is_held_and_stops_nothing(deployment):
    assert observe(deployment, 0.5).outcome is Outcome.HOLD


def test_an_instance_that_dies_after_its_update_stops_the_rollout(deployment, trio):
    stopped = pytest.raises(StepFailedError, match=r"green-1 stopped answering its probe within 0\.6 s")
    with later(0.2, lambda: trio.kill("green-1")), stopped:
        observe(deployment, 0.6)


def test_without_a_balancer_only_the_probes_speak(prefect_api, trio, settings):
    bare = trio.fleet.model_copy(update={"route": None})
    with PrefectApi(settings) as api, open_deployment(opening(bare), api, settings) as opened:
        assert observe(opened, 0.3) is None
        with pytest.raises(StepFailedError, match="no balancer to count its answers"):
            watch(opened, LENIENT)
    assert httpx.get(trio.fleet.instance("green-1").probe.url).is_success
