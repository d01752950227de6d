"""Alertmanager: alerts since a moment, and a call to people."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx

from blocks.alertmanager import Alertmanager
from rules.alerts import SENDER, Alert, begun_since
from rules.prometheus import alertmanager_alerts
from rules.provider import ProviderError
from tasks.metrics_api import ask, send


def alerts_since(alertmanager: Alertmanager, since: datetime) -> tuple[Alert, ...]:
    """Return the alerts that began at `since` or later and are active now, oldest first.

    Silenced and inhibited ones are left out, as are those that `send_alert` sent. An alert that has begun
    and ended between two looks is not seen. When an alert began is told by the clock of its Prometheus.

    Raises:
        ProviderError: no answer, or a matcher that Alertmanager does not accept.
    """
    params = {
        "active": "true",
        "silenced": "false",
        "inhibited": "false",
        "filter": list(alertmanager.matchers),
    }
    return begun_since(alertmanager_alerts(ask(alertmanager, "GET", "api/v2/alerts", params=params)), since)


def send_alert(alertmanager: Alertmanager, alert: Alert) -> None:
    """Give an alert to Alertmanager, which tells people by its own routes; repeating it is harmless.

    Without `ends_at` it ends by itself after Alertmanager's `resolve_timeout` (five minutes by default), so
    send it again while it holds, with the same labels. With `ends_at` in the past it is resolved.

    Raises:
        ProviderError: no answer, or it was not accepted; nobody was told.
    """
    label, sender = SENDER
    labels = {**alert.labels, "alertname": alert.name, label: sender}
    if alert.severity:
        labels["severity"] = alert.severity
    sent: dict[str, Any] = {
        "labels": labels,
        "annotations": {"summary": alert.summary} if alert.summary else {},
        "startsAt": alert.starts_at.isoformat(),
    }
    if alert.ends_at is not None:
        sent["endsAt"] = alert.ends_at.isoformat()
    ask(alertmanager, "POST", "api/v2/alerts", body=[sent])


def is_ready(alertmanager: Alertmanager) -> bool:
    """Return whether Alertmanager says that it serves; one that cannot be reached does not."""
    try:
        return send(alertmanager, "GET", "-/ready").status_code == httpx.codes.OK
    except ProviderError:
        return False
