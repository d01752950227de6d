"""The rehearsed switch, on a real HAProxy: read back for real, seen by nobody, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from lab.application import LabApplication
from rules.errors import BalancerError
from rules.traffic import Traffic
from rules.undo import RemoveRehearsal
from tasks import haproxy
from tasks.haproxy_socket import ask
from tasks.settings import Settings
from tasks.undo import take_back

HOME = Traffic(live="blue", candidate="green")
FIRST_STEP = Traffic(live="blue", candidate="green", canary_basis_points=1_000)
AWAY = Traffic(live="green", candidate="blue")
SPLITS = (HOME, FIRST_STEP, AWAY, HOME)
VALUES = {"blue:green:0", "blue:green:1000", "green:blue:0"}

#: Rehearses in a fork of itself for each line that it reads: says its id, and when it has ended.
REHEARSER = """
import os, sys
from rules.fleet import Fleet
from rules.plan import RehearseSwitch
from tasks import haproxy
fleet = Fleet.model_validate_json(sys.argv[1])
splits = RehearseSwitch.model_validate_json(sys.argv[2]).splits
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        haproxy.rehearse_switch(fleet.route, splits)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabApplication]:
    """One blue and one green instance behind HAProxy; no test here changes either."""
    with LabApplication(tmp_path_factory.mktemp("rehearsal") / "web", blue=1, green=1) as running:
        yield running


def memory(pair: LabApplication) -> dict[str, object]:
    """Return HAProxy's map and the map's file."""
    seen = pair.observed()
    return {"map": seen["route_map"], "file": seen["route_map_file"]}


@contextmanager
def seen_meanwhile(pair: LabApplication) -> Iterator[dict[str, set[str]]]:
    """Look at the map and its file all the time; yields which values each key had in either."""
    seen: dict[str, set[str]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            now = pair.observed()
            file = dict(line.split(maxsplit=1) for line in str(now["route_map_file"]).splitlines())
            for place, entries in (("map", now["route_map"]), ("file", file)):
                for key, value in entries.items():
                    seen.setdefault(f"{place} {key}", set()).add(value)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
    looking.result()


@contextmanager
def users(pair: LabApplication) -> Iterator[Counter[tuple[int, str]]]:
    """Send requests all the time; yields how often which status came from which side."""
    seen: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=10) as http:
            while not over.is_set():
                answer = http.get(pair.url)
                seen[answer.status_code, answer.headers["X-Backend"]] += 1

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield seen
        finally:
            over.set()
    asking.result()


def test_switch_and_switch_back_are_in_force_and_in_the_file_then_gone(pair):
    before = memory(pair)
    with seen_meanwhile(pair) as seen:
        for _ in range(10):
            haproxy.rehearse_switch(pair.fleet.route, SPLITS)
    assert seen["map web.rehearsal"] == seen["file web.rehearsal"] == VALUES
    assert seen["map web"] == seen["file web"] == {"blue:green:0"}
    assert memory(pair) == before


def test_users_notice_nothing_of_a_rehearsal(pair):
    with users(pair) as seen:
        for _ in range(10):
            haproxy.rehearse_switch(pair.fleet.route, SPLITS)
    assert set(seen) == {(200, "blue")}
    assert seen[200, "blue"] > 20


def test_a_switch_that_the_balancer_cannot_make_fails_the_rehearsal_and_leaves_nothing(pair):
    before = memory(pair)
    to_nowhere = (HOME, Traffic(live="red", candidate="blue"), HOME)
    with pytest.raises(BalancerError, match=r"no backend \['red'\]"):
        haproxy.rehearse_switch(pair.fleet.route, to_nowhere)
    assert memory(pair) == before


def test_a_map_whose_file_cannot_be_written_fails_the_rehearsal(pair):
    before, file = memory(pair), Path(pair.haproxy.address.route_map)
    kept = file.rename(file.with_suffix(".kept"))
    file.mkdir()
    try:
        with pytest.raises(BalancerError, match="could not be written"):
            haproxy.rehearse_switch(pair.fleet.route, SPLITS)
    finally:
        file.rmdir()
        kept.rename(file)
    assert memory(pair) == before


