"""A head that answers as Ray 2.60 did, for what a real one cannot be brought to say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rules.fleet import CommandService, Fleet, Instance, ReleaseDirectory
from rules.ray_cluster import RayCluster, RayNodeProbe

Row = dict[str, Any]
#: What Ray itself reads at most, here.
LIMIT = 10_000


class FakeHead:
    """What the head knows, and how it answers; set its fields, then ask it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {"nodes": [], "actors": [], "tasks": []}
        self.extra: dict[str, Any] = {}  # put over what is said about a list
        self.raw: tuple[int, str] | None = None  # answered to everything
        self.token: str | None = None
        self.failures = 0  # of so many of the next requests
        self.dead_once: Path | None = None  # its nodes are gone once this file is there
        self.jobs_ran_on = ""  # a node's id
        self.asked: list[str] = []
        self.url = ""

    @property
    def cluster(self) -> RayCluster:
        return RayCluster(name="ray", dashboard=self.url)

    def probe(self, node: str) -> RayNodeProbe:
        return RayNodeProbe(dashboard=self.url, node=node)

    def answer(self, path: str, authorization: str | None) -> tuple[int, str]:
        self.asked.append(path)
        if self.failures:
            self.failures -= 1
            return 503, "busy"
        if self.raw:
            return self.raw
        if self.token and authorization != f"Bearer {self.token}":
            return 401, "Unauthorized: Missing authentication token"
        parts = urlsplit(path)
        if parts.path.startswith("/api/jobs/"):
            return 200, self._job(parts.path.removeprefix("/api/jobs/"))
        if self.dead_once and self.dead_once.exists():
            self.rows["nodes"] = []
        if parts.path == "/api/version":
            return 200, json.dumps({"version": "4", "ray_version": "2.60.0"})
        if parts.path == "/api/gcs_healthz":
            return 200, "success"
        return 200, json.dumps(self._listing(parts.path.removeprefix("/api/v0/"), parse_qs(parts.query)))

    def _job(self, job_id: str) -> str:
        """Every job has succeeded; none is listed."""
        job = {"status": "SUCCEEDED", "driver_node_id": self.jobs_ran_on, "message": "", "logs": "done"}
        return json.dumps(job if job_id else [])

    def _listing(self, kind: str, query: dict[str, list[str]]) -> Row:
        keys = query.get("filter_keys", [])
        filters = (
            list(zip(keys, query["filter_predicates"], query["filter_values"], strict=True)) if keys else []
        )
        known = self.rows[kind]
        # of tasks and nodes Ray counts what is left by those filters that its store understands
        by_store = [f for f in filters if f[0] == "state" and (f[1] == "=" or kind == "tasks")]
        read = [row for row in known if _passes(row, by_store)][:LIMIT]
        found = [row for row in read if _passes(row, filters)]
        listed = found[: int(query["limit"][0])]
        said = {
            "total": len(known),
            "num_after_truncation": len(known) if kind == "actors" else len(read),
            "num_filtered": len(found),
            "result": listed,
            "partial_failure_warning": "",
            "warnings": None,
        }
        return {"result": True, "msg": "", "data": {"result": {**said, **self.extra}}}


def _passes(row: Row, filters: list[tuple[str, str, str]]) -> bool:
    return all((str(row[key]) == value) == (predicate == "=") for key, predicate, value in filters)


@contextmanager
def fake_head() -> Iterator[FakeHead]:
    """A head that knows nothing yet, on a port of its own."""
    head = FakeHead()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = head.answer(self.path, self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_DELETE = do_GET  # noqa: N815 - as http.server calls them

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        head.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield head
        finally:
            server.shutdown()
            thread.join()


def node(node_id: str, host: str = "", release: str = "r1", *, started: int = 1, **fields: Any) -> Row:
    """A node as `/api/v0/nodes?detail=1` lists it."""
    labels = {"ray.io/node-id": node_id, **({"host": host, "release": release} if host else {})}
    known = {
        "node_id": node_id,
        "node_ip": "10.77.0.2",
        "is_head_node": False,
        "state": "ALIVE",
        "state_message": None,
        "node_name": "10.77.0.2",
        "resources_total": {"CPU": 2.0, **({host: 1.0} if host else {})},
        "labels": labels,
        "start_time_ms": started,
        "end_time_ms": 0,
    }
    return {**known, **fields}


def actor(actor_id: str, name: str = "", **fields: Any) -> Row:
    """An actor as `/api/v0/actors?detail=1` lists it."""
    known = {
        "actor_id": actor_id,
        "class_name": "Counter",
        "state": "ALIVE",
        "job_id": "01000000",
        "name": name,
        "node_id": "n1",
        "pid": 7,
        "ray_namespace": "lab",
        "death_cause": None,
        "num_restarts": "0",
        "num_restarts_due_to_lineage_reconstruction": "0",
        "num_restarts_due_to_node_preemption": "0",
    }
    return {**known, **fields}


def dead(actor_id: str, name: str, reason: str, words: str = "") -> Row:
    """An actor that died of `reason`."""
    cause = {"actor_died_error_context": {"reason": reason, "error_message": words}}
    return actor(actor_id, name, state="DEAD", death_cause=cause)


def task(task_id: str, name: str = "work", **fields: Any) -> Row:
    """A task as `/api/v0/tasks?detail=1` lists it."""
    known = {
        "task_id": task_id,
        "attempt_number": 0,
        "name": name,
        "state": "RUNNING",
        "job_id": "01000000",
        "actor_id": None,
        "type": "NORMAL_TASK",
        "func_or_class_name": "work",
        "node_id": "n1",
        "error_type": None,
    }
    return {**known, **fields}


def told(head: FakeHead, program: str = "true") -> Fleet:
    """The one node node-1 of a head that is none, where every command succeeds."""
    nothing = CommandService(start=("true",), stop=("true",), status=("true",))
    layout = ReleaseDirectory(root="/no/such/directory")
    instance = Instance(name="node-1", layout=layout, service=nothing, probe=head.probe("node-1"))
    cluster = head.cluster.model_copy(update={"program": program})
    return Fleet(application="ray", instances=(instance,), ray=cluster)
