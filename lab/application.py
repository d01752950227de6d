"""An application as users run it: instances on two sides, behind a balancer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import httpx

from lab import processes
from lab.haproxy import LabHaproxy
from lab.identity import started_ticks
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.releases import GOOD, Behaviour, build_release, install_release
from rules.change import ApplicationRelease
from rules.fleet import CommandService, Fleet, Instance, Probe, ReleaseDirectory
from rules.traffic import AdminState

FIRST_RELEASE = "1.0.0"
SIDES = ("blue", "green")

_START_TIMEOUT_S = 20.0
_COMMAND_TIMEOUT_S = 30.0
#: Bits of HAProxy's srv_admin_state: all the ways into maintenance, and into drain.
_MAINTENANCE, _DRAIN = 0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x08 | 0x10


class ObservedInstance(TypedDict):
    """What one instance has and runs: its link's target, staged directories, and who answers /health."""

    link: str | None
    staged: list[str]
    running: str | None


class Observed(TypedDict):
    """The whole observable state: the instances, the balancer's memory, and its map file."""

    instances: dict[str, ObservedInstance]
    route_map: dict[str, str]
    route_map_file: str
    servers: dict[str, AdminState]


class LabApplication(Part):
    """An application in `directory`, with its first release installed and running on every instance.

    Args:
        directory: the instances' directories, release archives and the balancer's files; a short path.
        blue: how many instances the live side has.
        green: how many the idle side has.
        name: its name, also in the balancer's map.
        behaviour: how the first release behaves.
    """

    #: What a fleet of another kind has instead.
    _service_module, _command_timeout_s = "lab.service", _COMMAND_TIMEOUT_S
    _balancer: type[LabHaproxy] = LabHaproxy

    def __init__(
        self,
        directory: Path,
        *,
        blue: int = 2,
        green: int = 2,
        name: str = "web",
        behaviour: Behaviour = GOOD,
    ) -> None:
        self.directory, self.name, self.behaviour = directory.absolute(), name, behaviour
        sizes = dict(zip(SIDES, (blue, green), strict=True))
        self.backends = {
            side: {f"{side}-{number}": free_port() for number in range(1, size + 1)}
            for side, size in sizes.items()
        }
        # one client: making it costs more than asking
        self._http = httpx.Client(timeout=2.0, limits=httpx.Limits(max_keepalive_connections=0))
        self.ports = {name: port for servers in self.backends.values() for name, port in servers.items()}
        self.haproxy = self._balancer(
            self.directory / "haproxy",
            self.backends,
            route_key=name,
            live=SIDES[0],
            candidate=SIDES[1],
            env=processes.clean_environment(self.directory, {}),
        )

    @property
    def url(self) -> str:
        """Where users reach it: the balancer."""
        return f"http://{LOCALHOST}:{self.haproxy.port}/"

    @property
    def fleet(self) -> Fleet:
        """How deployments reach it."""
        instances = [
            self._instance(side, name) for side, servers in self.backends.items() for name in servers
        ]
        return Fleet(application=self.name, instances=tuple(instances), route=self.haproxy.route)

    @property
    def start_timeout_s(self) -> float:
        """How long an instance may take until it is ready, in seconds."""
        return _START_TIMEOUT_S

    def root(self, instance: str) -> Path:
        """Return an instance's directory."""
        return self.directory / instance

    def start(self) -> None:
        """Install the first release, start every instance and the balancer, and wait until users are served.

        Raises:
            LabError: it does not come up.
        """
        archive = build_release(self.directory / "archives", FIRST_RELEASE, self.behaviour)
        try:
            for name in self.ports:
                install_release(archive, self.root(name), FIRST_RELEASE)
            self._command_all("start", self.ports)
            for name in self.ports:
                processes.wait_until(
                    lambda name=name: self._running(name) is not None,  # type: ignore[misc]
                    timeout_s=_START_TIMEOUT_S,
                    what=f"{name} to answer",
                )
            self.haproxy.start()
            processes.wait_until(self._serves, timeout_s=_START_TIMEOUT_S, what=f"{self.name} behind HAProxy")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the balancer and every instance; the directory stays."""
        self.haproxy.stop()
        self._command_all("stop", self._started())
        for port in (*self.ports.values(), self.haproxy.port, self.haproxy.metrics_port):
            give_back(port)

    def _started(self) -> Iterable[str]:
        """Return the instances that there may be something to stop of."""
        return self.ports

    def kill(self, instance: str) -> None:
        """Kill an instance's process, as a power cut would."""
        pid = json.loads((self.root(instance) / "run" / "pid.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        processes.wait_until(lambda: started_ticks(pid) is None, timeout_s=5, what=f"{instance} to be gone")

    def change(self, release: str, behaviour: Behaviour = GOOD) -> ApplicationRelease:
        """Build a release and return the change that deploys it."""
        archive = build_release(self.directory / "archives", release, behaviour)
        return ApplicationRelease(application=self.name, release=release, artefact=archive)

    def observed(self) -> Observed:
        """Return all that can be seen of it, read without any of the code that deploys it."""
        address = self.haproxy.address
        entries = (line.split(maxsplit=2) for line in self._ask_haproxy(f"show map {address.route_map}"))
        return {
            "instances": {name: self._observed_instance(name) for name in self.ports},
            "route_map": {key: value for _, key, value in entries},
            "route_map_file": Path(address.route_map).read_text(),
            "servers": self._observed_servers(),
        }

    def _instance(self, side: str, name: str) -> Instance:
        return Instance(
            name=name,
            layout=ReleaseDirectory(root=str(self.root(name))),
            service=CommandService(
                start=self._command("start", name),
                stop=self._command("stop", name),
                status=self._command("status", name),
            ),
            probe=self._probe(name),
            backend=side,
            server=name,
            start_timeout_s=self.start_timeout_s,
        )

    def _probe(self, name: str) -> Probe:
        return Probe(url=self._health_url(name))

    def _command(self, command: str, name: str) -> tuple[str, ...]:
        where = ("--root", str(self.root(name)), "--port", str(self.ports[name]))
        return (sys.executable, "-m", self._service_module, command, *where)

    def _health_url(self, instance: str) -> str:
        return f"http://{LOCALHOST}:{self.ports[instance]}/health"

    def _command_all(self, command: str, names: Iterable[str]) -> None:
        """Run one service command for several instances, all at once."""
        running = [
            subprocess.Popen(self._command(command, name), stderr=subprocess.PIPE, text=True)
            for name in names
        ]
        for process in running:
            _, said = process.communicate(timeout=self._command_timeout_s)
            if process.returncode != 0:
                raise processes.LabError(
                    f"{self._service_module} {command} exited {process.returncode}: {said}"
                )

    def _serves(self) -> bool:
        try:
            return self._http.get(f"{self.url}health").is_success
        except httpx.HTTPError:
            return False

    def _running(self, instance: str) -> str | None:
        try:
            answer = self._http.get(self._health_url(instance))
        except httpx.HTTPError:
            return None
        return str(answer.json()["version"]) if answer.is_success else None

    def _observed_instance(self, name: str) -> ObservedInstance:
        root = self.root(name)
        link = root / "current"
        return {
            "link": os.readlink(link) if link.is_symlink() else None,  # noqa: PTH115 - the raw target
            "staged": sorted(entry.name for entry in (root / "releases").iterdir()),
            "running": self._running(name),
        }

    def _observed_servers(self) -> dict[str, AdminState]:
        version, columns, *rows = self._ask_haproxy("show servers state")
        if version != "1":
            raise processes.LabError(f"HAProxy writes its server state in format {version}, not 1")
        names = columns.removeprefix("#").split()
        states = (dict(zip(names, row.split(), strict=False)) for row in rows)
        return {row["srv_name"]: _admin_state(int(row["srv_admin_state"])) for row in states}

    def _ask_haproxy(self, command: str) -> list[str]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(self.haproxy.address.socket)
            connection.sendall(f"{command}\n".encode())
            with connection.makefile() as answer:
                return [line for line in answer.read().splitlines() if line.strip()]


def _admin_state(bits: int) -> AdminState:
    if bits & _MAINTENANCE:
        return "maint"
    return "drain" if bits & _DRAIN else "ready"
