"""A Ray cluster as users run it: a head without work of its own, and worker nodes with a release each."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

import httpx

from lab.identity import MARK, started_ticks
from lab.part import Part
from lab.processes import LabError, Process, end_marked, marked, start, wait_until
from lab.ray_hosts import Hosts, LoopbackHosts, hosts
from lab.ray_install import ray_program, ray_python
from lab.ray_node import NodeSettings, kill_node
from lab.ray_releases import CANARY, RayBehaviour, build_ray_release
from lab.releases import install_release
from rules.change import ReleaseArchive
from rules.fleet import CommandService, Fleet, Instance, ReleaseDirectory
from rules.ray_cluster import RayCluster, RayNodeProbe

FIRST_RELEASE = "r1"
HEAD = "head"

_GCS_PORT, _DASHBOARD_PORT, _CLIENT_PORT = 6379, 8265, 10_001
_START_TIMEOUT_S = 120.0
_COMMAND_TIMEOUT_S = 150.0
_END_TIMEOUT_S = 5.0
_OBJECT_STORE_BYTES = 78_643_200  # the least that Ray takes


class ObservedNode(TypedDict):
    """What one node's host has, and the labels of the node that is alive there; None: none is."""

    link: str | None
    staged: list[str]
    labels: dict[str, str] | None
    service: bool


#: All that Ray's programs inherit: what a node is started with is written down, and holds no secret.
_INHERITED = ("LANG", "LD_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH", "TMPDIR", "TZ")
#: Environment of every Ray process. The memory monitor would end tasks because of what else runs here.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "PYTHONDONTWRITEBYTECODE": "1",  # a staged release stays as it was staged
}


