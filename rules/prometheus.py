"""What Prometheus and Alertmanager answer, and what they are asked: pure parsers and PromQL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rules.alerts import Alert
from rules.baseline import MetricQuery
from rules.frozen import Frozen
from rules.host_metrics import VIRTUAL_INTERFACES
from rules.provider import ProviderError, QueryRefusedError

__all__ = [
    "Sources",
    "alert_rules",
    "alertmanager_alerts",
    "application_queries",
    "declared_query",
    "duration",
    "exists_query",
    "firing_alerts",
    "host_queries",
    "points",
    "single_value",
]

_SHOWN_SERIES = 3
_TIME = TypeAdapter(datetime)
# no room for data, or always full
_OTHER_FILE_SYSTEMS = r"tmpfs|ramfs|devtmpfs|overlay|squashfs|iso9660|nsfs|fuse.lxcfs|efivarfs"


class Sources(Frozen):
    """Which series of a Prometheus are the hosts' and the application's."""

    node_selector: str
    selector: str
    request_metric: str
    status_label: str
    duration_metric: str


# --- answers ---------------------------------------------------------------------------------------


def single_value(answer: object) -> float | None:
    """Return the one value that a query was answered with; None: no series, NaN or infinite.

    Raises:
        QueryRefusedError: the answer has several series, so it is not one value.
        ProviderError: it is no answer of Prometheus's query API.
    """
    kind, result = _result(answer)
    try:
        if kind == "scalar":
            return _finite(result[1])
        if kind != "vector":
            raise QueryRefusedError(
                f"the query's result is a {kind}, not one value: make it an instant vector"
            )
        _refuse_several(result)
        return _finite(result[0]["value"][1]) if result else None
    except (LookupError, TypeError, ValueError) as error:
        raise _unreadable(answer) from error


def points(answer: object) -> tuple[tuple[datetime, float | None], ...]:
    """Return the one series that a range query was answered with; None where it has NaN.

    Raises:
        QueryRefusedError: the answer has several series.
        ProviderError: it is no answer of Prometheus's range query API.
    """
    kind, result = _result(answer)
    try:
        if kind != "matrix":
            raise _unreadable(answer)
        _refuse_several(result)
        values = result[0]["values"] if result else []
        return tuple((datetime.fromtimestamp(float(at), UTC), _finite(value)) for at, value in values)
    except (LookupError, TypeError, ValueError) as error:
        raise _unreadable(answer) from error


def alert_rules(answer: object) -> set[str]:
    """Return the names of the alert rules that Prometheus has loaded, from its rules API.

    Raises:
        ProviderError: it is no such answer.
    """
    try:
        groups = _data(answer)["groups"]
        return {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"}
    except (LookupError, TypeError) as error:
        raise _unreadable(answer) from error


def firing_alerts(answer: object) -> tuple[Alert, ...]:
    """Return the alerts that are firing, from Prometheus's alerts API; pending ones are left out.

    Raises:
        ProviderError: it is no such answer.
    """
    try:
        rows = [row for row in _data(answer)["alerts"] if row["state"] == "firing"]
        return tuple(_alert(row["labels"], row["annotations"], row["activeAt"]) for row in rows)
    except (LookupError, TypeError, AttributeError, ValidationError) as error:
        raise _unreadable(answer) from error


def alertmanager_alerts(answer: object) -> tuple[Alert, ...]:
    """Return the active alerts, neither silenced nor inhibited, from Alertmanager's alerts API, version 2.

    Raises:
        ProviderError: it is no such answer.
    """
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise _unreadable(answer)
    try:
        rows = [row for row in answer if row["status"]["state"] == "active"]
        return tuple(_alert(row["labels"], row["annotations"], row["startsAt"]) for row in rows)
    except (LookupError, TypeError, AttributeError, ValidationError) as error:
        raise _unreadable(answer) from error


def _alert(labels: Mapping[str, str], annotations: Mapping[str, str], starts_at: str) -> Alert:
    return Alert(
        name=labels["alertname"],
        severity=labels.get("severity", ""),
        labels=dict(labels),
        starts_at=_TIME.validate_python(starts_at),
        summary=annotations.get("summary") or annotations.get("description") or "",
    )


def _data(answer: object) -> Any:
    if not isinstance(answer, Mapping) or answer.get("status") != "success":
        raise _unreadable(answer)
    return answer["data"]


def _result(answer: object) -> tuple[str, Any]:
    try:
        data = _data(answer)
        return data["resultType"], data["result"]
    except (LookupError, TypeError) as error:
        raise _unreadable(answer) from error


def _finite(value: str) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _refuse_several(result: Sequence[Mapping[str, Any]]) -> None:
    if len(result) <= 1:
        return
    shown = ", ".join(str(dict(series["metric"])) for series in result[:_SHOWN_SERIES])
    raise QueryRefusedError(
        f"the query has {len(result)} series where one value is wanted: {shown}"
        f"{', ...' if len(result) > _SHOWN_SERIES else ''}. Aggregate it, for instance with sum() or max()."
    )


def _unreadable(answer: object) -> ProviderError:
    return ProviderError(f"not an answer of the API that was asked: {str(answer)[:200]!r}")


# --- questions -------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return `seconds` as PromQL writes it: whole seconds, or else milliseconds."""
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{max(1, round(seconds * 1000))}ms"


