"""The balancer, on a real HAProxy with small HTTP servers behind it."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab.haproxy import LabHaproxy
from rules.errors import BalancerError
from rules.traffic import Counts, Traffic
from tasks import haproxy
from tasks.haproxy_socket import ask

BLUE, GREEN = "be_blue", "be_green"


class Answer(BaseHTTPRequestHandler):
    """200; /slow takes a second, /fail is a 500."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: Nagle would add 40 ms to each answer

    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1.0)
        self.send_response(500 if self.path == "/fail" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """One instance of an application; `stop` refuses connections from then on."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_):
        """HAProxy resets its connections when it stops: no news."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def servers() -> Iterator[dict[str, Server]]:
    running = {name: Server() for name in ("b1", "b2", "g1")}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture
def balancer(tmp_path: Path, servers: dict[str, Server]) -> Iterator[LabHaproxy]:
    ports = {name: server.port for name, server in servers.items()}
    backends = {BLUE: {"b1": ports["b1"], "b2": ports["b2"]}, GREEN: {"g1": ports["g1"]}}
    with LabHaproxy(tmp_path / "haproxy", backends, live=BLUE, candidate=GREEN) as running:
        yield running


def get(port: int, path: str = "/", user: str | None = None) -> tuple[int, str | None, str | None]:
    """Return status, backend and server of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Cookie": f"uid={user}"} if user else {})
        response = connection.getresponse()
        response.read()
        return response.status, response.headers["X-Backend"], response.headers["X-Server"]
    finally:
        connection.close()


def sides(port: int, requests: int) -> Counter[str | None]:
    """Return which side answered how many of `requests`, on one connection."""
    seen: Counter[str | None] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(requests):
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        seen[response.headers["X-Backend"]] += 1
    connection.close()
    return seen


@contextmanager
def load(port: int) -> Iterator[Counter[int | str]]:
    """Send requests from two users all the time; yields a count of statuses and of broken connections."""
    seen: Counter[int | str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                seen[get(port)[0]] += 1
            except OSError as error:
                seen[repr(error)] += 1
            time.sleep(0.002)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            yield seen
        finally:
            over.set()
    for future in asking:
        future.result()


def split(basis_points: int, live: str = BLUE, candidate: str = GREEN) -> Traffic:
    return Traffic(live=live, candidate=candidate, canary_basis_points=basis_points)


def test_it_says_its_version(balancer):
    assert haproxy.ping(balancer.address)[0].isdigit()


def test_traffic_reads_back_as_it_was_set(balancer):
    assert haproxy.read_traffic(balancer.route) == split(0)
    for traffic in (split(1234), split(0, GREEN, BLUE), split(0, GREEN, BLUE)):
        haproxy.set_traffic(balancer.route, traffic)
        assert haproxy.read_traffic(balancer.route) == traffic
    assert Path(balancer.address.route_map).read_text() == "web be_green:be_blue:0\n"


def test_forty_switches_under_load_lose_no_request(balancer):
    with load(balancer.port) as seen:
        for number in range(40):
            here, there = (BLUE, GREEN) if number % 2 else (GREEN, BLUE)
            haproxy.set_traffic(balancer.route, split(0, here, there))
            assert get(balancer.port)[1] == here
            time.sleep(0.02)
    assert set(seen) == {200}
    assert seen[200] > 100


def test_no_share_and_full_share_are_exact(balancer):
    assert sides(balancer.port, 300) == {BLUE: 300}
    haproxy.set_traffic(balancer.route, split(10_000))
    assert sides(balancer.port, 300) == {GREEN: 300}


def test_ten_percent_are_ten_percent(balancer):
    haproxy.set_traffic(balancer.route, split(1_000))
    seen = sides(balancer.port, 3_000)
    # five standard deviations: one false alarm in two million runs
    assert seen[GREEN] / 3_000 == pytest.approx(0.10, abs=5 * (0.1 * 0.9 / 3_000) ** 0.5)


def test_users_who_came_to_the_canary_stay_while_it_grows(balancer):
    users = [f"user-{number}" for number in range(200)]
    canary: set[str] = set()
    for share in (1_000, 2_500, 5_000):
        haproxy.set_traffic(balancer.route, split(share))
        now = {user for user in users if get(balancer.port, user=user)[1] == GREEN}
        assert canary < now
        assert now == {user for user in users if get(balancer.port, user=user)[1] == GREEN}
        canary = now
    assert len(canary) == pytest.approx(100, abs=36)


def test_open_requests_finish_on_the_side_that_they_began_on(balancer):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, balancer.port, "/slow")
        time.sleep(0.3)
        haproxy.set_traffic(balancer.route, split(0, GREEN, BLUE))
        assert get(balancer.port)[1] == GREEN
        assert slow.result()[:2] == (200, BLUE)


def test_an_unknown_backend_is_refused_and_changes_nothing(balancer):
    with pytest.raises(BalancerError, match=r"no backend \['be_red'\].*left as it was"):
        haproxy.set_traffic(balancer.route, split(500, candidate="be_red"))
    assert haproxy.read_traffic(balancer.route) == split(0)


def test_a_route_that_is_new_gets_one_entry(balancer):
    route = balancer.route.model_copy(update={"key": "api"})
    with pytest.raises(BalancerError, match="no entry api"):
        haproxy.read_traffic(route)
    for share in (0, 700):
        haproxy.set_traffic(route, split(share))
    assert haproxy.read_traffic(route) == split(700)
    assert Path(balancer.address.route_map).read_text() == (
        "web be_blue:be_green:0\napi be_blue:be_green:700\n"
    )


def test_two_deployments_at_once_both_keep_their_route_in_the_file(balancer):
    routes = [balancer.route.model_copy(update={"key": key}) for key in ("web", "api", "docs")]

    def move(route):
        for share in range(0, 1_000, 100):
            haproxy.set_traffic(route, split(share))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(move, routes))
    lines = Path(balancer.address.route_map).read_text().splitlines()
    assert sorted(lines) == [f"{key} be_blue:be_green:900" for key in ("api", "docs", "web")]


def test_an_entry_in_another_form_is_refused(balancer):
    ask(balancer.address, f"set map {balancer.address.route_map} web be_blue")
    with pytest.raises(BalancerError, match="is 'be_blue', not live:candidate:basis_points"):
        haproxy.read_traffic(balancer.route)


def test_a_map_that_haproxy_does_not_know_is_refused(balancer):
    address = balancer.address.model_copy(update={"route_map": "/nowhere.map"})
    with pytest.raises(BalancerError, match="Unknown map"):
        haproxy.set_traffic(balancer.route.model_copy(update={"balancer": address}), split(0))


def test_a_change_that_cannot_be_kept_says_so(balancer, tmp_path):
    path = Path(balancer.address.route_map)
    path.unlink()
    path.mkdir()  # in the way, also for root
    with pytest.raises(BalancerError, match="made the change, but a restart would lose it"):
        haproxy.set_traffic(balancer.route, split(100))
    assert haproxy.read_traffic(balancer.route) == split(100)


def test_a_share_and_a_drained_server_survive_a_hard_restart(balancer):
    haproxy.set_traffic(balancer.route, split(2_500))
    haproxy.set_admin(balancer.address, BLUE, "b1", "drain")
    haproxy.set_admin(balancer.address, GREEN, "g1", "maint")
    pid = balancer.pid
    balancer.restart()
    assert balancer.pid != pid
    assert haproxy.read_traffic(balancer.route) == split(2_500)
    assert haproxy.server_admin(balancer.address, BLUE, "b1") == "drain"
    assert haproxy.server_admin(balancer.address, BLUE, "b2") == "ready"
    assert haproxy.server_admin(balancer.address, GREEN, "g1") == "maint"


def test_a_command_waits_for_a_haproxy_that_restarts(balancer):
    balancer.stop()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(haproxy.set_traffic, balancer.route, split(100))
        time.sleep(0.3)
        balancer.start()
        asked.result()
    assert haproxy.read_traffic(balancer.route) == split(100)


def test_a_haproxy_that_is_down_is_an_error_in_time(balancer):
    balancer.stop()
    address = balancer.address.model_copy(update={"timeout_s": 0.3})
    began = time.monotonic()
    with pytest.raises(BalancerError, match="did not answer `show info`"):
        haproxy.ping(address)
    assert time.monotonic() - began < 2


def test_a_balancer_that_hangs_is_an_error_in_time(balancer, tmp_path):
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        with pytest.raises(BalancerError, match="timed out"):
            haproxy.ping(balancer.address.model_copy(update={"socket": str(path), "timeout_s": 0.3}))


def test_draining_waits_for_the_open_request(balancer):
    haproxy.set_traffic(balancer.route, split(10_000))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, balancer.port, "/slow")
        time.sleep(0.3)
        began = time.monotonic()
        left = haproxy.drain(balancer.address, GREEN, "g1", deadline_s=5)
        assert 0.4 < time.monotonic() - began < 3
        assert (left, slow.result()[0]) == (0, 200)
    assert haproxy.server_admin(balancer.address, GREEN, "g1") == "maint"
    assert get(balancer.port)[0] == 503


def test_draining_counts_the_requests_that_it_could_not_wait_for(balancer):
    haproxy.set_traffic(balancer.route, split(10_000))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, balancer.port, "/slow")
        time.sleep(0.3)
        assert haproxy.drain(balancer.address, GREEN, "g1", deadline_s=0.1) == 1
        assert haproxy.server_admin(balancer.address, GREEN, "g1") == "maint"
        assert slow.result()[0] == 200  # maintenance alone breaks nobody off


def test_rolling_over_two_servers_loses_no_request(balancer, servers):
    with load(balancer.port) as seen:
        for name in ("b1", "b2"):
            assert haproxy.drain(balancer.address, BLUE, name, deadline_s=5) == 0
            assert haproxy.servers_up(balancer.address, BLUE)[name] is False
            servers[name].stop()
            servers[name] = Server(servers[name].port)
            haproxy.rejoin(balancer.address, BLUE, name, deadline_s=5)
            assert haproxy.servers_up(balancer.address, BLUE) == {"b1": True, "b2": True}
    assert set(seen) == {200}


def test_a_dead_server_does_not_rejoin(balancer, servers):
    haproxy.drain(balancer.address, BLUE, "b1", deadline_s=5)
    servers["b1"].stop()
    with pytest.raises(BalancerError, match=r"is DOWN \(last check: L4CON\). It is left ready"):
        haproxy.rejoin(balancer.address, BLUE, "b1", deadline_s=1)
    assert haproxy.server_admin(balancer.address, BLUE, "b1") == "ready"
    assert haproxy.servers_up(balancer.address, BLUE) == {"b1": False, "b2": True}
    servers["b1"] = Server(servers["b1"].port)
    haproxy.rejoin(balancer.address, BLUE, "b1", deadline_s=5)


@pytest.mark.parametrize("admin", ["drain", "maint", "ready"])
def test_each_server_state_reads_back_and_may_be_repeated(balancer, admin):
    for before in ("maint", "drain", "ready"):
        haproxy.set_admin(balancer.address, BLUE, "b1", before)
        for _ in range(2):
            haproxy.set_admin(balancer.address, BLUE, "b1", admin)
            assert haproxy.server_admin(balancer.address, BLUE, "b1") == admin


def test_unknown_servers_are_refused(balancer):
    for backend, server in ((BLUE, "b9"), ("be_red", "b1")):
        with pytest.raises(BalancerError, match=f"no server {backend}/{server}"):
            haproxy.server_admin(balancer.address, backend, server)
        with pytest.raises(BalancerError, match="No such"):
            haproxy.set_admin(balancer.address, backend, server, "drain")


def test_answers_and_errors_of_a_side_are_counted(balancer, servers):
    assert haproxy.counts(balancer.address, GREEN) == Counts()
    assert haproxy.mean_response_s(balancer.address, GREEN) is None
    haproxy.set_traffic(balancer.route, split(10_000))
    for path in ("/", "/", "/fail", "/slow"):
        get(balancer.port, path)
    assert haproxy.counts(balancer.address, GREEN) == Counts(requests=4, errors=1)
    assert haproxy.counts(balancer.address, BLUE) == Counts()
    mean_s = haproxy.mean_response_s(balancer.address, GREEN)
    assert mean_s  # one of four took a second; a busy machine makes them slower
    assert 0.2 < mean_s < 5


def test_a_side_with_no_live_server_has_errors_not_silence(balancer, servers):
    haproxy.set_traffic(balancer.route, split(10_000))
    haproxy.set_admin(balancer.address, GREEN, "g1", "maint")
    assert get(balancer.port)[0] == 503
    assert haproxy.counts(balancer.address, GREEN) == Counts(requests=1, errors=1)


def test_figures_of_an_unknown_side_are_an_error(balancer):
    for figure in (haproxy.counts, haproxy.mean_response_s, haproxy.servers_up):
        with pytest.raises(BalancerError, match="No such proxy"):
            figure(balancer.address, "be_red")


def test_a_balancer_on_another_host_is_driven_the_same(balancer, remote):
    address = balancer.address.model_copy(update={"host": remote})
    route = balancer.route.model_copy(update={"balancer": address})
    haproxy.set_traffic(route, split(4_200))
    assert haproxy.read_traffic(route) == haproxy.read_traffic(balancer.route) == split(4_200)
    assert haproxy.drain(address, GREEN, "g1", deadline_s=5) == 0
    assert haproxy.server_admin(balancer.address, GREEN, "g1") == "maint"
    nowhere = address.model_copy(update={"socket": "/nowhere.sock"})
    with pytest.raises(BalancerError, match="No such file"):
        haproxy.ping(nowhere)


def test_a_deep_directory_still_gives_a_working_socket(tmp_path, servers):
    deep = tmp_path / ("d" * 100)
    backends = {BLUE: {"b1": servers["b1"].port}, GREEN: {"g1": servers["g1"].port}}
    with LabHaproxy(deep, backends, live=BLUE, candidate=GREEN) as balancer:
        assert haproxy.ping(balancer.address)
        assert get(balancer.port)[0] == 200
        directory = Path(balancer.address.socket).parent
    assert not directory.exists()


def test_its_metrics_are_served_to_prometheus(balancer):
    connection = http.client.HTTPConnection("127.0.0.1", balancer.metrics_port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'haproxy_backend_http_responses_total{proxy="be_blue",code="5xx"} 0' in text
