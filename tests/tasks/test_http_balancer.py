"""A balancer with an HTTP API: what is refused, what is left when it breaks, what users see in between."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.haproxy import LabHaproxy
from lab.http_balancer import LabHttpBalancer
from rules.errors import BalancerError
from rules.traffic import Counts, HttpBalancerAddress, Traffic
from tasks import haproxy, http_balancer
from tests.tasks.balancing import BLUE, GREEN, asking, split, two_sides


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHttpBalancer]:
    directory = tmp_path_factory.mktemp("api")
    with (
        two_sides(directory / "answers") as backends,
        LabHaproxy(directory / "haproxy", backends, live=BLUE, candidate=GREEN) as front,
        LabHttpBalancer(directory / "api", front) as api,
    ):
        yield api


@pytest.fixture
def api(shared: LabHttpBalancer) -> LabHttpBalancer:
    """The API of a balancer that sends everybody to blue."""
    haproxy.set_traffic(shared.balancer.route, split(0))
    return shared


def moved(api: LabHttpBalancer) -> Traffic:
    """Return what the HAProxy behind it does."""
    return haproxy.read_traffic(api.balancer.route)


def test_what_is_set_is_what_the_balancer_does(api):
    for traffic in (split(1_000), split(10_000), split(0, GREEN), split(2_500, GREEN), split(0)):
        for _ in range(2):
            http_balancer.set_traffic(api.address, traffic)
            assert http_balancer.read_traffic(api.address) == moved(api) == traffic


def test_a_fraction_of_a_percent_and_an_unknown_environment_are_refused(api):
    with pytest.raises(BalancerError, match=r"whole percentages, not 12.5; traffic was left as it was"):
        http_balancer.set_traffic(api.address, split(1_250))
    with pytest.raises(BalancerError, match=r"no environment \['red'\], so traffic was left as it was"):
        http_balancer.set_traffic(api.address, Traffic(live="red", candidate=BLUE))
    assert moved(api) == split(0)


def test_killed_between_its_two_calls_the_next_change_puts_it_right(api):
    haproxy.set_traffic(api.balancer.route, split(10_000))
    # what is left then: the canary is ended, and nothing is switched yet
    haproxy.set_traffic(api.balancer.route, split(0))
    http_balancer.set_traffic(api.address, split(0, GREEN))
    assert moved(api) == split(0, GREEN)
    http_balancer.set_traffic(api.address, split(10_000))
    assert moved(api) == split(10_000)


def test_promoting_a_canary_loses_nobody_and_passes_the_old_side_only(api):
    """All users are on the canary; until the switch that follows they are on the side they came from."""
    http_balancer.set_traffic(api.address, split(10_000))
    with asking(api.url) as seen:
        time.sleep(0.2)
        http_balancer.set_traffic(api.address, split(0, GREEN))
        time.sleep(0.2)
    assert set(seen) <= {(200, BLUE), (200, GREEN)}
    assert seen[200, GREEN] > seen[200, BLUE]


def test_an_api_that_does_both_in_one_act_sends_nobody_elsewhere(api, tmp_path):
    with LabHttpBalancer(tmp_path / "atomic", api.balancer, switch_resets_canary=True) as atomic:
        http_balancer.set_traffic(atomic.address, split(10_000))
        with asking(api.url) as seen:
            time.sleep(0.2)
            http_balancer.set_traffic(atomic.address, split(0, GREEN))
            time.sleep(0.2)
        assert set(seen) == {(200, GREEN)}


def test_answers_are_counted_where_it_counts(api):
    before = http_balancer.counts(api.address, BLUE)
    with asking(api.url):
        time.sleep(0.2)
    counted = http_balancer.counts(api.address, BLUE).since(before)
    assert counted.requests > 0
    assert counted.errors == 0
    assert http_balancer.mean_response_s(api.address, BLUE) is None  # it does not say
    silent = api.address.model_copy(update={"counts_path": None})
    assert http_balancer.counts(silent, BLUE) is None


def test_a_rehearsal_makes_both_calls_and_changes_nothing(api):
    http_balancer.rehearse_switch(api.address, (split(0), split(1_000), split(0, GREEN), split(0)))
    assert moved(api) == split(0)
    refused = api.address.model_copy(update={"canary_path": "/canaries"})
    with pytest.raises(
        BalancerError, match=r"refused POST /canaries with 404(.|\n)*POST /switch .*done before"
    ):
        http_balancer.rehearse_switch(refused, (split(0),))
    assert moved(api) == split(0)


def test_a_rehearsal_in_the_middle_of_a_canary_calls_nothing(api):
    http_balancer.set_traffic(api.address, split(1_000))
    with pytest.raises(BalancerError, match="in the middle of a canary"):
        http_balancer.rehearse_switch(api.address, (split(0),))
    assert moved(api) == split(1_000)


def test_a_wrong_token_is_refused_and_never_shown(api, tmp_path):
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text("sesame")
    address = api.address.model_copy(update={"token_file": str(wrong)})
    with pytest.raises(BalancerError, match=r"refused GET /status with 401(.|\n)*token_file") as raised:
        http_balancer.set_traffic(address, split(0, GREEN))
    assert "sesame" not in str(raised.value)
    assert moved(api) == split(0)


def test_a_token_is_not_used_that_others_can_read_or_that_is_none(api, tmp_path):
    token = tmp_path / "token"
    address = api.address.model_copy(update={"token_file": str(token)})
    with pytest.raises(BalancerError, match=r"cannot be read(.|\n)*Nothing was asked"):
        http_balancer.ping(address)
    token.write_text("sesame")
    token.chmod(0o644)
    with pytest.raises(BalancerError, match="chmod 600"):
        http_balancer.ping(address)
    token.chmod(0o600)
    token.write_text("two words")
    with pytest.raises(BalancerError, match="holds no token") as raised:
        http_balancer.ping(address)
    assert "words" not in str(raised.value)


def test_a_call_waits_for_an_api_that_restarts(api):
    api.stop()
    with ThreadPoolExecutor(1) as pool:
        patient = api.address.model_copy(update={"timeout_s": 30.0})
        asked = pool.submit(http_balancer.set_traffic, patient, split(300))
        time.sleep(0.3)
        api.start()
        asked.result()
    assert moved(api) == split(300)


def test_a_split_survives_a_restart_of_it_all(api):
    http_balancer.set_traffic(api.address, split(2_000))
    api.restart()
    assert http_balancer.read_traffic(api.address) == split(2_000)


def test_an_api_that_is_down_is_an_error_in_time():
    address = HttpBalancerAddress(url="http://127.0.0.1:9", timeout_s=0.3)
    began = time.monotonic()
    with pytest.raises(BalancerError, match=r"did not answer GET /status(.|\n)*Nothing was changed"):
        http_balancer.set_traffic(address, split(0))
    assert time.monotonic() - began < 10


@contextmanager
def answering(status: int, body: object) -> Iterator[HttpBalancerAddress]:
    """Have something that gives the same answer to everything."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield HttpBalancerAddress(
            url=f"http://127.0.0.1:{server.server_address[1]}", counts_path="/counts", timeout_s=0.3
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        [],
        {"environment": "blue"},
        {"environment": "red", "percentage": 0},
        {"environment": "blue", "percentage": 101},
        {"environment": "blue", "percentage": "many"},
    ],
)
def test_what_answers_otherwise_than_a_balancer_is_told_from_one(body):
    with answering(200, body) as address, pytest.raises(BalancerError, match="as a balancer's API does"):
        http_balancer.read_traffic(address)


