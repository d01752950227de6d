"""Prometheus: one value, one series, loaded alert rules, firing alerts."""

from __future__ import annotations

from datetime import datetime

import httpx

from blocks.prometheus import Prometheus
from rules import prometheus as answers
from rules.alerts import Alert
from rules.provider import ProviderError, QueryRefusedError
from tasks.metrics_api import ask, send

__all__ = [
    "ProviderError",
    "QueryRefusedError",
    "firing",
    "is_ready",
    "loaded_alert_rules",
    "query",
    "query_range",
]

#: Prometheus itself gives up a little before we do, so that no question goes on unheard.
_OWN_SHARE = 0.9


def query(prometheus: Prometheus, expression: str, *, at: datetime | None = None) -> float | None:
    """Return the one value of a PromQL expression; None: no data, which is no series, NaN or infinite.

    Args:
        prometheus: whom to ask.
        expression: its result must be a scalar or a vector of one series at most.
        at: the moment to evaluate it for; None: Prometheus's now.

    Raises:
        QueryRefusedError: Prometheus does not accept it, or it has several series.
        ProviderError: no answer.
    """
    params = {"query": expression, "timeout": _timeout(prometheus)}
    if at is not None:
        params["time"] = str(at.timestamp())
    return answers.single_value(ask(prometheus, "GET", "api/v1/query", params=params))


def query_range(
    prometheus: Prometheus, expression: str, *, start: datetime, end: datetime, step_s: float
) -> tuple[tuple[datetime, float | None], ...]:
    """Return the one series of an expression from `start` to `end`; empty: no data.

    Raises:
        QueryRefusedError: Prometheus does not accept it, or it has several series.
        ProviderError: no answer.
    """
    params = {
        "query": expression,
        "start": str(start.timestamp()),
        "end": str(end.timestamp()),
        "step": str(step_s),
        "timeout": _timeout(prometheus),
    }
    return answers.points(ask(prometheus, "GET", "api/v1/query_range", params=params))


def loaded_alert_rules(prometheus: Prometheus) -> set[str]:
    """Return the names of the alert rules that Prometheus has loaded.

    Raises:
        ProviderError: no answer.
    """
    return answers.alert_rules(ask(prometheus, "GET", "api/v1/rules", params={"type": "alert"}))


def firing(prometheus: Prometheus) -> tuple[Alert, ...]:
    """Return the alerts that Prometheus itself finds firing now, also those that Alertmanager silences.

    Raises:
        ProviderError: no answer.
    """
    return answers.firing_alerts(ask(prometheus, "GET", "api/v1/alerts"))


def is_ready(prometheus: Prometheus) -> bool:
    """Return whether Prometheus says that it serves; one that cannot be reached does not."""
    try:
        return send(prometheus, "GET", "-/ready").status_code == httpx.codes.OK
    except ProviderError:
        return False


def _timeout(prometheus: Prometheus) -> str:
    return answers.duration(prometheus.timeout_s * _OWN_SHARE)
