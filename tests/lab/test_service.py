import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from lab.identity import started_ticks
from lab.ports import free_port, give_back, is_listening
from lab.processes import wait_until
from lab.releases import Behaviour, build_release, install_release
from lab.service import STOPPED


class Service:
    """One instance, driven by its commands as a deployment drives it."""

    def __init__(self, directory, behaviour):
        self.root, self.port = directory / "web", free_port()
        install_release(build_release(directory, "1.0.0", behaviour), self.root, "1.0.0")

    def argv(self, command):
        where = ["--root", str(self.root), "--port", str(self.port)]
        return [sys.executable, "-m", "lab.service", command, *where]

    def command(self, name):
        return subprocess.run(self.argv(name), check=False, capture_output=True, text=True, timeout=30)

    def pid(self):
        return json.loads((self.root / "run" / "pid.json").read_text())["pid"]

    def get(self, path="/"):
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)

    def wait(self):
        wait_until(lambda: is_listening(self.port), timeout_s=10, what="the service to listen")


@pytest.fixture
def service(tmp_path):
    services = []

    def start(**behaviour):
        services.append(Service(tmp_path, Behaviour(**behaviour)))
        assert services[-1].command("start").returncode == 0
        return services[-1]

    yield start
    for one in services:
        assert one.command("stop").returncode == 0
        give_back(one.port)


def test_a_good_release_says_which_it_is(service):
    web = service()
    web.wait()
    assert web.get("/health").json() | {"pid": 0, "uptime_s": 0} == {
        "status": "healthy",
        "version": "1.0.0",
        "pid": 0,
        "uptime_s": 0,
    }
    assert web.get("/anything").headers["X-Release"] == "1.0.0"


def test_status_says_running_or_stopped_by_its_exit_code(service):
    web = service()
    assert web.command("status").returncode == 0
    assert web.command("stop").returncode == 0
    assert web.command("status").returncode == STOPPED
    assert not is_listening(web.port)


def test_starting_twice_and_stopping_twice_change_nothing(service):
    web = service()
    before = web.pid()
    assert web.command("start").returncode == 0
    assert web.pid() == before
    assert web.command("stop").returncode == web.command("stop").returncode == 0


def test_a_pid_given_to_another_process_is_not_stopped(service):
    web = service()
    web.command("stop")
    (web.root / "run" / "pid.json").write_text(json.dumps({"pid": os.getpid(), "started_ticks": 1}))
    assert web.command("status").returncode == STOPPED
    assert web.command("stop").returncode == 0


def test_the_service_does_not_hold_the_pipe_of_who_started_it(service):
    began = time.monotonic()
    service()  # reads the command's output to its end
    assert time.monotonic() - began < 5


def test_nothing_is_started_without_a_release(service):
    web = service()
    web.command("stop")
    (web.root / "current").unlink()
    failed = web.command("start")
    assert failed.returncode == 1
    assert "points to no release" in failed.stderr


def test_a_release_that_fails_to_start_is_seen_as_stopped_and_says_why_in_its_log(service):
    web = service(fails_to_start=True)
    wait_until(lambda: web.command("status").returncode == STOPPED, timeout_s=10, what="the end")
    assert "fails to start" in (web.root / "log" / "service.log").read_text()


def test_a_release_may_die_by_itself(service):
    web = service(dies_after_s=0.2)
    wait_until(lambda: web.command("status").returncode == STOPPED, timeout_s=10, what="the end")


def test_a_slow_starter_is_not_healthy_until_it_is_ready(service):
    web = service(ready_after_s=0.5)
    web.wait()
    assert web.get("/health").status_code == web.get().status_code == 503
    wait_until(lambda: web.get("/health").status_code == 200, timeout_s=10, what="health")
    assert web.get().status_code == 200


def test_a_release_may_claim_to_be_another(service):
    web = service(wrong_version=True)
    web.wait()
    assert web.get("/health").json()["version"] == "1.0.0-wrong"


def test_errors_come_at_their_rate_and_never_on_health(service):
    web = service(error_ratio=0.2)
    web.wait()
    with httpx.Client(base_url=f"http://127.0.0.1:{web.port}") as client:
        errors = sum(client.get("/").status_code == 500 for _ in range(500))
        assert {client.get("/health").status_code for _ in range(50)} == {200}
    assert 60 <= errors <= 140  # 100 expected; four standard deviations are 36


def test_a_good_release_finishes_open_requests_when_stopped(service):
    web = service(latency_s=0.5)
    assert status_of_request_open_during_stop(web) == b"HTTP/1.1 200 OK"


def test_an_abrupt_release_drops_open_requests_when_stopped(service):
    web = service(latency_s=4.0, abrupt_stop=True)
    assert status_of_request_open_during_stop(web) == b""


def status_of_request_open_during_stop(web):
    web.wait()
    with socket.create_connection(("127.0.0.1", web.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        time.sleep(0.2)
        assert web.command("stop").returncode == 0
        try:
            return connection.makefile("rb").readline().strip()
        except ConnectionResetError:
            return b""


def test_a_service_that_does_not_listen_is_killed(service):
    web = service()
    os.kill(web.pid(), signal.SIGSTOP)
    pid = web.pid()
    assert web.command("stop").returncode == 0
    assert started_ticks(pid) is None


def test_a_start_killed_at_any_moment_leaves_no_service_unknown(service):
    web = service()
    for delay_ms in range(0, 80, 8):
        assert web.command("stop").returncode == 0
        argv = [
            sys.executable,
            "-m",
            "lab.service",
            "start",
            "--root",
            str(web.root),
            "--port",
            str(web.port),
        ]
        starting = subprocess.Popen(argv, start_new_session=True)
        time.sleep(delay_ms / 1000)
        os.killpg(starting.pid, signal.SIGKILL)
        starting.wait()
        assert web.command("stop").returncode == 0, "stop says so when another process has the port"
        time.sleep(0.05)
        assert not is_listening(web.port)
