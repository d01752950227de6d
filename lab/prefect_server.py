"""A Prefect server on PostgreSQL, and a worker: as in production, in a directory of their own."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from lab import processes
from lab.calls import client
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.postgres import Postgres, installed_version

DATABASE = "prefect"
#: A migrated database to which nobody ever connects, so that it can be copied at any time.
TEMPLATE = "prefect_template"
DRIVER = "postgresql+asyncpg"

_PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
_MIGRATION_TIMEOUT_S = 180
_START_TIMEOUT_S = 90
#: Nothing is told to anybody outside, and no profile or setting of who starts the lab is used.
_PRIVATE = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}


class PrefectServer:
    """A Prefect server on 127.0.0.1, its home and its log in `directory`.

    Args:
        directory: PREFECT_HOME of the server and its clients, and the log.
        database_url: SQLAlchemy's URL of its database, with an asynchronous driver.
        migrated: the database is of this version already, which saves a second at each start.
    """

    def __init__(self, directory: Path, database_url: str, *, migrated: bool = False) -> None:
        self.directory, self.database_url, self.migrated = directory, database_url, migrated
        self.log = directory / "prefect-server.log"
        self.port = free_port()
        self.process: processes.Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        give_back(self.port)

    @property
    def ui_url(self) -> str:
        """Where people look at it."""
        return f"http://{LOCALHOST}:{self.port}"

    @property
    def api_url(self) -> str:
        """Where programs ask it: `PREFECT_API_URL`."""
        return f"{self.ui_url}/api"

    def environment(self) -> dict[str, str]:
        """Return the variables that make a program a client of this server."""
        return {**_PRIVATE, "PREFECT_HOME": str(self.directory / "home"), "PREFECT_API_URL": self.api_url}

    def start(self) -> None:
        """Start the server on this object's port and wait until it answers; also after `kill`.

        Raises:
            LabError: it does not come up; carries the end of its log.
        """
        settings = {
            **self.environment(),
            "PREFECT_API_DATABASE_CONNECTION_URL": self.database_url,
            "PREFECT_API_DATABASE_MIGRATE_ON_START": str(not self.migrated).lower(),
            "PREFECT_UI_API_URL": self.api_url,
        }
        self.process = processes.start(
            "prefect-server",
            (*_PREFECT, "server", "start", "--host", LOCALHOST, "--port", str(self.port)),
            log=self.log,
            env=processes.clean_environment(self.directory, settings),
        )
        processes.wait_until(
            self._is_ready, timeout_s=_START_TIMEOUT_S, what="Prefect's server", process=self.process
        )

    def stop(self) -> None:
        """Stop the server; what it knows stays in its database."""
        if self.process:
            self.process.stop()
            self.process = None

    def kill(self) -> None:
        """End the server as a power cut would."""
        if self.process:
            self.process.kill()
            self.process = None

    def _is_ready(self) -> bool:
        try:
            return client().get(f"{self.api_url}/ready", timeout=2.0).is_success
        except httpx.HTTPError:
            return False


def separate_server(directory: Path, postgres: Postgres, database: str) -> PrefectServer:
    """Return a server, not started, with a new database of that name: for what nobody could share.

    Args:
        directory: see `PrefectServer`.
        postgres: one that has the migrated `TEMPLATE`.
        database: its name; there is none like it.
    """
    postgres.create_database(database, template=TEMPLATE)
    return PrefectServer(directory, postgres.url(database, driver=DRIVER), migrated=True)


class Worker(Part):
    """A Prefect worker that runs flows as processes of this machine.

    Args:
        directory: its log.
        environment: variables of the worker and of the flow runs that it starts.
        pool: the work pool it serves; made when there is none.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], pool: str) -> None:
        self.directory, self.environment, self.pool = directory, dict(environment), pool
        self.log = directory / "prefect-worker.log"
        self.process: processes.Process | None = None

    def start(self) -> None:
        """Start the worker and wait until the server knows it.

        Raises:
            LabError: it does not come up; carries the end of its log.
        """
        settings = {
            **self.environment,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # what the automation on silent runs listens to
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        self.process = processes.start(
            "prefect-worker",
            (*_PREFECT, "worker", "start", "--pool", self.pool, "--type", "process", "--name", self._name),
            log=self.log,
            env=processes.clean_environment(self.directory, settings),
        )
        processes.wait_until(
            self._is_online, timeout_s=_START_TIMEOUT_S, what="Prefect's worker", process=self.process
        )

    def stop(self) -> None:
        """Stop the worker; its flow runs end with it, as in production."""
        if self.process:
            self.process.stop(timeout_s=20)
            self.process = None
        processes.end_marked(self.directory)  # a flow run leads a session of its own

    def kill(self) -> None:
        """End the worker as a power cut would; flow runs that it has started go on."""
        if self.process:
            self.process.kill()
            self.process = None

    @property
    def _name(self) -> str:
        return f"lab-{self.pool}"

    def _is_online(self) -> bool:
        url = f"{self.environment['PREFECT_API_URL']}/work_pools/{self.pool}/workers/filter"
        try:
            answer = client().post(url, json={}, timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.is_success and any(worker["name"] == self._name for worker in answer.json())


def migrated_cluster(cache: Path) -> Path:
    """Return a stopped PostgreSQL cluster whose databases `DATABASE` and `TEMPLATE` are ready to be served.

    Migrating an empty database takes longer than all the rest of a start, so it is done once and kept in
    `cache`, also when several processes ask at once.

    Raises:
        LabError: PostgreSQL does not start, or the migration fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"prefect-{version('prefect')}-postgres-{installed_version()}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with _scratch(cache / "new") as directory, Postgres(directory) as postgres:
                postgres.create_database(TEMPLATE)
                _migrate(directory, postgres.url(TEMPLATE, driver=DRIVER))
                postgres.create_database(DATABASE, template=TEMPLATE)
                postgres.stop()
                postgres.cluster.rename(kept)
    return kept


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _migrate(directory: Path, database_url: str) -> None:
    settings = {
        **_PRIVATE,
        "PREFECT_HOME": str(directory / "home"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
    }
    done = subprocess.run(
        (*_PREFECT, "server", "database", "upgrade", "--yes"),
        check=False,
        capture_output=True,
        text=True,
        timeout=_MIGRATION_TIMEOUT_S,
        env=processes.clean_environment(directory, settings),
    )
    if done.returncode != 0:
        raise processes.LabError(f"Prefect's migration exited {done.returncode}: {done.stderr[-3000:]}")
