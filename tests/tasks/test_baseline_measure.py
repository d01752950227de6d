"""How the live side is doing, by real counters, probes, hosts and a real Prometheus; no data is never 0."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from blocks.prometheus import Prometheus
from lab.application import LabApplication
from lab.load import Load
from lab.ports import free_port, give_back
from lab.prometheus import LabMonitoring, LabPrometheus
from lab.releases import Behaviour
from rules.baseline import METRICS, Baseline, MetricQuery, compare
from rules.errors import AbortedError
from rules.fleet import Fleet, Probe
from rules.traffic import Traffic
from tasks import haproxy
from tasks.baseline import declared_readings, measure_baseline
from tests.requirements import need
from tests.rules.builders import instance

RATE = 60.0
NAMES = [metric.name for metric in METRICS]
TRAFFIC = ("error_ratio", "requests_per_s", "mean_response_s")
HOST = ("cpu_ratio", "memory_ratio", "disk_ratio", "network_bytes_per_s")
GPU = ("gpu_ratio", "gpu_memory_ratio")


class Users:
    """An exporter of an application's own metrics by the users' names, with `rate` requests a second."""

    def __init__(self, rate: float) -> None:
        self.port, self._rate, self._stopped = free_port(), rate, threading.Event()
        registry = CollectorRegistry()
        self._requests = Counter("http_requests", "Requests.", ["status"], registry=registry)
        buckets = (0.01, 0.05, 0.1, 0.2, 1.0)
        self._took = Histogram("http_request_duration_seconds", "", buckets=buckets, registry=registry)
        self.errors_of_ten = 0
        self._server, self._serving = start_http_server(self.port, "127.0.0.1", registry)
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        number = 0
        while not self._stopped.wait(1 / self._rate):
            number += 1
            self._requests.labels(status="500" if number % 10 < self.errors_of_ten else "200").inc()
            self._took.observe(0.15 if number % 10 == 0 else 0.03)

    def silence(self) -> None:
        self._stopped.set()
        self._thread.join()

    def stop(self) -> None:
        self.silence()
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()
        give_back(self.port)


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    running = Users(rate=50)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory, users: Users) -> Iterator[LabMonitoring]:
    """Prometheus with node-exporter and the users' metrics, of which no error has happened yet."""
    need("prometheus", package="prometheus")
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    need("prometheus-node-exporter", package="prometheus-node-exporter")
    with LabMonitoring(tmp_path_factory.mktemp("monitoring"), {"web": users.port}) as running:
        running.prometheus.wait_until_scraped(times=4)
        yield running


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[LabApplication]:
    """An application, one instance a side, of which every third answer is an error and takes 30 ms."""
    behaviour = Behaviour(error_ratio=1 / 3, latency_s=0.03)
    with LabApplication(tmp_path / "web", blue=1, green=1, behaviour=behaviour) as running:
        yield running


@pytest.fixture
def nobody() -> Fleet:
    """A fleet without a balancer, whose one instance answers nothing."""
    return Fleet(application="web", instances=(instance("node-1", backend=None),))


def values(measured: Baseline, names: tuple[str, ...]) -> list[float | None]:
    return [measured.reading(name).value for name in names]


def statuses(measured: Baseline, names: tuple[str, ...]) -> set[str]:
    return {measured.reading(name).status for name in names}


def sources(measured: Baseline, names: tuple[str, ...]) -> set[str]:
    return {measured.reading(name).source for name in names}


def test_measures_what_users_of_the_live_side_get_and_what_its_host_does(faulty, tmp_path):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    with Load(faulty.url, RATE, tmp_path / "load", max_duration_s=30):
        time.sleep(0.5)
        measured = measure_baseline(faulty.fleet, window_s=3.0, clock=lambda: at)
    assert (measured.window_s, measured.at) == (3.0, at)
    assert [reading.name for reading in measured.readings] == NAMES
    error_ratio, requests_per_s, mean_s = values(measured, TRAFFIC)
    assert requests_per_s == pytest.approx(RATE, rel=0.35)
    assert error_ratio == pytest.approx(1 / 3, abs=0.15)
    assert 0.03 <= mean_s < 0.3
    assert sources(measured, TRAFFIC) == {"balancer"}
    p50_s, p95_s = values(measured, ("latency_p50_s", "latency_p95_s"))
    assert 0 < p50_s <= p95_s < 1.0
    assert sources(measured, ("latency_p50_s", "latency_p95_s")) == {"probe"}
    assert sources(measured, HOST) == {"hosts"}
    assert statuses(measured, HOST) == {"ok"}


def test_no_gpu_is_said_and_the_same_before_and_after(faulty):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    before, after = (measure_baseline(faulty.fleet, window_s=0.2) for _ in range(2))
    assert statuses(before, GPU) == {"absent"}
    assert {c.name: c.result for c in compare(before, after) if c.name in GPU} == dict.fromkeys(GPU, "same")


