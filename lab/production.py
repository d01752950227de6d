"""A whole small production: PostgreSQL, Prefect's server and worker, applications behind HAProxy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx

from lab import processes
from lab.application import LabApplication
from lab.calls import client
from lab.content import LabContent
from lab.database import LabDatabase
from lab.identity import started_ticks
from lab.nixos import LabNixos
from lab.part import Part
from lab.ports import give_back
from lab.postgres import Postgres
from lab.prefect_server import DATABASE, DRIVER, PrefectServer, Worker, migrated_cluster
from lab.processes import clean_environment
from lab.register import DescribedContent, register_all
from lab.sglang import LabSglang
from rules.environment import Environment

WORK_POOL = "sovereign"  # the one that prefect.yaml names

_STATE = "state.json"


@dataclasses.dataclass(frozen=True)
class State:
    """What another process needs to know of a production that runs: to show it, use it and end it.

    `addresses` are for people, `environment` makes a program its client, `processes` are in the order of
    their start, `scratch` are directories outside its own.
    """

    addresses: dict[str, str]
    environment: dict[str, str]
    processes: tuple[processes.Process, ...]
    scratch: tuple[str, ...] = ()


class Production(Part):
    """A production of real parts in `directory`; it leaves nothing running, and no temporary directory.

    Args:
        directory: where all of it lives, kept at the end; None: a temporary one, removed at the end.
        applications: their names; each has two blue and two green instances and a balancer.
        worker: whether flow runs that are scheduled are also run.
        environments: that deployments may name, beside `development`.
        databases: that deployments may change; started and stopped with it.
        models: whose servers deployments may update; started and stopped with it.
        hosts: NixOS hosts that deployments may update; started and stopped with it.
        contents: of IPFS, the same.
        cache: where a migrated database is kept, which makes later starts several seconds faster.
    """

    def __init__(  # noqa: PLR0913 - what there may be, all with a default
        self,
        directory: Path | None = None,
        *,
        applications: Sequence[str] = ("web",),
        worker: bool = True,
        environments: Sequence[Environment] = (),
        databases: Sequence[LabDatabase] = (),
        models: Sequence[LabSglang] = (),
        hosts: Sequence[LabNixos] = (),
        contents: Sequence[LabContent] = (),
        cache: Path | None = None,
    ) -> None:
        self._environments = environments
        self._databases, self._models = tuple(databases), tuple(models)
        self._hosts, self._contents = tuple(hosts), tuple(contents)
        self._temporary = directory is None
        self.directory = (directory or Path(tempfile.mkdtemp(prefix="lab-"))).absolute()
        self.cache = cache
        self.journal = self.directory / "journal"
        self.postgres = Postgres(self.directory / "postgres")
        self.prefect = PrefectServer(
            self.directory / "prefect",
            self.postgres.url(DATABASE, driver=DRIVER),
            migrated=cache is not None,
        )
        self.worker = Worker(self.directory / "worker", self.environment(), WORK_POOL) if worker else None
        self.applications = {name: LabApplication(self.directory / name, name=name) for name in applications}

    def environment(self) -> dict[str, str]:
        """Return the variables that make a program a client of this production."""
        return {**self.prefect.environment(), "SOVEREIGN_JOURNAL_DIR": str(self.journal)}

    def start(self) -> None:
        """Start every part, the ones that others need first.

        Raises:
            LabError: a part does not come up; those that did are stopped again.
        """
        try:
            self.journal.mkdir(parents=True, exist_ok=True)
            self.postgres.start(template=migrated_cluster(self.cache) if self.cache else None)
            if not self.cache:
                self.postgres.create_database(DATABASE)
            self.prefect.start()
            for part in self._parts:
                part.start()
            self.register()
            if self.worker:
                self.worker.start()
        except BaseException:
            self.stop()
            raise

    def register(self) -> None:
        """Make known to Prefect what deployments need: work pool, deployments, blocks, automation."""
        pools = f"{self.prefect.api_url}/work_pools/"
        answer = client().post(pools, json={"name": WORK_POOL, "type": "process"}, timeout=10.0)
        if answer.status_code != httpx.codes.CONFLICT:  # there already, after a restart
            answer.raise_for_status()
        fleets = [part.fleet for part in (*self.applications.values(), *self._models)]
        fleets += [part.fleet for part in self._hosts]
        databases = [one.database for one in self._databases]
        databases += [one.database for one in self._contents]
        client_environment = clean_environment(self.directory, self.environment())
        register_all(
            fleets,
            client_environment,
            environments=self._environments,
            databases=databases,
            contents=[
                DescribedContent(content=one.content, database=one.database.name) for one in self._contents
            ],
        )

    def stop(self) -> None:
        """Stop every part in the opposite order, and whatever flow runs have left."""
        with contextlib.ExitStack() as parts:
            if self._temporary:
                parts.callback(shutil.rmtree, self.directory, ignore_errors=True)
            parts.callback(processes.end_marked, self.directory)
            for port in (self.postgres.port, self.prefect.port):
                parts.callback(give_back, port)
            parts.callback(self.postgres.stop)
            parts.callback(self.prefect.stop)
            for part in self._parts:
                parts.callback(part.stop)
            if self.worker:
                parts.callback(self.worker.stop)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (
            *self.applications.values(),
            *self._databases,
            *self._models,
            *self._hosts,
            *self._contents,
        )

    @property
    def state(self) -> State:
        """What there is to know of it while it runs."""
        parts = (self.postgres.process, self.prefect.process, self.worker.process if self.worker else None)
        fleets = (*self.applications.values(), *self._models)
        balancers = [_balancer(part) for part in fleets]
        sockets = [Path(part.haproxy.address.socket).parent for part in fleets]
        return State(
            addresses={
                "Prefect UI": self.prefect.ui_url,
                "Prefect API": self.prefect.api_url,
                **{f"{part.name} (balancer)": part.url for part in fleets},
                "PostgreSQL": self.postgres.url("postgres"),
                "journal": str(self.journal),
            },
            environment=self.environment(),
            processes=(*(part for part in parts if part), *balancers),
            scratch=tuple(str(path) for path in sockets if not path.is_relative_to(self.directory)),
        )


def save_state(directory: Path, state: State) -> None:
    """Write down what runs in `directory`, for another process."""
    (directory / _STATE).write_text(json.dumps(dataclasses.asdict(state), indent=2))


def load_state(directory: Path) -> State | None:
    """Return what runs in `directory`, or was running; None when nothing was started there."""
    try:
        kept = json.loads((directory / _STATE).read_text())
    except FileNotFoundError:
        return None
    return State(**{**kept, "processes": tuple(processes.Process(**part) for part in kept["processes"])})


def end(directory: Path) -> None:
    """End a production that another process has started in `directory`, and remove its files."""
    if state := load_state(directory):
        for process in reversed(state.processes):
            process.stop()
        for path in state.scratch:
            shutil.rmtree(path, ignore_errors=True)
    processes.end_marked(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _balancer(application: LabApplication) -> processes.Process:
    pid = application.haproxy.pid
    log = application.haproxy.directory / "haproxy.log"
    return processes.Process(
        f"haproxy-{application.name}", pid, started_ticks(pid, even_zombie=True) or 0, str(log)
    )