class LabRay(Part):
    """A cluster in `directory`, its workers alive in their first release.

    Args:
        directory: hosts' files, nodes' directories and release archives.
        workers: how many nodes run it at first: `node-1`, `node-2`…
        spares: how many more are declared, with a host each and nothing on it, for scaling up.
        cpus: of each node, as Ray counts them.
        name: of the cluster.
        drain_s: how long a node that is told to stop drains itself.
        apart: whether hosts have namespaces of their own; None: where this machine allows it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 2,
        spares: int = 0,
        cpus: int = 2,
        name: str = "ray",
        drain_s: float = 5.0,
        apart: bool | None = None,
    ) -> None:
        self.directory, self.name, self.cpus, self.drain_s = directory.absolute(), name, cpus, drain_s
        self.nodes = tuple(f"node-{number}" for number in range(1, workers + 1))
        self.spares = tuple(f"node-{number}" for number in range(workers + 1, workers + spares + 1))
        make = LoopbackHosts if apart is False else hosts
        self.hosts: Hosts = make(self.directory / "hosts", (HEAD, *self.nodes, *self.spares))
        self.gcs = self.dashboard = ""
        self._head: Process | None = None
        self._http = httpx.Client(
            timeout=5.0, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    @property
    def cluster(self) -> RayCluster:
        """How deployments ask it."""
        return RayCluster(
            name=self.name,
            dashboard=self.dashboard,
            gcs=self.gcs,
            program=str(self._program()),
            canary=CANARY,
        )

    @property
    def fleet(self) -> Fleet:
        """How deployments reach its nodes, the spares too."""
        instances = tuple(self._instance(name) for name in (*self.nodes, *self.spares))
        return Fleet(application=self.name, instances=instances, ray=self.cluster)

    def root(self, node: str) -> Path:
        """Return a node's directory."""
        return self.directory / node

    def start(self) -> None:
        """Install Ray where it is not yet, start the head and the workers, and wait until all are alive.

        Raises:
            LabError: it does not come up; nothing of it runs then.
        """
        ray_program()
        try:
            self.hosts.start()
            self._start_head_patiently()
            archive = self.archive(FIRST_RELEASE)
            for name in (*self.nodes, *self.spares):
                self._prepare(name)
            for name in self.nodes:
                self.stage(name, archive, FIRST_RELEASE)
            self.command_all("start", *self.nodes)
            wait_until(self._all_are_alive, timeout_s=_START_TIMEOUT_S, what="the workers to be alive")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything at once, tasks and actors too; the directory stays."""
        if not self.hosts.are_apart:
            for name in (*self.nodes, *self.spares):
                if self._settings_file(name).exists():
                    self.kill(name)
        self._end_head()
        if self.hosts.are_apart:
            self.hosts.stop()
        # those that entered hosts from outside end a moment after them
        with contextlib.suppress(LabError):
            wait_until(lambda: not any(marked(self.directory)), timeout_s=_END_TIMEOUT_S, what="the end")
        end_marked(self.directory)
        self.hosts.stop()

    def archive(self, release: str, behaviour: RayBehaviour = "good") -> ReleaseArchive:
        """Pack a release as `<directory>/archives/<release>.tar`; the same input gives the same bytes."""
        return build_ray_release(self.directory / "archives", release, behaviour)

    def stage(self, node: str, archive: ReleaseArchive, release: str) -> None:
        """Unpack a release for a node and link to it: how a node looks before any deployment.

        Raises:
            FileExistsError: the node has this release already.
        """
        (self.root(node) / "current").unlink(missing_ok=True)
        install_release(archive, self.root(node), release)
        labels = f'host: "{node}"\nrelease: "{release}"\n'
        (self.root(node) / "releases" / release / "labels.yaml").write_text(labels)

    def command(self, node: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run one of a node's service commands, and return how it ended."""
        argv = self._service(node, command)
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S)

    def command_all(self, command: str, *nodes: str) -> None:
        """Run one service command for several nodes, all at once.

        Raises:
            LabError: one failed; carries what it said.
        """
        running = [
            subprocess.Popen(self._service(node, command), stderr=subprocess.PIPE, text=True)
            for node in nodes
        ]
        said = [process.communicate(timeout=_COMMAND_TIMEOUT_S)[1] for process in running]
        if any(process.returncode for process in running):
            raise LabError(f"lab.ray_node {command} failed: {' '.join(said)}")

    def kill(self, node: str) -> None:
        """Kill all that runs on a node's host, at once and without asking, as a crash would."""
        kill_node(self.root(node))

    def environment(self) -> dict[str, str]:
        """Return the environment of all of Ray's programs in this cluster."""
        programs = f"{ray_program().parent}:{os.environ.get('PATH', os.defpath)}"
        return {
            **{name: value for name in _INHERITED if (value := os.environ.get(name))},
            **_ENVIRONMENT,
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(self.drain_s),
            "PATH": programs,
            "HOME": str(self.directory),
            MARK: str(self.directory),
        }

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers at a path, such as `/api/v0/nodes?detail=1`.

        Raises:
            httpx.HTTPError: it does not answer, or with an error.
        """
        answer = self._http.get(f"{self.dashboard}{path}")
        answer.raise_for_status()
        return answer.json()

    def alive(self) -> dict[str, dict[str, Any]]:
        """Return the worker nodes that are alive, by their label `host`, as the dashboard lists them."""
        listed = self.ask("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return {
            node["labels"]["host"]: node
            for node in listed
            if node["state"] == "ALIVE" and not node["is_head_node"] and "host" in node["labels"]
        }

    def snapshot(self) -> dict[str, ObservedNode]:
        """Return all that can be seen of the nodes, read without any of the code that deploys them."""
        alive = self.alive()
        return {name: self._observed(name, alive.get(name)) for name in (*self.nodes, *self.spares)}

    def _observed(self, name: str, node: dict[str, Any] | None) -> ObservedNode:
        root = self.root(name)
        link, releases = root / "current", root / "releases"
        return {
            "link": os.readlink(link) if link.is_symlink() else None,  # noqa: PTH115 - the raw target
            "staged": sorted(entry.name for entry in releases.iterdir()) if releases.is_dir() else [],
            "labels": {k: v for k, v in node["labels"].items() if "/" not in k} if node else None,
            "service": self.command(name, "status").returncode == 0,
        }

    def _start_head_patiently(self) -> None:
        try:
            self._start_head()
        except LabError as error:
            if "timed out during startup" not in str(error):
                raise
            self._end_head()
            self._start_head()  # the machine was too busy for the 30 s that Ray gives it

    def _end_head(self) -> None:
        if self._head:
            self._head.kill()
            self._head = None

    def _start_head(self) -> None:
        gcs, dashboard = self.hosts.port(_GCS_PORT), self.hosts.port(_DASHBOARD_PORT)
        address = self.hosts.address(HEAD)
        client = f"--ray-client-server-port={self.hosts.port(_CLIENT_PORT)}"
        options = (client, "--head", f"--port={gcs}", "--num-cpus=0", "--dashboard-host", address)
        ray = (str(ray_python()), "-m", "ray.scripts.scripts", "start", "--block", *options)
        self._head = start(
            "the Ray head",
            (*self.hosts.enter(HEAD), *ray, f"--dashboard-port={dashboard}", *self._options(HEAD)),
            log=self.directory / "head.log",
            env=self.environment(),
            cwd=Path("/"),
        )
        self.gcs = f"{address}:{gcs}"
        self.dashboard = f"http://{self.hosts.reach(HEAD, dashboard)}"
        self._write_program()
        wait_until(self._head_is_alive, timeout_s=_START_TIMEOUT_S, what="the Ray head", process=self._head)

    def _options(self, host: str) -> tuple[str, ...]:
        options = (
            f"--node-ip-address={self.hosts.address(host)}",
            f"--temp-dir={self.hosts.temporary(host)}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            "--include-log-monitor=false",  # the cluster's logs are read as files
        )
        if self.hosts.are_apart:
            return options
        # two nodes on one machine would take the same ports
        usual = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        ports = (*usual, "runtime-env-agent-port")
        any_port = ("--min-worker-port=0", "--max-worker-port=0")
        return (*options, *any_port, *(f"--{name}={self.hosts.port(0)}" for name in ports))

    def _prepare(self, name: str) -> None:
        """Write what a node's commands must know."""
        enter = self.hosts.enter(name)
        init = int(enter[2]) if enter else 0
        settings: NodeSettings = {
            "name": name,
            "enter": list(enter),
            "init": init,
            "init_ticks": (started_ticks(init) or 0) if init else 0,
            "gcs": self.gcs,
            "python": str(ray_python()),
            "options": [f"--num-cpus={self.cpus}", *self._options(name)],
            "environment": self.environment(),
            "drain_s": self.drain_s,
        }
        self.root(name).mkdir(parents=True, exist_ok=True)
        self._settings_file(name).write_text(json.dumps(settings, indent=2))

    def _settings_file(self, name: str) -> Path:
        return self.root(name) / "node.json"

    def _program(self) -> Path:
        return self.directory / "bin" / "ray"

    def _write_program(self) -> None:
        """Write the `ray` that deployments run: it runs on the head's host, where the cluster is reached."""
        settings = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
        command = shlex.join((*self.hosts.enter(HEAD), "env", *settings, str(ray_program())))
        program = self._program()
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)

    def _service(self, node: str, command: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "lab.ray_node", command, "--root", str(self.root(node)))

    def _instance(self, name: str) -> Instance:
        return Instance(
            name=name,
            layout=ReleaseDirectory(root=str(self.root(name))),
            service=CommandService(
                start=self._service(name, "start"),
                stop=self._service(name, "stop"),
                status=self._service(name, "status"),
            ),
            probe=RayNodeProbe(dashboard=self.dashboard, node=name),
            start_timeout_s=_START_TIMEOUT_S,
        )

    def _head_is_alive(self) -> bool:
        # the dashboard answers before the head is listed, and no node can join before that
        try:
            nodes = self.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        except (httpx.HTTPError, ValueError):
            return False
        return any(node["is_head_node"] and node["state"] == "ALIVE" for node in nodes)

    def _all_are_alive(self) -> bool:
        try:
            return set(self.alive()) >= set(self.nodes)
        except httpx.HTTPError:
            return False
