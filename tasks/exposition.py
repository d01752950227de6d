"""Our own metrics as a file that node-exporter's textfile collector serves."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from rules.exposition import Exposition, Family, HistogramFamily, Labels, exposition_of
from rules.journal import JournalView
from tasks.known import readable_journals
from tasks.settings import Settings

log = logging.getLogger(__name__)

AnyFamily = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def expose(settings: Settings) -> bool:
    """Write what all journals of this host add up to, and return whether it is written.

    Does nothing without a `metrics_file`. One that cannot be written is logged and no error: it only shows.
    """
    if settings.metrics_file is None:
        return False
    try:
        write_exposition(settings.metrics_file, (view for _, view in readable_journals(settings)))
    except (OSError, ValueError) as error:
        log.warning(
            "the metrics in %s are as old as before: %s. The deployment goes on; make the file writable.",
            settings.metrics_file,
            error,
        )
        return False
    return True


def write_exposition(path: Path, journals: Iterable[JournalView]) -> None:
    """Make `path` the metrics of `journals`, atomically, and readable by any user.

    Raises:
        OSError: it cannot be written; an old file stays.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Journals(exposition_of(journals)))
    # the collector reads *.prom alone, so it never sees half a file under this name
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        new.write_bytes(generate_latest(registry))
        new.chmod(0o644)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class _Journals(Collector):
    """An exposition in the client library's own form."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def collect(self) -> Iterator[AnyFamily]:
        """Yield each family."""
        yield from (_family(family) for family in self._exposition.families)
        yield from (_histogram(family) for family in self._exposition.histograms)


def _family(family: Family) -> AnyFamily:
    names = _names(sample.labels for sample in family.samples)
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = make(family.name, family.help, labels=names)
    for sample in family.samples:
        made.add_metric([value for _, value in sample.labels], sample.value)
    return made


def _histogram(family: HistogramFamily) -> HistogramMetricFamily:
    made = HistogramMetricFamily(
        family.name, family.help, labels=_names(one.labels for one in family.observations)
    )
    for one in family.observations:
        values = [value for _, value in one.labels]
        made.add_metric(values, buckets=list(one.buckets), sum_value=sum(one.values_s))
    return made


def _names(labels: Iterable[Labels]) -> list[str]:
    return [name for name, _ in next(iter(labels), ())]