@pytest.mark.parametrize("body", [{}, {"blue": 7}, {"blue": {"requests": -1, "errors": 0}}, {"blue": {}}])
def test_counts_that_are_none_are_an_error_never_zero(body):
    with answering(200, body) as address, pytest.raises(BalancerError, match="as a balancer's API does"):
        http_balancer.counts(address, BLUE)


def test_counts_may_come_with_a_response_time():
    body = {"blue": {"requests": 7, "errors": 1, "mean_response_s": 0.25, "open": 3}}
    with answering(200, body) as address:
        assert http_balancer.counts(address, BLUE) == Counts(7, 1)
        assert http_balancer.mean_response_s(address, BLUE) == 0.25


def test_an_api_that_takes_calls_and_does_nothing_is_found_out():
    with (
        answering(200, {"environment": "blue", "percentage": 0}) as address,
        pytest.raises(BalancerError, match=r'by POST /switch {"environment":"green"}, but reads'),
    ):
        http_balancer.set_traffic(address, split(0, GREEN))


@pytest.mark.parametrize("status", [503, 429])
def test_an_api_that_fails_is_asked_again_and_then_told(status):
    with (
        answering(status, {"error": "later"}) as address,
        pytest.raises(BalancerError, match=rf"did not answer GET /status: {status} .*later"),
    ):
        http_balancer.read_traffic(address)


@pytest.mark.parametrize("status", [400, 500, 200])
def test_an_api_that_shows_what_it_was_sent_does_not_have_us_tell_the_token(tmp_path: Path, status):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("sesame-0123")
    with answering(status, {"error": "what is this: Authorization: Bearer sesame-0123"}) as echoing:
        address = echoing.model_copy(update={"token_file": str(token)})
        with pytest.raises(BalancerError, match=r"Bearer \*\*\*") as raised:
            http_balancer.read_traffic(address)
    assert "sesame" not in str(raised.value)
