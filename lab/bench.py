"""What deploying costs by itself: `make bench`. Ratios within one run; machines differ, and are noisy.

1. A journaled step (fence, intent, fsync, mirror, done) against the bare call that it protects.
2. A whole deployment that finds nothing to do: lock, plan, checklist, record.
3. A rolling update of 10, 100 and 1,000 instances whose effects do nothing: the cost for each instance.
4. A database with users: the locks of a migration, an index built beside the old one against one that was
   dropped first, and recall by `ef_search`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.application import FIRST_RELEASE, LabApplication
from lab.bench_database import database_figures
from lab.postgres import Postgres
from lab.prefect_server import DATABASE, DRIVER, PrefectServer, migrated_cluster
from rules.change import ApplicationRelease, ReleaseArchive
from rules.entries import Opened
from rules.fleet import CommandService, Fleet, FleetState, Instance, InstanceState, Probe, ReleaseDirectory
from rules.plan import Plan, Step, SwitchRelease
from rules.rollout import plan_rollout
from rules.strategy import InPlace, Rolling
from rules.undo import RestoreRelease

_STEPS = 200
_CALL_S = 0.01
_SIZES = (10, 100, 1000)
_CACHE = Path(".lab/cache").absolute()


@contextmanager
def _server(directory: Path) -> Iterator[None]:
    """Run as a client of a Prefect server of its own."""
    with ExitStack() as parts:
        postgres = Postgres(directory / "postgres")
        postgres.start(template=migrated_cluster(_CACHE))
        parts.callback(postgres.stop)
        url = postgres.url(DATABASE, driver=DRIVER)
        server = parts.enter_context(PrefectServer(directory / "prefect", url, migrated=True))
        os.environ.update(server.environment())
        os.environ["SOVEREIGN_JOURNAL_DIR"] = str(directory / "journal")
        os.environ["SOVEREIGN_BASELINE_S"] = "0.1"
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        yield


def simulated_fleet(size: int) -> tuple[Fleet, FleetState]:
    """Return a fleet of instances that do not exist, and the state it would be in."""
    members = tuple(
        Instance(
            name=f"node-{number}",
            layout=ReleaseDirectory(root=f"/nowhere/{number}"),
            service=CommandService(start=("true",), stop=("true",), status=("true",)),
            probe=Probe(url="http://127.0.0.1/"),
        )
        for number in range(size)
    )
    one = InstanceState(release="1.0", running="1.0", releases=("1.0",))
    fleet = Fleet(application=f"bench-{size}", instances=members)
    return fleet, FleetState(instances={member.name: one for member in members})


def _change(application: str) -> ApplicationRelease:
    archive = ReleaseArchive(path="/nowhere/2.0.tar.gz", sha256="0" * 64)
    return ApplicationRelease(application=application, release="2.0", artefact=archive)


def walk_with(
    fleet: Fleet, plan: Plan, effect: Callable[[], None], *, limit: int | None = None
) -> list[float]:
    """Perform a plan's steps with an effect of our own, journaled for real; return each step's seconds."""
    from tasks.deployment import open_deployment  # noqa: PLC0415 - Prefect reads its settings at import
    from tasks.prefect_api import PrefectApi  # noqa: PLC0415
    from tasks.settings import Settings  # noqa: PLC0415

    settings = Settings()
    name = f"{fleet.application}-{time.monotonic_ns()}"
    opened = Opened(
        deployment=name,
        target=name,
        flow_run_id="00000000-0000-0000-0000-000000000000",
        host=settings.host,
        fleet=fleet,
        summary="benchmark",
    )
    taken = []
    with PrefectApi(settings) as api, open_deployment(opened, api, settings) as deployment:
        deployment.planned(plan)
        for step in plan.steps[:limit]:
            began = time.perf_counter()
            deployment.perform(step, effect)
            taken.append(time.perf_counter() - began)
        deployment.promote("benchmark")
    return taken


def journaled_step() -> tuple[float, float]:
    """Return the median seconds of a bare call of some 10 ms, and of the same call as a journaled step."""
    fleet, before = simulated_fleet(1)
    undo = RestoreRelease(instance="node-0", release="1.0", running="1.0")
    action = SwitchRelease(instance="node-0")
    steps = tuple(Step(number=n, title="step", action=action, undo=undo) for n in range(_STEPS))
    plan = Plan(change=_change(fleet.application), strategy=InPlace(), before=before, steps=steps)
    bare = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        time.sleep(_CALL_S)
        bare.append(time.perf_counter() - began)
    journaled = walk_with(fleet, plan, lambda: time.sleep(_CALL_S))
    return statistics.median(bare), statistics.median(journaled)


def nothing_to_do(directory: Path) -> float:
    """Return the median seconds of a deployment of the release that is in place already."""
    deploy = importlib.import_module("flows.deploy").deploy
    save_blocks = importlib.import_module("lab.register").save_blocks
    with LabApplication(directory / "web") as application:
        save_blocks(application.fleet)
        change = application.change(FIRST_RELEASE)
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            deploy(change, Rolling())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def rolling(size: int) -> tuple[float, float]:
    """Return the seconds for one instance: to plan it, and to walk its steps."""
    fleet, before = simulated_fleet(size)
    began = time.perf_counter()
    plan = plan_rollout(_change(fleet.application), Rolling(observe_s=0), fleet, before)
    planned = time.perf_counter() - began
    walked = sum(walk_with(fleet, plan, lambda: None))
    return planned / size, walked / size


def main() -> int:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench", description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=_SIZES, help="instances of the rolling update"
    )
    sizes = parser.parse_args().sizes
    console = Console()
    table = Table("what", "figure", "ratio", header_style="bold")
    with tempfile.TemporaryDirectory(prefix="lab-bench-") as name, _server(Path(name)):
        bare, journaled = journaled_step()
        cost = f"{(journaled - bare) * 1000:.1f} ms of our own"
        table.add_row(f"bare call, median of {_STEPS}", f"{bare * 1000:.1f} ms", "1")
        table.add_row("the same, journaled", f"{journaled * 1000:.1f} ms: {cost}", f"{journaled / bare:.2f}")
        table.add_row("deployment with nothing to do", f"{nothing_to_do(Path(name)):.2f} s", "")
        first = None
        for size in sizes:
            planned, walked = rolling(size)
            first = first or walked
            figure = f"{walked * 1000:.1f} ms an instance, planned in {planned * 1e6:.0f} µs an instance"
            table.add_row(f"rolling, {size:,} instances", figure, f"{walked / first:.2f}")
        for one in database_figures(_CACHE):
            table.add_row(one.what, one.figure, one.ratio)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
