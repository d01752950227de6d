"""Users: a constant rate of requests from a process of its own, each of them written down.

The rate does not fall when answers are slow, as it would with users who wait for each other: what is due is
sent, and its latency counts from when it was due.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO, TypedDict

import aiohttp

from lab import processes
from lab.part import Part

_TIMEOUT_S = 10.0
_MAX_OPEN = 200
_USERS = 500
_BAD = 400


class Row(TypedDict):
    """One request: when it was sent, who answered what, and how long after it was due.

    `status` is None when there was no whole answer; `failed` is that, or a status of 400 and more.
    """

    t: float
    side: str | None
    release: str | None
    status: int | None
    failed: bool
    latency_s: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What users saw."""

    requests: int
    failed: int
    by_side: dict[str | None, int]
    by_release: dict[str | None, int]
    p50_latency_s: float
    p95_latency_s: float
    max_latency_s: float


class Load(Part):
    """A stream of users to `url`, while the `with` block lasts and `max_duration_s` at most.

    Args:
        url: what they ask for.
        rate_per_s: how many requests are sent per second.
        directory: its rows and its log.
        known_users: share of requests that carry a user's cookie, so that the balancer keeps their side.
        max_duration_s: it ends by itself after this, should nobody end it.
    """

    _timeout_s = _TIMEOUT_S

    def __init__(
        self,
        url: str,
        rate_per_s: float,
        directory: Path,
        *,
        known_users: float = 0.5,
        max_duration_s: float = 600.0,
    ) -> None:
        self.url, self.rate_per_s, self.directory = url, rate_per_s, directory
        self.known_users, self.max_duration_s = known_users, max_duration_s
        self.output = directory / "load.jsonl"
        self.process: processes.Process | None = None

    def start(self) -> None:
        """Start the users, and wait until the first has an answer or none.

        Raises:
            LabError: nothing was sent; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        module, own = self._program()
        arguments = {
            "--url": self.url,
            "--rate": self.rate_per_s,
            "--max-duration": self.max_duration_s,
            "--output": self.output,
            **own,
        }
        flat = [str(part) for pair in arguments.items() for part in pair]
        self.process = processes.start(
            "load",
            (sys.executable, "-m", module, *flat),
            log=self.directory / "load.log",
            env=processes.clean_environment(self.directory, {}),
        )
        processes.wait_until(
            lambda: bool(self.rows()),
            timeout_s=self._timeout_s + 20,
            what="the first user",
            process=self.process,
        )

    def stop(self) -> None:
        """Send nothing more, and wait until every open request has ended."""
        if self.process:
            self.process.stop(timeout_s=self._timeout_s + 5)
            self.process = None

    def _program(self) -> tuple[str, dict[str, object]]:
        """Return the module that sends the requests, and its own arguments."""
        return "lab.load", {"--known-users": self.known_users}

    def rows(self) -> list[Row]:
        """Return all requests that have ended so far, in that order."""
        try:
            text = self.output.read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def summary(self) -> Summary:
        """Add up what users saw so far.

        Raises:
            LabError: nobody has had an answer yet.
        """
        rows = self.rows()
        if not rows:
            raise processes.LabError("no request has ended yet")
        latencies = sorted(row["latency_s"] for row in rows)
        return Summary(
            requests=len(rows),
            failed=sum(row["failed"] for row in rows),
            by_side=dict(collections.Counter(row["side"] for row in rows)),
            by_release=dict(collections.Counter(row["release"] for row in rows)),
            p50_latency_s=latencies[len(latencies) // 2],
            p95_latency_s=latencies[int(0.95 * len(latencies))],
            max_latency_s=latencies[-1],
        )


#: Sends one request, due at this moment of `time.monotonic`, and returns what became of it.
Send = Callable[[aiohttp.ClientSession, float], Awaitable[Row]]


async def send_all(
    send: Send, output: TextIO, *, rate_per_s: float, max_duration_s: float, timeout_s: float
) -> None:
    """Send requests at a constant rate until SIGTERM, whatever becomes of them, a row for each."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    slots = asyncio.Semaphore(_MAX_OPEN)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    # aiohttp has no public switch for it, and asks again in silence when the other side hangs up:
    # users of other programs would have seen that, so it must be counted
    session._retry_connection = False  # noqa: SLF001

    async def send_one(http: aiohttp.ClientSession, due: float) -> None:
        row = await send(http, due)
        output.write(json.dumps(row) + "\n")

    began = time.monotonic()
    async with session as http, asyncio.TaskGroup() as open_requests:
        for number in itertools.count():
            due = began + number / rate_per_s
            if due - began > max_duration_s or await _is_set_before(stopping, due):
                break
            await slots.acquire()
            sent = open_requests.create_task(send_one(http, due))
            sent.add_done_callback(lambda _: slots.release())


async def _is_set_before(event: asyncio.Event, due: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(0.0, due - time.monotonic()))
    return event.is_set()


def user(known_users: float) -> dict[str, str]:
    """Return the headers of some user: a share carries a cookie, by which the balancer keeps their side."""
    known = random.random() < known_users
    return {"Cookie": f"uid=user-{random.randrange(_USERS)}"} if known else {}


def row_of(
    *,
    sent_at: float,
    due: float,
    side: str | None,
    release: str | None,
    status: int | None,
    whole: bool = True,
) -> Row:
    """Return what became of one request; an answer that is not `whole` has failed."""
    return {
        "t": sent_at,
        "side": side,
        "release": release,
        "status": status,
        "failed": status is None or status >= _BAD or not whole,
        "latency_s": round(time.monotonic() - due, 6),
    }


async def _send(url: str, known_users: float, http: aiohttp.ClientSession, due: float) -> Row:
    sent_at, status, side, release = time.time(), None, None, None
    try:
        async with http.get(url, headers=user(known_users)) as answer:
            side, release = answer.headers.get("X-Backend"), answer.headers.get("X-Release")
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        pass  # nobody answered, or not to the end: the row says so
    return row_of(sent_at=sent_at, due=due, side=side, release=release, status=status)


def main() -> None:
    """Send what the arguments say, until SIGTERM or the longest duration."""
    arguments = argparse.ArgumentParser(prog="python -m lab.load", description="Send requests.")
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--rate", type=float, required=True, help="requests per second")
    arguments.add_argument("--known-users", type=float, default=0.5, help="share with a cookie")
    arguments.add_argument("--max-duration", type=float, default=600.0, help="seconds")
    arguments.add_argument("--output", type=Path, required=True, help="JSON lines are appended")
    given = arguments.parse_args()
    send = functools.partial(_send, given.url, given.known_users)
    pace = {"rate_per_s": given.rate, "max_duration_s": given.max_duration, "timeout_s": _TIMEOUT_S}
    with given.output.open("a", buffering=1) as output:
        asyncio.run(send_all(send, output, **pace))


if __name__ == "__main__":
    main()