def test_rehearsals_of_two_applications_that_share_a_map_leave_it_as_it_was(pair):
    routes = [pair.fleet.route.model_copy(update={"key": key}) for key in ("web", "api", "docs")]
    before = memory(pair)

    def rehearse(route):
        for _ in range(4):
            haproxy.rehearse_switch(route, SPLITS)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(rehearse, routes))
    assert memory(pair) == before


def test_an_application_named_like_a_rehearsal_keeps_its_route(pair):
    address = pair.haproxy.address
    namesake = pair.fleet.route.model_copy(update={"key": "web-rehearsal"})
    haproxy.set_traffic(namesake, AWAY)
    try:
        haproxy.rehearse_switch(pair.fleet.route, SPLITS)
        assert haproxy.read_traffic(namesake) == AWAY
    finally:
        ask(address, f"del map {address.route_map} web-rehearsal")
        haproxy.remove_rehearsal(pair.fleet.route)


def test_removing_a_rehearsal_is_right_whatever_was_left(pair):
    before, address = memory(pair), pair.haproxy.address
    file = Path(address.route_map)

    def in_map(value: str) -> None:
        ask(address, f"add map {address.route_map} web.rehearsal {value}")

    def in_file() -> None:
        file.write_text(file.read_text() + "web.rehearsal green:blue:0\n")

    left = {
        "nothing": [],
        "an entry": [lambda: in_map("green:blue:0"), in_file],
        "an entry that is not in the file yet": [lambda: in_map("green:blue:0")],
        "a file that is behind": [in_file],
        "two entries": [lambda: in_map("blue:green:0"), lambda: in_map("green:blue:0")],
    }
    for what, causes in left.items():
        for cause in causes:
            cause()
        for _ in range(2):
            take_back(RemoveRehearsal(), pair.fleet, deployment="web-1", settings=Settings())
            assert memory(pair) == before, what


def test_a_rehearsal_survives_a_restart_of_the_balancer_and_is_removed_all_the_same(pair):
    before, address = memory(pair), pair.haproxy.address
    Path(address.route_map).write_text("web blue:green:0\nweb.rehearsal green:blue:0\n")
    pair.haproxy.restart()
    assert "web.rehearsal" in memory(pair)["map"]
    take_back(RemoveRehearsal(), pair.fleet, deployment="web-1", settings=Settings())
    assert memory(pair) == before


def test_where_there_is_no_balancer_there_is_nothing_to_remove(pair):
    bare = pair.fleet.model_copy(update={"route": None})
    take_back(RemoveRehearsal(), bare, deployment="web-1", settings=Settings())


def test_killed_at_any_moment_the_way_back_leaves_nothing(pair):
    before, left = memory(pair), Counter()
    action = f'{{"splits": [{", ".join(split.model_dump_json() for split in SPLITS)}]}}'
    argv = (sys.executable, "-c", REHEARSER, pair.fleet.model_dump_json(), action)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rehearser:
        assert rehearser.stdin
        assert rehearser.stdout
        rehearser.stdout.readline()
        for moment in range(30):
            rehearser.stdin.write("again\n")
            rehearser.stdin.flush()
            child = int(rehearser.stdout.readline())
            time.sleep(moment * 0.004)
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(child, signal.SIGKILL)
            rehearser.stdout.readline()
            now = memory(pair)
            left["in the map"] += "web.rehearsal" in now["map"]
            left["in the file"] += "web.rehearsal" in now["file"]
            take_back(RemoveRehearsal(), pair.fleet, deployment="web-1", settings=Settings())
            assert memory(pair) == before, f"killed after {moment * 4} ms"
        rehearser.stdin.close()
    assert left["in the map"], "no kill came in the middle: nothing was tested"
    assert left["in the file"]
