"""Two sides behind a balancer, for tests of balancers: answers that cost nothing, and a slow one."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lab.nginx import LabAnswers
from lab.ports import free_port, give_back
from rules.traffic import Traffic

BLUE, GREEN = "blue", "green"
#: side -> server -> port.
Backends = dict[str, dict[str, int]]


@contextmanager
def two_sides(directory: Path) -> Iterator[Backends]:
    """Have two blue servers and a green one."""
    backends = {BLUE: {"b1": free_port(), "b2": free_port()}, GREEN: {"g1": free_port()}}
    ports = [port for servers in backends.values() for port in servers.values()]
    with LabAnswers(directory, ports):
        yield backends
    for port in ports:
        give_back(port)


def split(basis_points: int, live: str = BLUE) -> Traffic:
    """Return a split of the two sides."""
    candidate = GREEN if live == BLUE else BLUE
    return Traffic(live=live, candidate=candidate, canary_basis_points=basis_points)


def get(url: str, path: str = "/") -> tuple[int, str | None]:
    """Return the status of one request on a connection of its own, and the side that answered."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["X-Backend"]
    finally:
        connection.close()


@contextmanager
def asking(url: str, pause_s: float = 0.005) -> Iterator[Counter[tuple[int | str, str | None]]]:
    """Have two users who ask all the time; yields a count of (status, side), or of what broke."""
    seen: Counter[tuple[int | str, str | None]] = Counter()
    over: list[bool] = []

    def ask() -> None:
        while not over:
            try:
                seen[get(url)] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[repr(error), None] += 1
            time.sleep(pause_s)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask) for _ in range(2)]
        try:
            yield seen
        finally:
            over.append(True)
    for future in running:
        future.result()


def in_a_thread(pool: ThreadPoolExecutor, do: Callable[[], object], *, wait_s: float = 0.3) -> object:
    """Start it and return its future when it has had time to begin."""
    future = pool.submit(do)
    time.sleep(wait_s)
    return future
