"""A web service that is told things, and remembers them: where the lab's notifications go."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back


class LabWebhook(Part):
    """Takes POSTed JSON on 127.0.0.1 in this process.

    Args:
        status: what it answers.
        hangs: it takes the connection and the request, and does not answer until it is stopped.
    """

    def __init__(self, *, status: int = 200, hangs: bool = False) -> None:
        self.status, self.hangs = status, hangs
        self.port = free_port()
        self.received: list[dict[str, Any]] = []
        self.requests = 0
        self._over = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def apprise_url(self, path: str = "hook") -> str:
        """Return the URL by which Apprise sends JSON to it."""
        return f"json://{LOCALHOST}:{self.port}/{path}"

    def start(self) -> None:
        """Begin to listen."""
        self._server = _Server((LOCALHOST, self.port), self._handler())
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="webhook", daemon=True
        ).start()

    def stop(self) -> None:
        """End it, and all requests that it has not answered."""
        self._over.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        give_back(self.port)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            def do_POST(self) -> None:
                """Remember what was sent."""
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hook.requests += 1
                if hook.hangs:
                    hook._over.wait()
                    return
                if hook.status < 300:  # noqa: PLR2004 - accepted
                    hook.received.append(json.loads(body))
                self.send_response(hook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away: it gave up waiting, as it should."""
