"""A database as production has it: a durable cluster, run by a service of its own, on ZFS if wanted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg

from lab import processes
from lab.database_content import DATABASE, Content, build_cluster, filled_cluster
from lab.identity import MARK
from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back
from lab.postgres import hand_over, programs, unprivileged
from lab.zfs import LabZfs
from rules.backup import ZfsDataset
from rules.database import Database, DatabaseAddress, DatabaseServer
from rules.fleet import CommandService

_COMMAND_TIMEOUT_S = 90.0
_STOPPED = 3

#: In its configuration file, as in production: a copy of the cluster that is served elsewhere has them too.
_DURABLE = {
    "listen_addresses": LOCALHOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_wal_senders": "8",
    "max_connections": "100",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "maintenance_work_mem": "64MB",
    "max_parallel_maintenance_workers": "2",
}
# like systemctl: what is so already is no failure
_START = '"$1" start --silent --wait --pgdata="$2" --log="$3" || "$1" status --silent --pgdata="$2"'
_STOP = """\
"$1" stop --silent --wait --mode=fast --pgdata="$2" && exit
"$1" status --silent --pgdata="$2"
[ $? -eq 3 ]
"""


class LabDatabase(Part):
    """The database `sovereign`, filled, in a cluster of its own that a service runs.

    Args:
        directory: the log, and the cluster when there is no `zfs`. Its own: whatever runs of it is ended.
        zfs: a pool that runs; the cluster is then on a dataset of its own, named `name`.
        rows: memories.
        vectors: episodic memories.
        dimensions: of their vectors.
        months: partitions of the episodic memories.
        name: of the database's block.
        cache: where filled clusters are kept from one time to the next; None: filled anew.
        settings: of the server, laid over the durable ones.
    """

    def __init__(  # noqa: PLR0913 - a size each, all with a default
        self,
        directory: Path,
        *,
        zfs: LabZfs | None = None,
        rows: int = 2_000,
        vectors: int = 1_000,
        dimensions: int = 16,
        months: int = 3,
        name: str = "memories",
        cache: Path | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory, self.zfs, self.name = directory.absolute(), zfs, name
        self.content = Content(rows=rows, vectors=vectors, dimensions=dimensions, months=months)
        self.log = self.directory / "postgres.log"
        self.port = free_port()
        self.dataset: ZfsDataset | None = None
        self._cache, self._settings = cache, settings

    @property
    def cluster(self) -> Path:
        """Its data directory."""
        if self.zfs:
            return self.zfs.directory / self.zfs.pool / self.name / "cluster"
        return self.directory / "cluster"

    @property
    def service(self) -> CommandService:
        """How it is started, stopped and asked: `pg_ctl`, which refuses to be root."""
        # not what some deployer's environment says: the lab's mark, and no other cluster
        environment = ("env", "-u", "PGDATA", f"{MARK}={self.directory}", "LC_ALL=C.UTF-8")
        pg_ctl = str(programs() / "pg_ctl")
        words = (pg_ctl, str(self.cluster), str(self.log))
        prefix = (*environment, *unprivileged())
        return CommandService(
            start=(*prefix, "sh", "-c", _START, "start", *words),
            stop=(*prefix, "sh", "-c", _STOP, "stop", *words),
            status=(*prefix, pg_ctl, "status", "--silent", f"--pgdata={self.cluster}"),
        )

    @property
    def database(self) -> Database:
        """How deployments reach it, and what must hold in it."""
        return Database(
            name=self.name,
            address=DatabaseAddress(host=LOCALHOST, port=self.port, database=DATABASE),
            server=DatabaseServer(
                service=self.service,
                cluster=str(self.cluster),
                dataset=f"{self.zfs.pool}/{self.name}" if self.zfs else None,
                start_timeout_s=60.0,
            ),
            programs=str(programs()),
            tables=self.content.tables,
            queries=self.content.queries,
        )

    @property
    def url(self) -> str:
        """Where psycopg and SQLAlchemy find it."""
        return f"postgresql://postgres@{LOCALHOST}:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Fill the cluster if there is none yet, start its service, and wait until it answers.

        Raises:
            LabError: it does not come up, or there is no pgvector.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.cluster.exists():
            self._make_cluster()
        self.log.touch()
        hand_over(self.log, unprivileged())
        self.run(self.service.start)
        processes.wait_until(self._answers, timeout_s=60, what=f"the database {self.name}")

    def stop(self) -> None:
        """Stop the server and whatever else was started of it, whoever did; the cluster stays."""
        try:
            if self.cluster.exists():
                self.run(self.service.stop)
        finally:
            processes.end_marked(self.directory)
            give_back(self.port)

    def is_running(self) -> bool:
        """Return whether its service says that it runs."""
        return self.run(self.service.status, also=_STOPPED) == 0

    def query(self, query: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement in a connection of its own, outside any transaction; return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            answer = connection.execute(query, parameters, prepare=False)
            return answer.fetchall() if answer.description else []

    def run(self, argv: tuple[str, ...], *, also: int = 0) -> int:
        """Run a command of its service to its end, and return its exit code: 0, or `also`.

        Raises:
            LabError: it exited otherwise; carries what it said, and the end of the server's log.
        """
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            cwd="/",
        )
        if done.returncode not in (0, also):
            said = f"{done.stdout}{done.stderr}; its log ends:\n{processes.tail(self.log)}"
            raise processes.LabError(f"{self.name}: {argv} exited {done.returncode}: {said}")
        return done.returncode

    def _make_cluster(self) -> None:
        place = self.directory / "cluster.new"
        shutil.rmtree(place, ignore_errors=True)
        if self._cache:
            shutil.copytree(filled_cluster(self.content, cache=self._cache), place)
        else:
            build_cluster(self.content, place)
        settings = {**_DURABLE, "port": str(self.port), **self._settings}
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (place / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        if self.zfs:
            self._move_to_dataset(place)
        else:
            place.rename(self.cluster)
        hand_over(self.cluster, unprivileged())

    def _move_to_dataset(self, place: Path) -> None:
        assert self.zfs  # noqa: S101 - who calls has asked
        self.dataset = self.zfs.create(self.name, options=("-o", "recordsize=8K", "-o", "atime=off"))
        shutil.copytree(place, self.cluster)
        shutil.rmtree(place)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
