"""A real Prometheus, Alertmanager and node-exporter on loopback, fast enough to be waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from blocks.alertmanager import Alertmanager
from blocks.prometheus import Prometheus
from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import LabError, Process, clean_environment, start, wait_until

_START_TIMEOUT_S = 30.0
_SCRAPE_S = 1
_SYSTEM_PROGRAMS = ":/usr/local/sbin:/usr/sbin:/sbin"

#: The users' two alerts that a gate asks for, on HAProxy's exporter, with no patience.
ALERT_RULES = """\
groups:
  - name: application
    rules:
      - alert: HighErrorRate
        expr: >
          sum by (proxy) (rate(haproxy_backend_http_responses_total{code="5xx"}[5s]))
          / sum by (proxy) (rate(haproxy_backend_http_responses_total[5s])) > 0.05
        labels: {severity: critical}
        annotations: {summary: "{{ $labels.proxy }} answers {{ $value | humanizePercentage }} with errors"}
      - alert: HighResponseTime
        expr: haproxy_backend_response_time_average_seconds > 5
        labels: {severity: warning}
        annotations: {summary: "{{ $labels.proxy }} answers after {{ $value }} s"}
"""


class _Server:
    """A program with an HTTP port of its own in `directory`, which keeps its files when it ends."""

    ready_path = "/-/ready"

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.port = free_port()
        self.process: Process | None = None
        self._http = httpx.Client(
            trust_env=False, timeout=2, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._http.close()
        give_back(self.port)

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        return f"http://{LOCALHOST}:{self.port}"

    def start(self) -> None:
        """Start it on its port and wait until it is ready; after `kill` with what it had on disk.

        Raises:
            LabError: it is not installed, or does not come up; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        name = type(self).__name__
        self.process = start(
            name, self._argv(), log=self.directory / "log", env=clean_environment(self.directory, {})
        )
        wait_until(self._is_ready, timeout_s=_START_TIMEOUT_S, what=name, process=self.process)

    def stop(self) -> None:
        """Ask it to end, and wait. Stopped already is fine."""
        if self.process:
            self.process.stop()
            self.process = None

    def kill(self) -> None:
        """Kill it, as a crash would: its port refuses connections then."""
        if self.process:
            self.process.kill()
            self.process = None

    def _is_ready(self) -> bool:
        try:
            return self._http.get(f"{self.url}{self.ready_path}").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _argv(self) -> Sequence[str]:
        raise NotImplementedError


class LabNodeExporter(_Server):
    """A node-exporter of this machine.

    Args:
        directory: its log.
        textfiles: directory of `*.prom` files that it also exports; None: none.
    """

    ready_path = "/"

    def __init__(self, directory: Path, *, textfiles: Path | None = None) -> None:
        super().__init__(directory)
        self._textfiles = textfiles

    def _argv(self) -> Sequence[str]:
        collectors = ["cpu", "meminfo", "filesystem", "netdev", "loadavg", "textfile"]
        return (
            _program("prometheus-node-exporter", "node_exporter"),
            f"--web.listen-address={LOCALHOST}:{self.port}",
            "--collector.disable-defaults",
            *(f"--collector.{name}" for name in collectors),
            f"--collector.textfile.directory={self._textfiles or self.directory}",
        )


