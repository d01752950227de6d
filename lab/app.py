"""The application that the lab deploys: a small HTTP service, packed into each release as `app.py`.

It uses nothing but the standard library, and runs without this project. `behaviour.json`, in the directory
it is started in, says which release it is and what is wrong with it: see `lab.releases.Behaviour`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import cast

_REASONS = {200: "OK", 411: "Length Required", 500: "Internal Server Error", 503: "Service Unavailable"}
_DIED = 70


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status and a JSON body; a connection that is not kept open is closed after it."""

    status: int
    body: dict[str, object]
    keep_open: bool = True

    def encode(self, release: str) -> tuple[bytes, bytes]:
        """Return the HTTP/1.1 answer's head and body."""
        body = json.dumps(self.body).encode() + b"\n"
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"X-Release: {release}\r\n"
            f"Connection: {'keep-alive' if self.keep_open else 'close'}\r\n\r\n"
        )
        return head.encode(), body


class Application:
    """One running instance of a release, with that release's faults."""

    def __init__(self, behaviour: dict[str, object], port: int) -> None:
        self.release = str(behaviour["release"])
        self.behaviour = behaviour
        self.port = port
        self.began = time.monotonic()
        self.stopping = asyncio.Event()
        # two instances never fail in step, and one that is started again fails as it did before
        self.chance = random.Random(f"{self.release} {port}")
        self.idle: set[asyncio.StreamWriter] = set()
        self.connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM, then finish the requests that are open."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_stop)
        if dies_after_s := self._number("dies_after_s"):
            loop.call_later(dies_after_s, os._exit, _DIED)
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        await self.stopping.wait()
        server.close()
        for writer in self.idle:
            writer.close()
        if self.connections:
            await asyncio.wait(self.connections)

    def _asked_to_stop(self) -> None:
        if self.behaviour["abrupt_stop"]:
            os._exit(0)
        self.stopping.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.connections.add(task)
        # a client that leaves, or sends no HTTP, is no trouble of ours
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            keep_open = True
            while keep_open and not self.stopping.is_set():
                self.idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self.idle.discard(writer)
                keep_open = await self._respond(head.decode("latin-1"), reader, writer)
        self.idle.discard(writer)
        self.connections.discard(task)
        writer.close()

    async def _respond(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, path, version = (*request.split(" "), "", "", "")[:3]
        if "transfer-encoding" in headers:
            answer = Answer(411, {"error": "send a Content-Length"}, keep_open=False)
        else:
            await reader.readexactly(int(headers.get("content-length", "0")))
            answer = await self._answer(path.partition("?")[0])
        wanted = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        keep_open = wanted and answer.keep_open and not self.stopping.is_set()
        answered, body = dataclasses.replace(answer, keep_open=keep_open).encode(self.release)
        writer.write(answered if method == "HEAD" else answered + body)
        await writer.drain()
        return keep_open

    async def _answer(self, path: str) -> Answer:
        age_s = time.monotonic() - self.began
        ready = age_s >= self._number("ready_after_s")
        if path == "/health":
            status = "healthy" if ready else "starting"
            version = f"{self.release}-wrong" if self.behaviour["wrong_version"] else self.release
            said = {"status": status, "version": version, "pid": os.getpid(), "uptime_s": round(age_s, 3)}
            return Answer(200 if ready else 503, said)
        if not ready:
            return Answer(503, {"error": "starting", "release": self.release})
        await asyncio.sleep(self._number("latency_s"))
        has_turned_bad = time.monotonic() - self.began >= self._number("errors_after_s")
        if has_turned_bad and self.chance.random() < self._number("error_ratio"):
            return Answer(500, {"error": "this release has a fault", "release": self.release})
        return Answer(200, {"release": self.release, "path": path})

    def _number(self, name: str) -> float:
        value = self.behaviour[name]
        return float(value) if isinstance(value, (int, float)) else 0.0


def main() -> None:
    """Serve on `--port` of 127.0.0.1 until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    port = arguments.parse_args().port
    behaviour = json.loads(Path("behaviour.json").read_text())
    if behaviour["fails_to_start"]:
        sys.exit(f"release {behaviour['release']} fails to start, as it was built to")
    asyncio.run(_run(behaviour, port))


async def _run(behaviour: dict[str, object], port: int) -> None:
    await Application(behaviour, port).run()


if __name__ == "__main__":
    main()
