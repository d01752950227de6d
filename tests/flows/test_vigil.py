"""What is watched beside a rollout: alerts and instances may stop it, and what is seen is in the timeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from blocks.environment import Environment
from lab.processes import wait_until
from lab.prometheus import LabAlertmanager
from lab.releases import Behaviour
from rules.entries import Noted
from rules.environment import Monitoring
from rules.strategy import InPlace
from tests.flows.site import ENDLESS, Site
from tests.requirements import need

LOOKS = Monitoring(every_s=60, for_s=60, probe_every_s=0.5, tolerated_probes=1)


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[LabAlertmanager]:
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    with LabAlertmanager(tmp_path / "alertmanager") as running:
        running.block.save("vigil", overwrite=True)
        Environment(alertmanager="vigil", monitoring=LOOKS).save("vigil", overwrite=True)
        yield running


def alert(alertmanager: LabAlertmanager, severity: str) -> None:
    """Have an alert begin now, as Prometheus would."""
    labels = {"alertname": "HighErrorRate", "severity": severity}
    began = {"labels": labels, "startsAt": datetime.now(UTC).isoformat()}
    httpx.post(f"{alertmanager.url}/api/v2/alerts", json=[began], timeout=5).raise_for_status()


def notes(site: Site, about: str) -> list[str]:
    entries = site.view().entries
    return [entry.words for entry in entries if isinstance(entry, Noted) and entry.about == about]


def test_a_critical_alert_that_begins_during_the_rollout_takes_it_back(
    site: Site, alertmanager: LabAlertmanager
) -> None:
    process = site.deploying(site.change(), ENDLESS, where="vigil")
    site.wait_until_halfway("2.0.0", process)
    alert(alertmanager, "critical")
    site.ended(process)

    assert site.view().state == "rolled_back"
    assert "A critical alert began during the rollout: HighErrorRate" in site.view().cause
    assert site.application.observed() == site.before


def test_a_warning_is_told_and_stops_nothing(site: Site, alertmanager: LabAlertmanager) -> None:
    process = site.deploying(site.change(), ENDLESS, where="vigil")
    site.wait_until_halfway("2.0.0", process)
    alert(alertmanager, "warning")
    wait_until(lambda: bool(notes(site, "alert")), timeout_s=30, what="the note", process=process)
    assert site.view().state == "running"
    process.kill()


def test_an_alertmanager_that_is_away_is_told_once_and_stops_nothing(
    site: Site, alertmanager: LabAlertmanager
) -> None:
    process = site.deploying(site.change(), ENDLESS, where="vigil")
    site.wait_until_halfway("2.0.0", process)
    alertmanager.kill()
    wait_until(lambda: bool(notes(site, "alerts")), timeout_s=30, what="the note", process=process)
    time.sleep(4 * LOOKS.probe_every_s)
    (note,) = notes(site, "alerts")
    assert "Alertmanager does not answer" in note
    assert site.view().state == "running"
    process.kill()


def test_an_updated_instance_that_stops_answering_takes_the_rollout_back(site: Site) -> None:
    Environment(monitoring=LOOKS).save("probed", overwrite=True)
    strategy = ENDLESS.model_copy(
        update={
            "watch": ENDLESS.watch.model_copy(
                update={"limits": ENDLESS.watch.limits.model_copy(update={"failure_error_ratio": 1.0})}
            )
        }
    )
    process = site.deploying(site.change(), strategy, where="probed")
    site.wait_until_halfway("2.0.0", process)
    site.application.kill("green-1")
    site.ended(process)

    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before


def test_an_instance_that_starts_slowly_in_place_is_waited_for_by_its_plan(site: Site) -> None:
    Environment(monitoring=LOOKS).save("probed", overwrite=True)
    process = site.deploying(
        site.change(behaviour=Behaviour(ready_after_s=4)), InPlace(instance="blue-1"), where="probed"
    )
    site.ended(process)

    assert notes(site, "health")
    assert site.view().state == "promoted", site.view().cause


def test_an_instance_that_the_rollout_never_touched_is_only_told_of(site: Site) -> None:
    Environment(monitoring=LOOKS).save("probed", overwrite=True)
    process = site.deploying(site.change(), ENDLESS, where="probed")
    site.wait_until_halfway("2.0.0", process)
    site.application.kill("blue-2")
    wait_until(lambda: bool(notes(site, "health")), timeout_s=30, what="the note", process=process)
    assert "blue-2 has not answered" in notes(site, "health")[0]
    assert site.view().state == "running"
    process.kill()
    site.serve_again("blue-2")
