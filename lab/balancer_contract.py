"""What every balancer has to do for a deployment, whichever it is: checks under users' load.

Answers must carry `X-Backend`, the side that gave them. Users are known by the cookie `uid`.
"""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import os
import re
import socket
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.contract import expect
from lab.load import Load, Summary
from rules.traffic import HttpBalancerAddress, Route, Traffic
from tasks import balancer

SWITCHES = 40
RATE_PER_S = 150.0
#: Requests that a share is measured by at first, and how far it may be off.
RAMP = {1_000: 3_000, 2_500: 5_000, 5_000: 6_000}
WITHIN = 0.015
#: A share that seems to be off is measured on, up to so many times: 4.6 standard deviations then.
_MEASURED_ON = 4
_USERS = 200
_AT_ONCE = 20
_TIMEOUT_S = 10.0
_KEEN_PAUSE_S = 0.005
_SIDE = re.compile(rb"\r\nX-Backend: ([^\r\n]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A balancer to be checked.

    Attributes:
        route: how it is driven.
        url: where users arrive, without a path.
        first: the side that is live; the balancer is brought back to it.
        other: the other one.
    """

    route: Route
    url: str
    first: str
    other: str

    def set(self, live: str, basis_points: int = 0) -> Traffic:
        """Send traffic so, and see that it reads back."""
        candidate = self.other if live == self.first else self.first
        wanted = Traffic(live=live, candidate=candidate, canary_basis_points=basis_points)
        balancer.set_traffic(self.route, wanted)
        now = balancer.read_traffic(self.route)
        expect(now == wanted, f"traffic reads back as {wanted!r}", now)
        return wanted


def real_balancer() -> Checked | None:
    """Return the balancer with an HTTP API that BALANCER_API names, if it does.

    BALANCER_API is its address, BALANCER_URL where users arrive, BALANCER_TOKEN_FILE a file with its token,
    BALANCER_SIDES its environments, `blue,green` unless given. The checks switch it: not for production.
    """
    api, url = os.environ.get("BALANCER_API"), os.environ.get("BALANCER_URL")
    if not (api and url):
        return None
    first, other = os.environ.get("BALANCER_SIDES", "blue,green").split(",")
    address = HttpBalancerAddress(
        url=api, sides=(first, other), token_file=os.environ.get("BALANCER_TOKEN_FILE") or None
    )
    route = Route(balancer=address, key="web")
    live = balancer.read_traffic(route).live
    return Checked(route=route, url=url, first=live, other=other if live == first else first)


@contextmanager
def users(checked: Checked) -> Iterator[Load]:
    """Have users while this lasts, half of them known."""
    with tempfile.TemporaryDirectory(prefix="balancer-users-") as directory:
        load = Load(f"{checked.url}/", RATE_PER_S, Path(directory), max_duration_s=300)
        with load:
            yield load


def lose_no_request(checked: Checked) -> Summary:
    """Switch forty times, and ramp a canary, under load; each new user is on the new side at once.

    Returns:
        What users saw.

    Raises:
        ContractError: a request was lost, or somebody was on the wrong side.
    """
    with users(checked) as load, keen_users(checked.url) as answers:
        sides = itertools.cycle((checked.other, checked.first))
        for live in itertools.islice(sides, SWITCHES):
            checked.set(live)
            seen = sides_of(checked.url, 5)
            expect(set(seen) == {live}, f"new requests go to {live} after the switch to it", seen)
        for share in RAMP:
            checked.set(checked.first, share)
            time.sleep(0.5)
        # the canary becomes the live side, and all go back: what a promotion and its way back do
        checked.set(checked.first, 10_000)
        checked.set(checked.other)
        checked.set(checked.first)
        load.stop()
        summary = load.summary()
    expect(summary.failed == 0, "no request is lost in forty switches and a ramp", summary)
    expect(set(answers) == {"200"}, "no request is lost of users who try nothing twice", answers)
    expect(summary.requests > RATE_PER_S, "there were users", summary)
    return summary


@contextmanager
def keen_users(url: str) -> Iterator[Counter[str]]:
    """Have two users who keep their connection as long as they are let, and try nothing twice.

    Other clients send a request again whose connection was closed under it, and hide that a balancer does so.
    """
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection(*_address(url), timeout=_TIMEOUT_S)
        while not over.wait(_KEEN_PAUSE_S):
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                seen[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[repr(error)] += 1
                connection.close()
        connection.close()

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        yield seen
    finally:
        over.set()
        for one in asking:
            one.join()


def split_exactly(checked: Checked) -> dict[int, float]:
    """Ramp a canary from 10 to 50 %; return the measured share of each step.

    Raises:
        ContractError: a share is off by more than 1.5 points.
    """
    shares = {}
    for basis_points, requests in RAMP.items():
        checked.set(checked.first, basis_points)
        seen = Counter[str]()
        for _ in range(_MEASURED_ON):
            seen.update(sides_of(checked.url, requests))
            shares[basis_points] = seen[checked.other] / seen.total()
            off = abs(shares[basis_points] - basis_points / 10_000)
            if off < WITHIN:
                break
        expect(off < WITHIN, f"{basis_points / 100:g} % within 1.5 points", shares)
    for basis_points, side in ((10_000, checked.other), (0, checked.first)):
        checked.set(checked.first, basis_points)
        seen = sides_of(checked.url, 300)
        expect(set(seen) == {side}, f"{basis_points / 100:g} % is exact", seen)
    return shares


def keep_users(checked: Checked) -> None:
    """See that a known user stays on the canary while it grows.

    Raises:
        ContractError: somebody changed sides.
    """
    names = [f"user-{number}" for number in range(_USERS)]
    canary: set[str] = set()
    for basis_points in RAMP:
        checked.set(checked.first, basis_points)
        first, again = (users_on(checked.url, names, checked.other) for _ in range(2))
        expect(first == again, "a user stays where he is", first ^ again)
        expect(canary < first, "the canary grows and nobody leaves it", canary - first)
        canary = first
    checked.set(checked.first)


def rehearse_unseen(checked: Checked) -> None:
    """See that a rehearsal changes nothing, and that repeating what is in force does not either.

    Raises:
        ContractError: something did.
    """
    before = checked.set(checked.first)
    there = Traffic(live=checked.other, candidate=checked.first)
    for _ in range(2):
        balancer.rehearse_switch(checked.route, (before, there, before))
        balancer.remove_rehearsal(checked.route)
        balancer.set_traffic(checked.route, before)
        balancer.keep(checked.route)
        now = balancer.read_traffic(checked.route)
        expect(now == before, "a rehearsal and a repetition change nothing", now)
        seen = sides_of(checked.url, 100)
        expect(set(seen) == {checked.first}, "nobody notices them", seen)


def sides_of(url: str, requests: int) -> Counter[str]:
    """Return which side answered how many of so many requests of unknown users, sent on few connections."""
    seen: Counter[str] = Counter()
    address = _address(url)
    request = f"GET / HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode()
    while (left := requests - seen.total()) > 0:
        with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
            for _ in range(-(-left // _AT_ONCE)):
                wanted = min(_AT_ONCE, requests - seen.total())
                connection.sendall(request * wanted)
                answered = _answers(connection, wanted)
                seen.update(answered)
                if len(answered) < wanted:
                    break  # it closes a connection after so many requests
    return seen


def users_on(url: str, names: Sequence[str], side: str) -> set[str]:
    """Return which of these users that side answers."""
    connection = http.client.HTTPConnection(*_address(url), timeout=_TIMEOUT_S)
    found = set()
    for name in names:
        connection.request("GET", "/", headers={"Cookie": f"uid={name}"})
        answer = connection.getresponse()
        answer.read()
        if answer.headers["X-Backend"] == side:
            found.add(name)
    connection.close()
    return found


def _answers(connection: socket.socket, wanted: int) -> list[str]:
    """Return the sides that answered; fewer than wanted where the connection was closed."""
    found: list[str] = []
    text = b""
    while len(found) < wanted:
        head, ended, rest = text.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if ended and len(rest) >= size:
            side = _SIDE.search(head)
            expect(
                side and head.split(maxsplit=2)[1] == b"200", "each answer is good and names its side", head
            )
            found.append(side[1].decode() if side else "")
            text = rest[size:]
            continue
        piece = connection.recv(1 << 16)
        if not piece:
            break
        text += piece
    return found


def _address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "", parts.port or 80
