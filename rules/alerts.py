"""Alerts: what Alertmanager tells about the system, and what a deployment tells people through it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import AwareDatetime, Field

from rules.frozen import Frozen

#: The label that alerts of our own bear, so that a deployment never takes its own call for a symptom.
SENDER = ("sender", "sovereign-deploy")


class Alert(Frozen):
    """One alert; `labels` has all of them, its name and severity too."""

    name: str
    severity: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None = None
    summary: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether a deployment sent it."""
        label, sender = SENDER
        return self.labels.get(label) == sender

    @property
    def in_words(self) -> str:
        """Name, severity and summary."""
        severity = f" ({self.severity})" if self.severity else ""
        return f"{self.name}{severity}" + (f": {self.summary}" if self.summary else "")


def begun_since(alerts: Iterable[Alert], since: datetime) -> tuple[Alert, ...]:
    """Return what began at `since` or later and is not our own, oldest first."""
    found = [alert for alert in alerts if alert.starts_at >= since and not alert.is_ours]
    return tuple(sorted(found, key=lambda alert: (alert.starts_at, alert.name)))