def test_follows_the_live_side_and_counts_only_its_window(faulty, tmp_path):
    with Load(faulty.url, RATE, tmp_path / "load", max_duration_s=30) as load:
        time.sleep(1.5)
        load.stop()
    for live, candidate in (("green", "blue"), ("blue", "green")):
        haproxy.set_traffic(faulty.fleet.route, Traffic(live=live, candidate=candidate))
        measured = measure_baseline(faulty.fleet, window_s=0.2)
        assert values(measured, TRAFFIC) == [None, 0.0, None], "what was answered before is not counted"
        assert measured.reading("error_ratio").note == f"{live}: 0 requests, 0 errors"


def test_a_balancer_that_is_dead_gives_an_error_and_the_probes_go_on(faulty):
    route = faulty.fleet.route
    hurried = route.model_copy(update={"balancer": route.balancer.model_copy(update={"timeout_s": 0.2})})
    faulty.haproxy.stop()
    measured = measure_baseline(faulty.fleet.model_copy(update={"route": hurried}), window_s=2.0)
    assert statuses(measured, TRAFFIC) == {"provider_error"}
    assert "HAProxy did not answer" in measured.reading("error_ratio").note
    assert statuses(measured, ("latency_p50_s", *HOST)) == {"ok"}


def test_without_a_balancer_and_a_prometheus_probes_say_how_long_an_answer_takes(faulty):
    fleet = faulty.fleet.model_copy(update={"route": None})
    measured = measure_baseline(fleet, window_s=2.0)
    assert statuses(measured, ("error_ratio", "requests_per_s")) == {"no_data"}
    assert sources(measured, ("mean_response_s", "latency_p50_s", "latency_p95_s")) == {"probe"}
    assert all(value > 0 for value in values(measured, ("mean_response_s", "latency_p50_s", "latency_p95_s")))


def test_it_takes_its_window_and_no_longer(faulty):
    for window_s in (0.2, 1.0):
        began_s = time.monotonic()
        measure_baseline(faulty.fleet, window_s=window_s)
        assert window_s <= time.monotonic() - began_s < window_s + 1.0


@pytest.mark.parametrize("probed", [True, False], ids=["probing", "only waiting"])
def test_a_window_ends_within_seconds_when_nobody_wants_it_any_more(faulty, probed):
    fleet = faulty.fleet if probed else faulty.fleet.model_copy(update={"instances": ()})
    asked: list[float] = []

    def still_wanted() -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            raise AbortedError("second thoughts")

    began_s = time.monotonic()
    with pytest.raises(AbortedError, match="second thoughts"):
        measure_baseline(fleet, window_s=60, still_wanted=still_wanted)
    assert time.monotonic() - began_s < 10
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked)), "once a second"


def test_instances_that_hang_do_not_make_it_longer(nobody):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/health"
        probes = Probe(url=url, timeout_s=0.2)
        hanging = nobody.instances[0].model_copy(update={"probe": probes})
        fleet = nobody.model_copy(update={"instances": (hanging,)})
        began_s = time.monotonic()
        measured = measure_baseline(fleet, window_s=1.1)
        assert time.monotonic() - began_s < 2.1
    assert measured.reading("latency_p50_s").value == pytest.approx(0.2), "they take at least their timeout"


def test_with_prometheus_the_users_own_counters_and_histogram_are_read(monitoring, users, nobody):
    measured = measure_baseline(nobody, window_s=4.0, prometheus=monitoring.prometheus.block)
    error_ratio, requests_per_s, mean_s = values(measured, TRAFFIC)
    assert error_ratio == 0.0, "before the first error there is no series of errors, and that is 0"
    assert requests_per_s == pytest.approx(50, rel=0.3)
    assert mean_s == pytest.approx(0.9 * 0.03 + 0.1 * 0.15, rel=0.2)
    p50_s, p95_s = values(measured, ("latency_p50_s", "latency_p95_s"))
    assert 0.01 < p50_s <= 0.05
    assert 0.1 < p95_s <= 0.2
    assert sources(measured, (*TRAFFIC, *HOST, "latency_p95_s")) == {"prometheus"}
    assert statuses(measured, HOST) == {"ok"}
    assert all(0 <= value <= 1 for value in values(measured, HOST[:3]))
    users.errors_of_ten = 2
    try:
        worse = measure_baseline(nobody, window_s=4.0, prometheus=monitoring.prometheus.block)
    finally:
        users.errors_of_ten = 0
    found = {c.name: c for c in compare(measured, worse)}
    assert found["error_ratio"].takes_back
    assert found["latency_p95_s"].result == "same"


