"""Stands between us and Prefect's API: passes on, remembers, and fails where it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.prefect_api import PrefectApi
from tasks.settings import Settings


@dataclass
class Fault:
    """Answers with `status` the next `times` requests that are `method` on a path that begins with `path`.

    `lost`: the request is passed on all the same, and only its answer is lost. `meanwhile` is called then.
    """

    path: str = ""
    method: str = ""
    status: int = 503
    times: float = float("inf")
    lost: bool = False
    meanwhile: Callable[[], object] = lambda: None

    def hits(self, method: str, path: str) -> bool:
        return self.times > 0 and path.startswith(self.path) and method.startswith(self.method)


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Gateway:
    """`url` is the API's address; without an `upstream` every request is answered 200 and `{}`."""

    upstream: str = ""
    url: str = ""
    clock_ahead_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def answer(self, request: Seen) -> tuple[int, bytes]:
        self.seen.append(request)
        fault = next((f for f in self.faults if f.hits(request.method, request.path)), None)
        if fault:
            fault.times -= 1
            if fault.lost:
                self._pass_on(request)
            fault.meanwhile()
            return fault.status, b'{"detail": "told to fail"}'
        return self._pass_on(request)

    def _pass_on(self, request: Seen) -> tuple[int, bytes]:
        if not self.upstream:
            return 200, b"{}"
        answer = httpx.request(
            request.method,
            f"{self.upstream}/{request.path}",
            content=request.body,
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        return answer.status_code, answer.content

    def bodies(self, path: str) -> list[Any]:
        """Return what was sent to `path`, parsed."""
        return [json.loads(request.body) for request in self.seen if request.path == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: Nagle would add 40 ms to each answer
    gateway: Gateway

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.removeprefix("/api/")
        status, content = self.gateway.answer(Seen(self.command, path, dict(self.headers), body))
        now = datetime.now(UTC) + timedelta(seconds=self.gateway.clock_ahead_s)
        self.send_response_only(status)
        self.send_header("Date", format_datetime(now, usegmt=True))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815 - the names http.server asks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def gateway(upstream: str = "") -> Iterator[Gateway]:
    """Open a gateway, to `upstream` or to nowhere; this process is its client meanwhile."""
    opened = Gateway(upstream)
    handler = type("Handler", (_Handler,), {"gateway": opened})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    opened.url = f"http://127.0.0.1:{server.server_port}/api"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with temporary_settings({PREFECT_API_URL: opened.url}):
            yield opened
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def api_through(upstream: str, settings: Settings) -> Iterator[tuple[PrefectApi, Gateway]]:
    """Yield our client of the API behind a gateway, and the gateway."""
    with gateway(upstream) as between, PrefectApi(settings) as api:
        yield api, between
