"""A model's server for tests of tasks: its releases staged, its link and state brought back between tests."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from lab.model import make_model
from lab.processes import wait_until
from lab.sglang import FIRST_RELEASE, LabSglang
from rules.change import ModelRelease
from rules.fleet import Instance
from tasks.application import switch_release
from tasks.model_stage import stage_model
from tasks.settings import Settings
from tasks.sglang import ModelServer

SETTINGS = Settings()
INSTANCE, DEPLOYMENT, NEXT = "blue-1", "chat-1", "m2"
#: How the simulated servers of these tests work; half a second for a long answer.
PACE = json.dumps({"load_s": 0.0, "warm_up_s": 0.02, "stop_s": 0.0, "tokens_per_s": 200})


def one_server(directory: Path, **arguments: Any) -> LabSglang:
    """Return one simulated server behind a balancer, not yet started."""
    return LabSglang(directory, blue=1, green=0, environment={"LAB_SGLANG": PACE}, **arguments)


def brought_back(lab: LabSglang) -> None:
    """Have the first release pointed to and served, in the name that it had, and no other release staged."""
    root = lab.root(INSTANCE)
    (root / "current").unlink(missing_ok=True)
    (root / "current").symlink_to(f"releases/{FIRST_RELEASE}")
    seen = lab.observed()["instances"][INSTANCE]
    service = lab.fleet.instance(INSTANCE).service
    if (seen["running"], seen["tensors"]) != (FIRST_RELEASE, getattr(lab, "first_tensors", seen["tensors"])):
        for argv in (service.stop, service.start):
            subprocess.run(argv, check=True)
        lab.wait_until_ready(INSTANCE)
        seen = lab.observed()["instances"][INSTANCE]
    lab.first_tensors = seen["tensors"]
    for release in seen["staged"]:
        if release != FIRST_RELEASE:
            subprocess.run(["rm", "-rf", root / "releases" / release], check=True)


def a_model(
    lab: LabSglang, name: str, break_it: Callable[[Path], object] = lambda _: None, **how: Any
) -> Path:
    """Make a model under a name of its own, and break it."""
    path = lab.model_directory(name)
    if not path.exists():
        make_model(path, **{"seed": 2, **how})
        break_it(path)
    return path


def switched(lab: LabSglang, instance: Instance, change: ModelRelease) -> None:
    """Stage a release and point the link to it; the server is not told."""
    stage_model(instance, change, serving=lab.serving, deployment=DEPLOYMENT, settings=SETTINGS)
    switch_release(instance, change.release)


def pid(lab: LabSglang) -> int:
    """Return the server's process."""
    return int(json.loads((lab.root(INSTANCE) / "run" / "pid.json").read_text())["pid"])


def wait_until_busy(lab: LabSglang, *, running: int = 1, waiting: int = 0) -> None:
    """Return once the server has so many requests at least."""

    def is_busy() -> bool:
        now = _load(lab)
        return now[0] >= running and now[1] >= waiting

    wait_until(is_busy, timeout_s=10, what="requests")


def wait_until_idle(lab: LabSglang) -> None:
    """Return once the server has no request."""
    wait_until(lambda: _load(lab) == (0, 0), timeout_s=20, what="no request")


def _load(lab: LabSglang) -> tuple[int, int]:
    (rank,) = httpx.get(f"{lab.server_url(INSTANCE)}/v1/loads").json()["loads"]
    return rank["num_running_reqs"], rank["num_waiting_reqs"]


@contextmanager
def a_request(lab: LabSglang, *, max_new_tokens: int, count: int = 1) -> Iterator[list[httpx.Response]]:
    """Have prompts on their way to the server; what they got is there when the block has ended."""
    got: list[httpx.Response] = []
    body = {
        "text": "Hello",
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True},
    }

    def ask() -> None:
        with suppress(httpx.HTTPError):  # what is missing is seen
            got.append(httpx.post(f"{lab.server_url(INSTANCE)}/generate", json=body, timeout=30))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        for thread in threads:
            thread.join()


@contextmanager
def answering(answers: dict[str, tuple[int, str]]) -> Iterator[ModelServer]:
    """Serve fixed answers, path -> status and body: what only a server of another kind or version says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, '{"detail": "Not Found"}'))
            self.rfile.read(int(self.headers.get("content-length") or 0))
            if status:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())
            self.close_connection = True

        do_POST = do_GET  # noqa: N815 - what the library calls

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ModelServer(url=f"http://127.0.0.1:{server.server_port}", timeout_s=2)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
