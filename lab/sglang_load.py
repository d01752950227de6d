"""Users of a model: prompts at a constant rate, from a process of its own, each of them written down.

As `lab.load` does, except that a request is a prompt, that the release is what the answer itself says, and
that an answer which was cut off counts as failed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

import aiohttp

from lab import processes
from lab.load import Load, Row

_TIMEOUT_S = 60.0
_MAX_OPEN = 200
_USERS = 500
_BAD = 400
_KNOWN_USERS = 0.5  # carry a cookie, by which the balancer keeps their side


class PromptLoad(Load):
    """A stream of prompts to `url`, the balancer's root, while the `with` block lasts."""

    def __init__(
        self,
        url: str,
        rate_per_s: float,
        directory: Path,
        *,
        prompt: str = "The capital of France is",
        max_new_tokens: int = 8,
        max_duration_s: float = 600.0,
    ) -> None:
        super().__init__(url, rate_per_s, directory, max_duration_s=max_duration_s)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    def start(self) -> None:
        """Start the users, and wait until the first has an answer or none.

        Raises:
            LabError: nothing was sent; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        arguments = {
            "--url": self.url,
            "--rate": self.rate_per_s,
            "--prompt": self.prompt,
            "--max-new-tokens": self.max_new_tokens,
            "--max-duration": self.max_duration_s,
            "--output": self.output,
        }
        flat = [str(part) for pair in arguments.items() for part in pair]
        self.process = processes.start(
            "prompts",
            (sys.executable, "-m", "lab.sglang_load", *flat),
            log=self.directory / "load.log",
            env=processes.clean_environment(self.directory, {}),
        )
        processes.wait_until(
            lambda: bool(self.rows()), timeout_s=_TIMEOUT_S, what="the first prompt", process=self.process
        )

    def stop(self) -> None:
        """Send nothing more, and wait until every open request has ended."""
        if self.process:
            self.process.stop(timeout_s=_TIMEOUT_S + 5)
            self.process = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    url: str
    rate_per_s: float
    body: dict[str, object]
    max_duration_s: float


async def _send_all(plan: _Plan, output: TextIO) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    slots = asyncio.Semaphore(_MAX_OPEN)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    # it asks again in silence when the other side hangs up, see lab.load: that must be counted
    session._retry_connection = False  # noqa: SLF001
    began = time.monotonic()
    async with session as http, asyncio.TaskGroup() as open_requests:
        for number in itertools.count():
            due = began + number / plan.rate_per_s
            if due - began > plan.max_duration_s or await _is_set_before(stopping, due):
                break
            await slots.acquire()
            sent = open_requests.create_task(_send(http, plan, due, output=output))
            sent.add_done_callback(lambda _: slots.release())


async def _is_set_before(event: asyncio.Event, due: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), max(0.0, due - time.monotonic()))
    except TimeoutError:
        return False
    return True


async def _send(http: aiohttp.ClientSession, plan: _Plan, due: float, *, output: TextIO) -> None:
    known = random.random() < _KNOWN_USERS
    headers = {"Cookie": f"uid=user-{random.randrange(_USERS)}"} if known else {}
    sent_at, status, side, release, whole = time.time(), None, None, None, False
    try:
        async with http.post(plan.url, json=plan.body, headers=headers) as answer:
            side = answer.headers.get("X-Backend")
            said = json.loads(await answer.read() or b"{}")
            status = answer.status
            meta = said.get("meta_info", {})
            release = meta.get("weight_version")
            whole = bool(said.get("text")) and meta.get("finish_reason", {}).get("type") in {"stop", "length"}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # nobody answered, or not to the end, or no JSON: the row says so
    row: Row = {
        "t": sent_at,
        "side": side,
        "release": release,
        "status": status,
        "failed": status is None or status >= _BAD or not whole,
        "latency_s": round(time.monotonic() - due, 6),
    }
    output.write(json.dumps(row) + "\n")


def main() -> None:
    """Send what the arguments say, until SIGTERM or the longest duration."""
    arguments = argparse.ArgumentParser(prog="python -m lab.sglang_load", description="Send prompts.")
    arguments.add_argument("--url", required=True, help="root of the servers or of their balancer")
    arguments.add_argument("--rate", type=float, required=True, help="prompts per second")
    arguments.add_argument("--prompt", default="The capital of France is")
    arguments.add_argument("--max-new-tokens", type=int, default=8)
    arguments.add_argument("--max-duration", type=float, default=600.0, help="seconds")
    arguments.add_argument("--output", type=Path, required=True, help="JSON lines are appended")
    given = arguments.parse_args()
    sampling = {"temperature": 0, "max_new_tokens": given.max_new_tokens}
    body: dict[str, object] = {"text": given.prompt, "sampling_params": sampling}
    plan = _Plan(f"{given.url.rstrip('/')}/generate", given.rate, body, given.max_duration)
    with given.output.open("a", buffering=1) as output:
        asyncio.run(_send_all(plan, output))


if __name__ == "__main__":
    main()
