"""A stand-in for Grafana, which cannot be had from a package index: the part of its HTTP API that we use.

It follows Grafana's published API (developer documentation, HTTP API: annotations, dashboard, other): paths,
bodies, status codes and messages. It draws nothing.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back

Answer = tuple[int, Any]

_UID = re.compile(r"[A-Za-z0-9_-]{1,40}")


class LabGrafana(Part):
    """Grafana's API on 127.0.0.1, in this process.

    Args:
        token: what callers must send as a bearer token; None: anybody may do anything.
        role: the role of the token's service account; a Viewer may not write.
    """

    def __init__(self, *, token: str | None = "lab-token", role: str = "Editor") -> None:  # noqa: S107 - the lab's
        self.token, self.role = token, role
        self.port = free_port()
        self.annotations: list[dict[str, Any]] = []
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self._fails: list[int] = []
        self._hangs = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{LOCALHOST}:{self.port}"

    def start(self) -> None:
        """Begin to listen."""
        self._server = _Server((LOCALHOST, self.port), _handler(self))
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="grafana", daemon=True
        ).start()

    def stop(self) -> None:
        """End it, and all requests that it has not answered."""
        self._over.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        give_back(self.port)

    def fail(self, *statuses: int) -> None:
        """Answer the next requests with these statuses, one each, as a Grafana behind a tired proxy does."""
        self._fails = list(statuses)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Take requests and answer none of them meanwhile."""
        self._hangs.set()
        try:
            yield
        finally:
            self._hangs.clear()

    def answer(self, method: str, target: str, *, authorization: str | None, body: bytes) -> Answer | None:
        """Return status and JSON for a request; None: no answer ever comes."""
        self.requests += 1
        while self._hangs.is_set():
            if self._over.wait(0.02):
                return None
        if self._fails:
            return self._fails.pop(0), {"message": "Bad gateway"}
        split = urlsplit(target)
        if (method, split.path) == ("GET", "/api/health"):
            return 200, {"commit": "lab", "database": "ok", "version": "12.0.0"}
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, {"message": "Invalid API key" if authorization else "Unauthorized"}
        if method == "POST" and self.role == "Viewer":
            return 403, {"message": "You'll need additional permissions to perform this action."}
        try:
            sent = json.loads(body or b"{}")
        except ValueError:
            return 400, {"message": "bad request data"}
        with self._lock:
            return self._route(method, split.path, query=parse_qs(split.query), sent=sent)

    def _route(self, method: str, path: str, *, query: dict[str, list[str]], sent: dict[str, Any]) -> Answer:
        match method, path.removeprefix("/api/").split("/"):
            case "POST", ["annotations"]:
                return self._annotate(sent)
            case "GET", ["annotations"]:
                return 200, self._found(query)
            case "GET", ["dashboards", "uid", uid]:
                if uid not in self.dashboards:
                    return 404, {"message": "Dashboard not found"}
                return 200, {"dashboard": self.dashboards[uid], "meta": {"slug": _slug(self.dashboards[uid])}}
            case "POST", ["dashboards", "db"]:
                return self._save(sent)
        return 404, {"message": "Not found"}

    def _annotate(self, sent: dict[str, Any]) -> Answer:
        if not sent.get("text"):
            return 400, {"message": "Failed to save annotation: text field should not be empty"}
        uid = sent.get("dashboardUID")
        if uid is not None and uid not in self.dashboards:
            return 404, {"message": "Dashboard not found"}
        at = sent.get("time") or round(time.time() * 1000)
        number = len(self.annotations) + 1
        kept = {
            "timeEnd": at,
            "tags": [],
            "dashboardUID": None,
            "panelId": 0,
            **sent,
            "time": at,
            "id": number,
        }
        self.annotations.append(kept)
        return 200, {"message": "Annotation added", "id": number}

    def _found(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return the annotations asked for: between two moments, with all the tags, of one dashboard."""
        begin, end = (
            int(query.get(name, [default])[0]) for name, default in (("from", "0"), ("to", str(1 << 53)))
        )
        tags, uids = set(query.get("tags", [])), query.get("dashboardUID", [])
        found = [
            one
            for one in self.annotations
            if one["timeEnd"] >= begin and one["time"] <= end
            if tags <= set(one["tags"]) and (not uids or one["dashboardUID"] in uids)
        ]
        newest_first = sorted(found, key=lambda one: -int(one["time"]))
        return newest_first[: int(query.get("limit", ["100"])[0])]

    def _save(self, sent: dict[str, Any]) -> Answer:
        model = sent.get("dashboard")
        if not isinstance(model, dict) or not model.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        uid = model.get("uid") or f"lab{len(self.dashboards)}"
        if not _UID.fullmatch(uid):
            return 400, {"message": "uid contains illegal characters"}
        known = self.dashboards.get(uid)
        if known and not sent.get("overwrite") and model.get("version") != known["version"]:
            words = "The dashboard has been changed by someone else"
            return 412, {"message": words, "status": "version-mismatch"}
        version = known["version"] + 1 if known else 1
        saved = {
            **model,
            "uid": uid,
            "version": version,
            "id": known["id"] if known else len(self.dashboards) + 1,
        }
        self.dashboards[uid] = saved
        slug = _slug(saved)
        facts = {"id": saved["id"], "uid": uid, "version": version, "slug": slug, "status": "success"}
        return 200, {**facts, "url": f"/d/{uid}/{slug}"}


def _slug(model: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(model["title"]).lower()).strip("-")


def _handler(grafana: LabGrafana) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One connection."""

        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: Nagle would add 40 ms to each answer

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = grafana.answer(
                self.command, self.path, authorization=self.headers.get("Authorization"), body=body
            )
            if answer is None:
                self.close_connection = True
                return
            text = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _respond  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that gave up waiting, as it should."""
