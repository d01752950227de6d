"""Alerts that really fire: seen since a moment, not before it, and calls that reach people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from blocks.alertmanager import Alertmanager
from lab.prometheus import LabMonitoring
from rules.alerts import Alert
from rules.provider import ProviderError
from tasks.alertmanager import alerts_since, is_ready, send_alert
from tests.requirements import need

RULES = """\
groups:
  - name: from a file
    rules:
      - alert: TooMany
        expr: lab_errors > 5
        labels: {severity: critical}
        annotations: {summary: "{{ $value }} errors"}
"""
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabMonitoring]:
    need("prometheus", package="prometheus")
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    need("prometheus-node-exporter", package="prometheus-node-exporter")
    directory = tmp_path_factory.mktemp("monitoring")
    textfiles = directory / "textfiles"
    textfiles.mkdir()
    with LabMonitoring(directory, rules=RULES, textfiles=textfiles) as running:
        running.prometheus.wait_until_scraped()
        yield running


@pytest.fixture
def textfile(monitoring: LabMonitoring) -> Path:
    return monitoring.node_exporter.directory.parent / "textfiles" / "lab.prom"


@pytest.fixture
def alertmanager(monitoring: LabMonitoring) -> Alertmanager:
    return monitoring.alertmanager.block


def write_errors(path: Path, errors: int) -> None:
    new = path.with_suffix(".new")
    new.write_text(f"lab_errors {errors}\n")
    new.rename(path)


def eventually(condition: Callable[[], object], within_s: float = 20) -> object:
    """Return the first answer that is true; the last one when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_an_alert_that_fires_is_seen_since_before_it_began_and_not_since_after(alertmanager, textfile):
    started = datetime.now(UTC)
    assert alerts_since(alertmanager, started) == ()
    write_errors(textfile, 6)
    (alert,) = eventually(lambda: alerts_since(alertmanager, started))
    assert (alert.name, alert.severity, alert.summary) == ("TooMany", "critical", "6 errors")
    assert started < alert.starts_at < datetime.now(UTC)
    assert alerts_since(alertmanager, alert.starts_at) == (alert,)
    assert alerts_since(alertmanager, alert.starts_at + timedelta(milliseconds=1)) == ()
    others = alertmanager.model_copy(update={"matchers": ('severity="warning"',)})
    assert alerts_since(others, started) == ()
    matching = alertmanager.model_copy(update={"matchers": ('severity=~"crit.*"', 'job="node"')})
    assert alerts_since(matching, started) == (alert,)
    silence(alertmanager, "TooMany")
    assert eventually(lambda: alerts_since(alertmanager, started) == ()), "it is silenced now"
    write_errors(textfile, 0)


def silence(alertmanager: Alertmanager, name: str) -> None:
    now = datetime.now(UTC)
    body = {
        "matchers": [{"name": "alertname", "value": name, "isRegex": False}],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(minutes=5)).isoformat(),
        "createdBy": "test",
        "comment": "seen",
    }
    httpx.post(f"{alertmanager.url}/api/v2/silences", json=body, trust_env=False).raise_for_status()


def held(**fields: object) -> Alert:
    known = {"name": "RolloutHeld", "severity": "warning", "starts_at": datetime.now(UTC)}
    return Alert.model_validate({**known, "labels": {"deployment": "web-1"}, **fields})


def open_alerts(alertmanager: Alertmanager) -> dict[str, dict[str, object]]:
    rows = httpx.get(f"{alertmanager.url}/api/v2/alerts", trust_env=False).json()
    return {row["labels"]["alertname"]: row for row in rows}


def test_a_call_to_people_is_accepted_repeated_and_resolved_and_is_no_symptom_to_us(alertmanager):
    alert = held(summary="no metrics for 30 s")
    for _ in range(2):
        send_alert(alertmanager, alert)
    row = open_alerts(alertmanager)["RolloutHeld"]
    assert row["labels"] == {
        "alertname": "RolloutHeld",
        "severity": "warning",
        "deployment": "web-1",
        "sender": "sovereign-deploy",
    }
    assert row["annotations"] == {"summary": "no metrics for 30 s"}
    assert "RolloutHeld" not in {alert.name for alert in alerts_since(alertmanager, LONG_AGO)}
    send_alert(alertmanager, held(starts_at=alert.starts_at, ends_at=datetime.now(UTC)))
    assert eventually(lambda: "RolloutHeld" not in open_alerts(alertmanager))


def test_an_alert_that_alertmanager_cannot_take_is_an_error_in_its_words(alertmanager):
    with pytest.raises(ProviderError, match=r"refused: .*(label|invalid)"):
        send_alert(alertmanager, held(labels={"not a label": "x"}))


def test_one_that_is_away_is_a_provider_error(monitoring):
    block = monitoring.alertmanager.block
    assert is_ready(block)
    monitoring.alertmanager.kill()
    try:
        assert not is_ready(block)
        with pytest.raises(ProviderError, match="gave no answer"):
            alerts_since(block, LONG_AGO)
        with pytest.raises(ProviderError, match="gave no answer"):
            send_alert(block, held())
    finally:
        monitoring.alertmanager.start()


@pytest.mark.parametrize("matcher", ["severity", "severity=critical", 'a b="c"', 'x="a"\nb'])
def test_a_matcher_of_another_form_is_refused(matcher):
    with pytest.raises(ValidationError):
        Alertmanager(matchers=(matcher,))