def test_hosts_say_the_same_by_node_exporter_and_by_themselves(monitoring, faulty):
    by_exporter = measure_baseline(faulty.fleet, window_s=3.0, prometheus=monitoring.prometheus.block)
    direct = measure_baseline(faulty.fleet, window_s=3.0)
    assert sources(by_exporter, HOST) == {"prometheus"}
    assert by_exporter.reading("memory_ratio").value == pytest.approx(
        direct.reading("memory_ratio").value, abs=0.1
    )
    assert by_exporter.reading("disk_ratio").value >= direct.reading("disk_ratio").value - 0.02
    assert sources(by_exporter, TRAFFIC) == {"balancer"}, "the live side's own counters come first"


def test_a_prometheus_without_such_series_leaves_hosts_and_probes_to_be_asked(tmp_path, faulty):
    need("prometheus", package="prometheus")
    with LabPrometheus(tmp_path / "prometheus", {}) as server:
        measured = measure_baseline(faulty.fleet, window_s=1.0, prometheus=server.block)
    assert sources(measured, HOST) == {"hosts"}
    assert sources(measured, ("latency_p50_s",)) == {"probe"}


DECLARED = (
    MetricQuery(name="up_jobs", query="sum(up)", unit="jobs", direction="higher_is_better"),
    MetricQuery(name="requests", query="sum(increase(http_requests_total[$window]))"),
    MetricQuery(name="missing", query="no_such_metric"),
    MetricQuery(name="not_a_number", query="vector(0) / 0"),
    MetricQuery(name="several", query="up"),
    MetricQuery(name="wrong", query="sum("),
)


def test_declared_metrics_are_read_over_the_window_and_nan_and_nothing_are_no_data(monitoring, nobody):
    measured = measure_baseline(
        nobody, window_s=3.0, prometheus=monitoring.prometheus.block, metrics=DECLARED
    )
    assert [reading.name for reading in measured.readings] == [*NAMES, *(m.name for m in DECLARED)]
    assert measured.reading("up_jobs").in_words == "2 jobs"
    assert measured.reading("requests").value == pytest.approx(150, rel=0.4)
    assert statuses(measured, ("missing", "not_a_number")) == {"no_data"}
    assert statuses(measured, ("several", "wrong")) == {"provider_error"}
    assert "Aggregate it" in measured.reading("several").note
    assert "parse error" in measured.reading("wrong").note
    results = {c.name: c.result for c in compare(measured, measured, DECLARED)}
    assert (results["up_jobs"], results["missing"], results["wrong"]) == ("same", "no_data", "provider_error")


def test_without_a_prometheus_declared_metrics_have_no_data():
    (reading, *_) = declared_readings(None, DECLARED, window_s=1.0)
    assert (reading.status, reading.note) == ("no_data", "no Prometheus block is named")


def test_a_killed_prometheus_is_a_provider_error_and_the_balancer_still_counts(tmp_path, faulty):
    need("prometheus", package="prometheus")
    with LabPrometheus(tmp_path / "prometheus", {}) as server:
        server.kill()
        with Load(faulty.url, RATE, tmp_path / "load", max_duration_s=30):
            time.sleep(0.5)
            measured = measure_baseline(
                faulty.fleet, window_s=1.0, prometheus=server.block, metrics=DECLARED[:2]
            )
    away = (*HOST, "latency_p50_s", "latency_p95_s", "up_jobs", "requests")
    assert statuses(measured, away) == {"provider_error"}
    assert "Connection refused" in measured.reading("cpu_ratio").note
    assert statuses(measured, TRAFFIC) == {"ok"}
    assert measured.reading("error_ratio").value == pytest.approx(1 / 3, abs=0.2)


def test_a_prometheus_that_never_answers_costs_two_timeouts_and_not_one_for_each_metric(nobody):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        block = Prometheus(url=f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.5)
        began_s = time.monotonic()
        measured = measure_baseline(nobody, window_s=0.2, prometheus=block, metrics=DECLARED)
        assert time.monotonic() - began_s < 2.4  # with 14 metrics it would be 7
    assert statuses(measured, (*HOST, "latency_p95_s", "wrong")) == {"provider_error"}


def test_users_who_are_gone_are_no_data_for_errors_and_0_requests(tmp_path, nobody):
    need("prometheus", package="prometheus")
    users = Users(rate=50)
    try:
        time.sleep(0.1)
        users.silence()
        with LabPrometheus(tmp_path / "prometheus", {"web": users.port}) as server:
            server.wait_until_scraped(times=4)
            measured = measure_baseline(nobody, window_s=3.0, prometheus=server.block)
    finally:
        users.stop()
    assert measured.reading("error_ratio").status == "no_data"
    assert measured.reading("requests_per_s").value == 0.0
    assert statuses(measured, ("latency_p50_s", "latency_p95_s", "mean_response_s")) == {"no_data"}
