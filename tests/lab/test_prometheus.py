"""The lab's monitoring is the real thing, comes back after a crash, and leaves nothing running."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from lab.application import LabApplication
from lab.gpu import LabGpus
from lab.load import Load
from lab.ports import is_listening
from lab.processes import LabError, wait_until
from lab.prometheus import LabAlertmanager, LabMonitoring, LabPrometheus, _program
from lab.releases import Behaviour
from tasks.alertmanager import alerts_since
from tasks.prometheus import loaded_alert_rules, query
from tests.requirements import need


@pytest.fixture(autouse=True)
def _programs() -> None:
    need("prometheus", package="prometheus")
    need("prometheus-alertmanager", package="prometheus-alertmanager")
    need("prometheus-node-exporter", package="prometheus-node-exporter")


def test_all_three_scrape_export_and_alert_together_and_end(tmp_path):
    textfiles = tmp_path / "textfiles"
    textfiles.mkdir()
    (textfiles / "own.prom").write_text("own_metric 7\n")
    with LabApplication(tmp_path / "web", blue=1, green=1) as web:
        jobs = {"haproxy": web.haproxy.metrics_port}
        with LabMonitoring(tmp_path / "monitoring", jobs, textfiles=textfiles) as monitoring:
            prometheus = monitoring.prometheus
            prometheus.wait_until_scraped()
            assert query(prometheus.block, "own_metric") == 7
            assert query(prometheus.block, 'count(node_cpu_seconds_total{job="node"})') > 0
            assert query(prometheus.block, 'haproxy_backend_active_servers{proxy="blue"}') == 1
            assert loaded_alert_rules(prometheus.block) == {"HighErrorRate", "HighResponseTime"}
            ports = [s.port for s in (prometheus, monitoring.alertmanager, monitoring.node_exporter)]
            assert all(is_listening(port) for port in ports)
    assert not any(is_listening(port) for port in ports)


def test_the_users_alert_fires_on_errors_that_haproxy_counts(tmp_path):
    started = datetime.now(UTC)
    behaviour = Behaviour(error_ratio=0.5)
    with LabApplication(tmp_path / "web", blue=1, green=1, behaviour=behaviour) as web:
        jobs = {"haproxy": web.haproxy.metrics_port}
        with (
            LabMonitoring(tmp_path / "monitoring", jobs) as monitoring,
            Load(web.url, 40, tmp_path / "load", max_duration_s=60),
        ):
            seen: set[str] = set()

            def fires() -> bool:
                alerts = alerts_since(monitoring.alertmanager.block, started)
                seen.update(alert.summary for alert in alerts if alert.name == "HighErrorRate")
                return bool(seen)

            wait_until(fires, timeout_s=40, what="HighErrorRate")
    assert all(summary.startswith("blue answers") for summary in seen)


def test_a_killed_prometheus_comes_back_with_what_it_had(tmp_path):
    server = LabPrometheus(tmp_path / "prometheus", {})
    server.scrape["itself"] = server.port
    with server:
        server.wait_until_scraped(times=3)
        server.kill()
        assert not is_listening(server.port)
        server.start()
        assert query(server.block, "sum(sum_over_time(up[1m]))") >= 3


def test_it_says_why_a_server_did_not_start(tmp_path):
    server = LabPrometheus(tmp_path / "prometheus", {}, rules="groups: [{name: a, rules: [{alert: b}]}]")
    try:
        with pytest.raises(LabError, match="LabPrometheus ended; its log ends"):
            server.start()
    finally:
        server.stop()
    with pytest.raises(LabError, match="install the Debian package no-such-program"):
        _program("no-such-program")


def test_an_alertmanager_has_no_peers(tmp_path):
    with LabAlertmanager(tmp_path / "alertmanager") as server:
        status = httpx.get(f"{server.url}/api/v2/status", trust_env=False).json()
        assert status["cluster"]["status"] == "disabled"


def test_a_library_that_does_not_compile_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="install the Debian package gcc"):
        LabGpus(tmp_path / "gpus")
