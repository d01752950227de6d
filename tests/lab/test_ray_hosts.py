"""Hosts for Ray are apart where this machine allows it, and nothing of them outlives who made them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lab.identity import started_ticks
from lab.ports import is_listening
from lab.processes import LabError, marked, wait_until
from lab.ray_hosts import LoopbackHosts, NamespaceHosts, hosts, why_not_apart

ROOT = Path(__file__).parents[2]
NAMES = ("head", "node-1", "node-2")


@pytest.fixture(params=["as root", "as user"])
def apart(request, tmp_path):
    if words := why_not_apart():
        pytest.skip(words)
    if request.param == "as root" and os.geteuid() != 0:
        pytest.skip("not root")
    with NamespaceHosts(tmp_path / "hosts", NAMES, as_user=request.param == "as user") as running:
        yield running


def served(place, name):
    """Serve the working directory's files on a host, for as long as it lasts."""
    argv = (sys.executable, "-m", "http.server", "--bind", "0.0.0.0", "8265")  # noqa: S104 - of the host
    return subprocess.Popen((*place.enter(name), *argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_hosts_have_names_addresses_processes_and_shared_memory_of_their_own(apart):
    assert [apart.run(name, "hostname").strip() for name in NAMES] == list(NAMES)
    assert len({apart.address(name) for name in NAMES}) == 3
    apart.run("node-1", "sh", "-c", "echo here >/dev/shm/own; echo kept >/dev/shm/ray/kept")
    shared = [apart.run(name, "ls", "/dev/shm").split() for name in NAMES]  # noqa: S108 - theirs
    assert shared == [["ray"], ["own", "ray"], ["ray"]]
    assert (apart.directory / "node-1" / "kept").read_text() == "kept\n"
    seen = apart.run("node-2", "sh", "-c", "echo /proc/[0-9]*").split()
    assert len(seen) == 2, "the host's first process, and the shell that looks"


def test_hosts_reach_each_other_and_this_machine_reaches_what_is_forwarded(apart):
    server = served(apart, "node-2")
    address = apart.reach("node-2", 8265)
    ask = f"import socket; socket.create_connection(('{apart.address('node-2')}', 8265), 2)"

    def answers():
        try:
            return httpx.get(f"http://{address}/", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(answers, timeout_s=10, what="the server on the host")
    apart.run("node-1", sys.executable, "-c", ask)
    apart.run("head", sys.executable, "-c", ask)
    interfaces = {name for _, name in socket.if_nameindex()}
    assert not interfaces & {"br0", "to0", "to1"}, "this machine's network is as it was"
    apart.stop()
    server.wait(timeout=5)
    assert not is_listening(int(address.rpartition(":")[2]))


def test_stopped_they_leave_no_process_and_can_be_started_again(apart):
    subprocess.Popen((*apart.enter("node-1"), "setsid", "sh", "-c", "sleep 600 & sleep 600")).poll()
    wait_until(lambda: "sleep" in apart.run("node-1", "ps", "ax"), timeout_s=5, what="the sleepers")
    apart.stop()
    assert list(marked(apart.directory)) == []
    with pytest.raises(LabError, match="no host node-1 now"):
        apart.enter("node-1")
    apart.start()
    assert apart.run("node-1", "hostname") == "node-1\n"


def test_nothing_of_them_outlives_a_killed_lab(tmp_path):
    if words := why_not_apart():
        pytest.skip(words)
    script = (
        "import subprocess, sys, time; from pathlib import Path; from lab.ray_hosts import hosts\n"
        "with hosts(Path(sys.argv[1]), ('head', 'node-1')) as h:\n"
        "    subprocess.Popen((*h.enter('node-1'), 'setsid', 'sleep', '600'))\n"
        "    print(h.reach('head', 1), flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        address = killed.stdout.readline().strip()
        found = {pid: started_ticks(pid) for pid in marked(tmp_path)}
        assert len(found) >= 4
        killed.send_signal(signal.SIGKILL)

    def gone():
        return not any(started_ticks(pid) == ticks for pid, ticks in found.items())

    wait_until(gone, timeout_s=10, what="all of them to be gone")
    assert not is_listening(int(address.rpartition(":")[2]))


def test_two_labs_stand_side_by_side_with_the_same_addresses(tmp_path):
    if words := why_not_apart():
        pytest.skip(words)
    with hosts(tmp_path / "one", NAMES[:2]) as one, hosts(tmp_path / "two", NAMES[:2]) as two:
        servers = [served(place, "head") for place in (one, two)]
        assert one.address("head") == two.address("head")
        assert one.reach("head", 8265) != two.reach("head", 8265)
    for server in servers:
        server.wait(timeout=5)


def test_on_the_loopback_network_addresses_and_ports_differ_and_files_go(tmp_path):
    with LoopbackHosts(tmp_path, NAMES) as place:
        assert len({place.address(name) for name in NAMES}) == 3
        assert place.port(6379) != place.port(6379)
        directory = Path(place.temporary("head")).parent
        assert directory.is_dir()
        assert len(str(directory)) < 20, "sockets lie 70 letters deeper, and may lie 107 deep"
    began = time.monotonic()
    place.stop()
    assert not directory.exists()
    assert time.monotonic() - began < 1