class LabAlertmanager(_Server):
    """An Alertmanager without peers, which tells nobody unless it is given `webhooks`.

    Args:
        directory: its configuration, data and log.
        webhooks: URLs that it posts alerts to, at once.
    """

    def __init__(self, directory: Path, *, webhooks: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self._webhooks = tuple(webhooks)

    @property
    def block(self) -> Alertmanager:
        """A block that reads it."""
        return Alertmanager(url=self.url)

    def _argv(self) -> Sequence[str]:
        hooks = [{"url": url, "send_resolved": True} for url in self._webhooks]
        configuration = {
            "route": {"receiver": "people", "group_wait": "0s", "group_interval": "1s"},
            "receivers": [{"name": "people", "webhook_configs": hooks}],
        }
        return (
            _program("prometheus-alertmanager", "alertmanager"),
            f"--config.file={_write(self.directory / 'alertmanager.yml', configuration)}",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address={LOCALHOST}:{self.port}",
            "--cluster.listen-address=",
        )


class LabPrometheus(_Server):
    """A Prometheus that scrapes, and evaluates its alert rules, each second.

    Args:
        directory: its configuration, data and log.
        scrape: job -> port on 127.0.0.1 that answers /metrics.
        rules: alert rules as text, or their file; None: none.
        alertmanager: port of the Alertmanager that alerts go to; None: none.
    """

    def __init__(
        self,
        directory: Path,
        scrape: Mapping[str, int],
        *,
        rules: str | Path | None = None,
        alertmanager: int | None = None,
    ) -> None:
        super().__init__(directory)
        self.scrape, self._rules, self._alertmanager = dict(scrape), rules, alertmanager

    @property
    def block(self) -> Prometheus:
        """A block that reads it."""
        return Prometheus(url=self.url)

    def wait_until_scraped(self, *, times: int = 2) -> float:
        """Return how many seconds it took until each job was scraped `times` and alerts have where to go.

        A Prometheus is ready some five seconds before it begins to scrape, and a rate needs two scrapes.
        """
        jobs, expression = len(self.scrape), f"count(sum_over_time(up[5m]) >= {times})"

        def scraped() -> bool:
            try:
                if self._alertmanager and not self._get("alertmanagers")["activeAlertmanagers"]:
                    return False
                result = self._get("query", query=expression)["result"]
                return bool(result) and int(result[0]["value"][1]) >= jobs
            except httpx.HTTPError:
                return False

        what = f"{times} scrapes of {sorted(self.scrape)}"
        return wait_until(scraped, timeout_s=_START_TIMEOUT_S, what=what, process=self.process)

    def _get(self, path: str, **params: str) -> Any:
        return self._http.get(f"{self.url}/api/v1/{path}", params=params).raise_for_status().json()["data"]

    def _argv(self) -> Sequence[str]:
        return (
            _program("prometheus"),
            f"--config.file={_write(self.directory / 'prometheus.yml', self._configuration())}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={LOCALHOST}:{self.port}",
        )

    def _configuration(self) -> dict[str, Any]:
        interval = f"{_SCRAPE_S}s"
        alertmanagers = [_targets(self._alertmanager)] if self._alertmanager else []
        return {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": [str(self._rules_file())] if self._rules else [],
            "alerting": {"alertmanagers": [{"static_configs": alertmanagers}]} if alertmanagers else {},
            "scrape_configs": [
                {"job_name": job, "static_configs": [_targets(port)]} for job, port in self.scrape.items()
            ],
        }

    def _rules_file(self) -> Path:
        if isinstance(self._rules, Path):
            return self._rules.absolute()
        path = self.directory / "rules.yml"
        path.write_text(self._rules or "")
        return path


class LabMonitoring:
    """All three: node-exporter as job `node`, scraped with `scrape` by a Prometheus that alerts.

    Ready after a second; `prometheus.wait_until_scraped()` for the first metrics and alerts, which takes some
    seven more.

    Args:
        directory: one directory in it for each.
        scrape: further jobs -> ports.
        rules: alert rules as text, or their file.
        textfiles: directory of node-exporter's textfile collector.
    """

    def __init__(
        self,
        directory: Path,
        scrape: Mapping[str, int] | None = None,
        *,
        rules: str | Path | None = ALERT_RULES,
        textfiles: Path | None = None,
    ) -> None:
        self.node_exporter = LabNodeExporter(directory / "node-exporter", textfiles=textfiles)
        self.alertmanager = LabAlertmanager(directory / "alertmanager")
        self.prometheus = LabPrometheus(
            directory / "prometheus",
            {"node": self.node_exporter.port, **(scrape or {})},
            rules=rules,
            alertmanager=self.alertmanager.port,
        )
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in (self.node_exporter, self.alertmanager, self.prometheus):
                starting.enter_context(server)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


def _targets(port: int) -> dict[str, list[str]]:
    return {"targets": [f"{LOCALHOST}:{port}"]}


def _write(path: Path, configuration: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(configuration, indent=2))  # JSON is YAML
    return path


def _program(*names: str) -> str:
    """Return the first of `names` that is installed: Debian and the makers name some differently."""
    path = os.environ.get("PATH", os.defpath) + _SYSTEM_PROGRAMS
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise LabError(f"none of {names} is installed: install the Debian package {names[0]}")
