"""Measure how the live side and its hosts are doing, over a window: the same way before and after a rollout.

Where a metric comes from is settled when the window begins, and is said in each reading's `source`:

- error ratio, requests and mean response: the balancer's own counters of the live side; without a balancer
  the application's counters in Prometheus.
- p50 and p95: the histogram in Prometheus; where there is none, the instances' probes, timed.
- CPU, memory, disk, network: node-exporter in Prometheus; where there is none, the hosts themselves.
- GPUs: the hosts themselves.
- the users' own metrics: Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from blocks.prometheus import Prometheus
from rules.baseline import METRICS, UNITS, Baseline, MetricQuery, Reading
from rules.database import Database
from rules.errors import BalancerError, DeployError
from rules.fleet import Fleet, Probe
from rules.host_metrics import HostSample, gpu_readings, host_readings, use_between
from rules.hosts import HostAddress
from rules.latency import probe_readings
from rules.prometheus import application_queries, declared_query, duration, exists_query, host_queries
from rules.provider import ProviderError, QueryRefusedError
from rules.traffic import Counts
from tasks import balancer
from tasks.host_metrics import paths_by_host, read_hosts
from tasks.probe import Probed, pause_between, probe_until
from tasks.prometheus import query

_HOST = ("cpu_ratio", "memory_ratio", "disk_ratio", "network_bytes_per_s")
_GPU = ("gpu_ratio", "gpu_memory_ratio")
_TRAFFIC = ("error_ratio", "requests_per_s", "mean_response_s")
_LATENCY = ("latency_p50_s", "latency_p95_s")

_Samples = Mapping[HostAddress, HostSample]


def _now() -> datetime:
    return datetime.now(UTC)


def measure_baseline(
    fleet: Fleet,
    *,
    window_s: float,
    prometheus: Prometheus | None = None,
    metrics: Sequence[MetricQuery] = (),
    database: Database | None = None,
    clock: Callable[[], datetime] = _now,
    still_wanted: Callable[[], object] = lambda: None,
) -> Baseline:
    """Return how the live side, its hosts and the users' own metrics are over the next `window_s` seconds.

    It takes that long; a Prometheus or a host that does not answer may make it longer, by two timeouts at
    most. It raises nothing for a source that is away: its readings are `provider_error`, with the reason. A
    window shorter than two scrapes of Prometheus has no data there.

    Args:
        fleet: the application.
        window_s: the same before and after, or `compare` refuses.
        prometheus: None: hosts and probes are asked directly, and declared metrics have no data.
        metrics: the users' own; one that has the name of a metric of ours takes its place.
        database: whose host is looked at too.
        clock: what time it is when the window ends.
        still_wanted: called about each second while the window lasts; may raise to give up.
    """
    began_s = time.monotonic()
    provider = _Provider(prometheus, window_s)
    traffic = _TrafficWindow(fleet)
    hosts = _HostWindow(fleet, database)
    provider.find_series(with_traffic=fleet.route is None)
    probes = () if provider.has_latency else traffic.probes
    probed = probe_until(
        probes, began_s + window_s, pause_s=pause_between(window_s), still_wanted=still_wanted
    )
    found = {
        **_latency(provider, probed),  # its mean is the answer only where nobody else has one
        **_by_name(traffic.readings() or provider.application(_TRAFFIC) or ()),
        **_by_name(hosts.readings(provider)),
    }
    found |= _by_name(declared_readings(prometheus, metrics, window_s=window_s))
    order = dict.fromkeys((*(metric.name for metric in METRICS), *found))
    readings = [found.get(name) or _unmeasured(name) for name in order]
    return Baseline(window_s=window_s, at=clock(), readings=tuple(readings))


def declared_readings(
    prometheus: Prometheus | None, metrics: Sequence[MetricQuery], *, window_s: float
) -> tuple[Reading, ...]:
    """Return the users' own metrics over the `window_s` seconds up to now; this does not wait.

    The first question without an answer is the last that is asked: the others read `provider_error` with it.
    A query that is refused reads so too, but the others are asked.
    """
    provider = _Provider(prometheus, window_s)
    return tuple(
        provider.read(metric.name, metric.unit, declared_query(metric, window_s)) for metric in metrics
    )


def _unmeasured(name: str) -> Reading:
    note = "neither a balancer nor such series in a Prometheus"
    return Reading(name=name, unit=UNITS[name], source="none", note=note)


def _by_name(readings: Sequence[Reading]) -> dict[str, Reading]:
    return {reading.name: reading for reading in readings}


def _failed(names: Sequence[str], source: str, error: DeployError) -> tuple[Reading, ...]:
    return tuple(
        Reading(name=name, unit=UNITS[name], status="provider_error", source=source, note=str(error))
        for name in names
    )


def _latency(provider: _Provider, probed: Probed) -> dict[str, Reading]:
    by_probe = _by_name(probe_readings(probed.took_s, probed.failed))
    return {**by_probe, **_by_name(provider.application(_LATENCY) if provider.has_latency else ())}


class _Provider:
    """Prometheus over one window. Once it gives no answer it is not asked again, for each costs a timeout."""

    def __init__(self, prometheus: Prometheus | None, window_s: float) -> None:
        self.prometheus, self._window_s = prometheus, window_s
        self._away: ProviderError | None = None
        self.has_nodes = self.has_latency = self.has_traffic = False

    def find_series(self, *, with_traffic: bool) -> None:
        """Find out whose series there are; of a Prometheus that is away all are expected."""
        if self.prometheus is None:
            return
        block = self.prometheus
        self.has_nodes = self._exists("node_cpu_seconds_total", block.node_selector)
        self.has_latency = self._exists(block.duration_metric, block.selector)
        self.has_traffic = with_traffic and self._exists(block.request_metric, block.selector)

    def _exists(self, metric: str, selector: str) -> bool:
        reading = self.read(metric, "", exists_query(metric, selector))
        return reading.status != "no_data"

    def read(self, name: str, unit: str, expression: str) -> Reading:
        """Return what Prometheus says of an expression, or why it says nothing."""
        if self.prometheus is None:
            return Reading(name=name, unit=unit, source="none", note="no Prometheus block is named")
        try:
            value = None if self._away else query(self.prometheus, expression)
        except QueryRefusedError as error:
            return self._unanswered(name, unit, error)
        except ProviderError as error:
            self._away = error
        if self._away:
            return self._unanswered(name, unit, self._away)
        note = f"no series, or NaN, over {duration(self._window_s)}" if value is None else ""
        return Reading(name=name, unit=unit, value=value, source="prometheus", note=note)

    def application(self, names: Sequence[str]) -> tuple[Reading, ...]:
        """Return the application's metrics of these names; none where Prometheus has not its series."""
        if self.prometheus is None or not (self.has_traffic or self.has_latency):
            return ()
        queries = application_queries(self.prometheus.sources, self._window_s)
        return tuple(self.read(name, UNITS[name], queries[name]) for name in names)

    def hosts(self) -> tuple[Reading, ...]:
        """Return the hosts' metrics by node-exporter."""
        if self.prometheus is None:
            return ()
        queries = host_queries(self.prometheus.sources, self._window_s)
        return tuple(self.read(name, UNITS[name], expression) for name, expression in queries.items())

    @staticmethod
    def _unanswered(name: str, unit: str, error: ProviderError) -> Reading:
        return Reading(name=name, unit=unit, status="provider_error", source="prometheus", note=str(error))