def declared_query(metric: MetricQuery, window_s: float) -> str:
    """Return a user's query over a window of `window_s` seconds."""
    return metric.query.replace("$window", duration(window_s))


def host_queries(sources: Sources, window_s: float) -> dict[str, str]:
    """Return for each of the hosts' metrics the query for the worst host, from node-exporter's series."""
    window, node = duration(window_s), sources.node_selector
    real = _matchers(node, f'fstype!~"{_OTHER_FILE_SYSTEMS}"')
    card = _matchers(node, f'device!~"{VIRTUAL_INTERFACES}"')
    spare, one = _matchers(node, 'mode=~"idle|iowait"'), _matchers(node, 'mode="idle"')
    idle = f"sum by (instance) (rate(node_cpu_seconds_total{spare}[{window}]))"
    cores = f"count by (instance) (node_cpu_seconds_total{one})"
    available, total = (
        f"avg_over_time(node_memory_{name}_bytes{_matchers(node)}[{window}])"
        for name in ("MemAvailable", "MemTotal")
    )
    received, sent = (
        f"sum by (instance) (rate(node_network_{way}_bytes_total{card}[{window}]))"
        for way in ("receive", "transmit")
    )
    return {
        # extrapolation may give a little more idle time than there was
        "cpu_ratio": f"clamp(max(1 - {idle} / {cores}), 0, 1)",
        "memory_ratio": f"max(1 - {available} / {total})",
        "disk_ratio": f"max(1 - node_filesystem_avail_bytes{real} / (node_filesystem_size_bytes{real} > 0))",
        "network_bytes_per_s": f"max({received} + {sent})",
    }


def application_queries(sources: Sources, window_s: float) -> dict[str, str]:
    """Return for each of the application's metrics its query, from its own counters and histogram."""
    window, status = duration(window_s), sources.status_label
    every = f"sum(rate({sources.request_metric}{_matchers(sources.selector)}[{window}]))"
    failed = _matchers(sources.selector, f'{status}=~"5.."')
    errors = f"sum(rate({sources.request_metric}{failed}[{window}]))"
    histogram = f"sum by (le) (rate({sources.duration_metric}{_matchers(sources.selector)}[{window}]))"
    stem = sources.duration_metric.removesuffix("_bucket")
    took, answered = (
        f"sum(rate({stem}_{part}{_matchers(sources.selector)}[{window}]))" for part in ("sum", "count")
    )
    return {
        # before the first error there is no series of errors: that is 0, if there is a series of requests
        "error_ratio": f"clamp(({errors} or vector(0)) / {every}, 0, 1)",
        "latency_p50_s": f"histogram_quantile(0.5, {histogram})",
        "latency_p95_s": f"histogram_quantile(0.95, {histogram})",
        "mean_response_s": f"{took} / {answered}",
        "requests_per_s": every,
    }


def exists_query(metric: str, selector: str) -> str:
    """Return the query that has a value when there is any such series now."""
    return f"count({metric}{_matchers(selector)})"


def _matchers(*matchers: str) -> str:
    return "{" + ",".join(matcher for matcher in matchers if matcher) + "}"
