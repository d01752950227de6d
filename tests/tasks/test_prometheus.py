"""Prometheus asked for real: one value or no data, and what is no answer is the provider's error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from blocks.prometheus import Prometheus
from lab.ports import free_port, give_back
from lab.prometheus import LabPrometheus
from tasks.prometheus import (
    ProviderError,
    QueryRefusedError,
    firing,
    is_ready,
    loaded_alert_rules,
    query,
    query_range,
)
from tests.requirements import need

RULES = """\
groups:
  - name: always
    rules:
      - alert: Fires
        expr: vector(1)
        labels: {severity: warning}
        annotations: {summary: as it should}
      - alert: Waits
        expr: vector(1)
        for: 1h
      - alert: NeverFires
        expr: vector(1) > 2
      - record: one
        expr: vector(1)
"""
TOKEN = "not-for-logs"  # noqa: S105 - made up


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabPrometheus]:
    """A Prometheus that scrapes nothing but itself."""
    need("prometheus", package="prometheus")
    server = LabPrometheus(tmp_path_factory.mktemp("prometheus"), {}, rules=RULES)
    server.scrape["itself"] = server.port
    with server:
        server.wait_until_scraped()
        yield server


@pytest.fixture
def prometheus(server: LabPrometheus) -> Prometheus:
    return server.block


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 1", 2.0),
        ("vector(0)", 0.0),
        ('up{job="itself"}', 1.0),
        ('up{job="nobody"}', None),
        ("vector(0) / 0", None),
        ("vector(1) / 0", None),
        ("absent(up)", None),
    ],
)
def test_a_query_has_one_value_or_no_data(prometheus, expression, value):
    assert query(prometheus, expression) == value


def test_a_query_may_be_of_another_moment(prometheus):
    assert query(prometheus, "up", at=datetime.now(UTC) - timedelta(days=1)) is None
    then = datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)
    assert query(prometheus, "time()", at=then) == then.timestamp()


def test_a_range_has_a_point_each_step(prometheus):
    end = datetime(2026, 1, 2, tzinfo=UTC)
    found = query_range(prometheus, "time()", start=end - timedelta(seconds=20), end=end, step_s=10)
    assert found == tuple(
        (at, at.timestamp()) for at in (end - timedelta(seconds=seconds) for seconds in (20, 10, 0))
    )
    assert query_range(prometheus, "missing", start=end - timedelta(seconds=20), end=end, step_s=10) == ()


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("sum(", "parse error"),
        ("rate(up)", "expected type range vector"),
        ("prometheus_http_requests_total", r"series where one value is wanted.*Aggregate it"),
        ("up[5m]", "is a matrix"),
    ],
)
def test_a_wrong_query_is_refused_in_prometheus_own_words(prometheus, expression, words):
    with pytest.raises(QueryRefusedError, match=words):
        query(prometheus, expression)


def test_alert_rules_are_those_loaded_and_firing_those_that_fire(prometheus):
    assert loaded_alert_rules(prometheus) == {"Fires", "Waits", "NeverFires"}
    deadline = time.monotonic() + 15
    while not firing(prometheus) and time.monotonic() < deadline:
        time.sleep(0.1)
    (alert,) = firing(prometheus)
    assert (alert.name, alert.severity, alert.summary) == ("Fires", "warning", "as it should")
    assert datetime.now(UTC) - alert.starts_at < timedelta(minutes=10)


def test_a_killed_prometheus_is_a_provider_error_and_back_after_its_start(tmp_path: Path):
    need("prometheus", package="prometheus")
    with LabPrometheus(tmp_path / "prometheus", {}) as server:
        assert is_ready(server.block)
        server.kill()
        assert not is_ready(server.block)
        for ask in (loaded_alert_rules, firing, lambda block: query(block, "1")):
            with pytest.raises(ProviderError, match=f"{server.url} gave no answer: ConnectError"):
                ask(server.block)
        server.start()
        assert query(server.block, "1") == 1.0


class Odd(BaseHTTPRequestHandler):
    """Answers as a proxy before a Prometheus may; its path's prefix says how."""

    seen: list[str | None]

    def do_GET(self):
        self.server.seen.append(self.headers["Authorization"])
        kind = self.path.split("/")[1]
        if kind == "slow":
            time.sleep(1.0)
        status = {"away": 503, "moved": 302, "locked": 401}.get(kind, 200)
        body = {
            "text": b"<html>a login page",
            "empty": b"",
            "good": b'{"status": "success", "data": {"resultType": "scalar", "result": [0, "4"]}}',
        }.get(kind, b'{"status": "error", "error": "not now"}')
        self.send_response(status)
        self.send_header("Location", "/good/api/v1/query")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def odd() -> Iterator[HTTPServer]:
    port = free_port()
    server = HTTPServer(("127.0.0.1", port), Odd)
    server.seen = []
    server.handle_error = lambda *_: None  # a client that went away is what is tested
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    give_back(port)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("away", "answered 503: not now"),
        ("moved", "answered 302"),
        ("locked", "answered 401: not now"),
        ("text", "answered no JSON: '<html>a login page'"),
        ("empty", "not an answer of the API"),
        ("error", "not an answer of the API.*not now"),
        ("slow", "gave no answer: ReadTimeout"),
    ],
)
def test_what_is_no_answer_is_a_provider_error_that_tells_no_token(odd, kind, words):
    block = Prometheus(
        url=f"http://127.0.0.1:{odd.server_port}/{kind}/", token=SecretStr(TOKEN), timeout_s=0.3
    )
    with pytest.raises(ProviderError, match=words) as raised:
        query(block, "1")
    assert not isinstance(raised.value, QueryRefusedError)
    assert TOKEN not in str(raised.value)
    assert odd.seen == [f"Bearer {TOKEN}"]


def test_a_path_prefix_is_kept_and_no_token_is_sent_where_there_is_none(odd):
    assert query(Prometheus(url=f"http://127.0.0.1:{odd.server_port}/good"), "1") == 4.0
    assert odd.seen == [None]


@pytest.mark.parametrize("url", ["http://user:word@prometheus:9090", "prometheus:9090", "file:///etc/passwd"])
def test_a_url_with_a_password_or_of_another_kind_is_refused(url):
    with pytest.raises(ValidationError):
        Prometheus(url=url)
