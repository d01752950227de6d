"""A way to Prefect's API on which answers get lost: it has done what it was asked, and nobody hears."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self

import httpx

from lab.ports import LOCALHOST, free_port, give_back

Loss = Literal["503", "cut"]


class BusyWay:
    """Passes requests on; the first answers to the creation of a run are replaced, or never arrive.

    Args:
        api_url: where requests go; empty: each is answered by a page, as by what is no API.
        losses: what becomes of these answers, in order; later ones arrive.
    """

    def __init__(self, api_url: str, losses: list[Loss]) -> None:
        self._api_url, self._losses = api_url, list(losses)
        self._port = free_port()
        self._server = ThreadingHTTPServer((LOCALHOST, self._port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        give_back(self._port)

    @property
    def api_url(self) -> str:
        """Where a caller asks."""
        return f"http://{LOCALHOST}:{self._port}/api"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        way = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on()

            def do_POST(self) -> None:
                self._pass_on()

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kept = {
                    name: self.headers[name]
                    for name in ("Authorization", "Content-Type")
                    if self.headers[name]
                }
                path = self.path.removeprefix("/api")
                if not way._api_url:
                    self._answer(200, b"<!doctype html>")
                    return
                answer = httpx.request(
                    self.command, f"{way._api_url}{path}", content=body, headers=kept, timeout=30
                )
                loss = way._losses.pop(0) if path.endswith("create_flow_run") and way._losses else None
                if loss == "cut":
                    self.close_connection = True
                    return
                self._answer(503 if loss else answer.status_code, answer.content)

            def _answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