class _TrafficWindow:
    """The balancer's counters of the live side, from now on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._live, self._began_s = "", time.monotonic()
        self._earlier: Counts | None = None
        self._error: BalancerError | None = None
        if fleet.route is None:
            return
        try:
            self._live = balancer.read_traffic(fleet.route).live
            self._earlier = balancer.counts(fleet.route, self._live)
        except BalancerError as error:
            self._error = error

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The live side's probes; all, where nobody says which side that is. Ray's nodes serve nobody."""
        instances = self._fleet.side(self._live) if self._live else self._fleet.instances
        return tuple(i.probe for i in instances if isinstance(i.probe, Probe))

    def readings(self) -> tuple[Reading, ...]:
        """Return what users had since; nothing without a balancer that counts."""
        route = self._fleet.route
        if route is None:
            return ()
        try:
            if self._error:
                raise self._error
            later = balancer.counts(route, self._live)
            elapsed_s = time.monotonic() - self._began_s
            mean_s = balancer.mean_response_s(route, self._live)
        except BalancerError as error:
            return _failed(_TRAFFIC, "balancer", error)
        if later is None or self._earlier is None:
            return ()
        counted = later.since(self._earlier)
        values = (
            counted.error_ratio,
            counted.requests / elapsed_s,
            mean_s if counted.requests else None,  # the mean may be of requests long before
        )
        note = f"{self._live}: {counted.requests} requests, {counted.errors} errors"
        return tuple(
            Reading(name=name, unit=UNITS[name], value=value, source="balancer", note=note)
            for name, value in zip(_TRAFFIC, values, strict=True)
        )


class _HostWindow:
    """What the hosts have in use, from now on."""

    def __init__(self, fleet: Fleet, database: Database | None) -> None:
        self._hosts = paths_by_host(fleet, database)
        self._began_s = time.monotonic()
        self._error: DeployError | None = None
        self._earlier: _Samples = {}
        try:
            self._earlier = read_hosts(self._hosts)
        except DeployError as error:
            self._error = error

    def readings(self, provider: _Provider) -> tuple[Reading, ...]:
        """Return the hosts' metrics since, by node-exporter where `provider` has it, and their GPUs."""
        by_exporter = provider.hosts() if provider.has_nodes else ()
        try:
            if self._error:
                raise self._error
            later = read_hosts(self._hosts)
        except DeployError as error:
            return (*(by_exporter or _failed(_HOST, "hosts", error)), *_failed(_GPU, "hosts", error))
        elapsed_s = time.monotonic() - self._began_s
        used = [use_between(self._earlier[host], later[host], elapsed_s) for host in self._hosts]
        return (*(by_exporter or host_readings(used)), *gpu_readings(used))
