import socketserver
import threading
import time

import pytest

from lab.load import Load
from lab.ports import free_port, give_back
from lab.processes import LabError, wait_until


class Server(socketserver.ThreadingTCPServer):
    """Answers by turns 200, 500, and by hanging up; counts what it did."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 100

    def __init__(self, kinds):
        super().__init__(("127.0.0.1", 0), Handler)
        self.kinds, self.counts, self.lock = kinds, dict.fromkeys(kinds, 0), threading.Lock()

    def next_kind(self):
        with self.lock:
            kind = self.kinds[sum(self.counts.values()) % len(self.kinds)]
            self.counts[kind] += 1
            return kind


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        if not self.rfile.readline():
            return
        while self.rfile.readline().strip():
            pass
        kind = self.server.next_kind()
        head = b"X-Backend: blue\r\nX-Release: 1.0.0\r\nConnection: close\r\n"
        if kind == "hangs up":
            return
        if kind == "breaks off":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n" + head + b"\r\nhalf")
            return
        self.wfile.write(b"HTTP/1.1 " + kind.encode() + b" X\r\nContent-Length: 0\r\n" + head + b"\r\n")


@pytest.fixture
def serve():
    servers = []

    def start(*kinds):
        servers.append(Server(kinds))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1], f"http://127.0.0.1:{servers[-1].server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_every_failure_is_counted_exactly(serve, tmp_path):
    server, url = serve("200", "500", "hangs up", "breaks off")
    with Load(url, 100, tmp_path) as load:
        wait_until(lambda: len(load.rows()) > 100, timeout_s=20, what="a hundred requests")
    summary, hung_up = load.summary(), server.counts["hangs up"]
    assert summary.requests == sum(server.counts.values())
    assert summary.failed == server.counts["500"] + hung_up + server.counts["breaks off"]
    assert summary.by_side == {"blue": summary.requests - hung_up, None: hung_up}


def test_nobody_listening_fails_every_request(tmp_path):
    port = free_port()
    try:
        with Load(f"http://127.0.0.1:{port}/", 50, tmp_path) as load:
            time.sleep(0.5)
        assert load.summary().failed == load.summary().requests > 0
        assert {row["status"] for row in load.rows()} == {None}
    finally:
        give_back(port)


def test_requests_come_at_the_rate_that_was_asked_for(serve, tmp_path):
    _, url = serve("200")
    with Load(url, 100, tmp_path) as load:
        time.sleep(2)
    times = [row["t"] for row in load.rows()]
    assert len(times) / (max(times) - min(times)) == pytest.approx(100, rel=0.1)


def test_it_ends_by_itself(serve, tmp_path):
    _, url = serve("200")
    with Load(url, 50, tmp_path, max_duration_s=0.5) as load:
        wait_until(lambda: not load.process.is_alive(), timeout_s=20, what="the end")
        assert load.summary().requests == pytest.approx(26, abs=1)


def test_no_rows_are_no_summary(tmp_path):
    with pytest.raises(LabError, match="no request has ended"):
        Load("http://127.0.0.1:1/", 1, tmp_path).summary()
