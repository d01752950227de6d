"""The measurement after a rollout is watched like the rollout itself: nothing that happens in it is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.environment import Environment
from lab.processes import Process, wait_until
from lab.prometheus import LabAlertmanager, LabPrometheus
from lab.surroundings import ERROR_RATIO
from rules.entries import Noted
from rules.environment import Monitoring
from rules.strategy import BlueGreen, Watching
from tests.flows.site import EASY, PATIENCE_S, Site
from tests.flows.test_vigil import alert
from tests.requirements import need

QUICK = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=20, limits=EASY))
LOOKS = Monitoring(every_s=60, for_s=60, probe_every_s=0.5, tolerated_probes=1)
#: Looks that are too far apart to see anything in time, but for the last one.
SELDOM = Monitoring(every_s=600, for_s=600, probe_every_s=500)
WINDOW_S = 5.0


@pytest.fixture
def prometheus(site: Site, tmp_path: Path) -> Iterator[LabPrometheus]:
    """A Prometheus that scrapes the site's balancer."""
    need("prometheus", package="prometheus")
    with LabPrometheus(tmp_path / "prometheus", {"haproxy": site.application.haproxy.metrics_port}) as server:
        server.wait_until_scraped()
        yield server


def save(prometheus: LabPrometheus, **more: Any) -> None:
    """Save an environment whose metric may take a change back."""
    prometheus.block.save("compared", overwrite=True)
    metric = ERROR_RATIO.model_copy(update={"rolls_back": True})
    given = {"metrics": [metric], "monitoring": LOOKS, "baseline_s": WINDOW_S, "provider_patience_s": 3.0}
    Environment(prometheus="compared", **{**given, **more}).save("compared", overwrite=True)


def measuring_after(site: Site, where: str) -> Process:
    """Start a deployment, and return when all of it is done and the window after has just begun."""
    process = site.deploying(site.change(), QUICK, where=where)

    def is_rolled_out() -> bool:
        run = site.view().opened.flow_run_id if site.views() else ""
        return bool(run) and any(site.run_state(child)[0] == "COMPLETED" for child in site.children(run))

    wait_until(is_rolled_out, timeout_s=PATIENCE_S, what="the rollout to be done", process=process)
    time.sleep(0.5)
    return process


def notes(site: Site, about: str) -> list[str]:
    entries = site.view().entries
    return [entry.words for entry in entries if isinstance(entry, Noted) and entry.about == about]


def result(site: Site) -> str:
    """Return what the comparison says of the declared metric."""
    (found,) = [one.result for one in site.view().comparisons if one.name == ERROR_RATIO.name]
    return found


def test_a_comparison_that_cannot_be_had_takes_the_change_back_where_the_policy_says_so(
    site: Site, prometheus: LabPrometheus
) -> None:
    save(prometheus, on_provider_error="roll_back")
    process = measuring_after(site, "compared")
    assert prometheus.process
    prometheus.process.send(signal.SIGSTOP)  # it hangs, which is worse than a refusal
    try:
        site.ended(process)
    finally:
        prometheus.process.send(signal.SIGCONT)

    assert site.view().state == "rolled_back"
    assert "PROVIDER_ERROR" in site.view().cause
    assert len(notes(site, "held")) == 1
    assert site.application.observed() == site.before


def test_a_change_that_goes_on_without_a_comparison_says_so(site: Site, prometheus: LabPrometheus) -> None:
    save(prometheus, on_provider_error="go_on")
    process = measuring_after(site, "compared")
    prometheus.kill()
    site.ended(process)

    assert site.view().state == "promoted", site.view().cause
    assert result(site) == "provider_error"
    (words,) = notes(site, "not_compared")
    assert ERROR_RATIO.name in words
    assert "Connection refused" in words
    assert len(notes(site, "held")) == 1


def test_a_window_with_a_gap_is_measured_again_once_prometheus_is_back(
    site: Site, prometheus: LabPrometheus
) -> None:
    save(prometheus, on_provider_error="roll_back", provider_patience_s=50.0)
    process = measuring_after(site, "compared")
    prometheus.kill()
    wait_until(lambda: bool(notes(site, "held")), timeout_s=PATIENCE_S, what="the hold", process=process)
    prometheus.start()
    site.ended(process, within_s=2 * PATIENCE_S)

    assert site.view().state == "promoted", site.view().cause
    assert len(notes(site, "measured_again")) == 1
    assert notes(site, "not_compared") == []
    assert result(site) in {"same", "better"}


def test_a_critical_alert_of_the_last_seconds_takes_it_back(site: Site, tmp_path: Path) -> None:
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    with LabAlertmanager(tmp_path / "alertmanager") as alertmanager:
        alertmanager.block.save("compared", overwrite=True)
        environment = Environment(alertmanager="compared", monitoring=SELDOM, baseline_s=3.0)
        environment.save("alerted", overwrite=True)
        process = measuring_after(site, "alerted")
        alert(alertmanager, "critical")
        site.ended(process)

    assert site.view().state == "rolled_back"
    assert "A critical alert began during the rollout: HighErrorRate" in site.view().cause
    assert len(notes(site, "alert")) == 1
    assert site.application.observed() == site.before
