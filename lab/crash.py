"""Kill a deployment at every journal entry, recover it, and compare the whole observable state.

`python -m lab.crash --component application --strategy canary --json` prints
`{"points": N, "recovered": N, "failures": [...]}`.

For each entry of the journal of a deployment that goes well, the flow's process is killed with SIGKILL at
each of these moments: before the entry is written, with half of it written, once it is on disk, once it is
mirrored, and, for an intent, in the middle of its effect. Then a process that knows nothing but the journal
recovers, is itself killed on its way for each point in the middle of an effect, and another one ends it. The
system must be as before, or, where the journal says promoted, as after.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lab.postgres import Postgres
from lab.prefect_server import DATABASE, DRIVER, PrefectServer, migrated_cluster
from rules.entries import Entry, Intent

Moment = Literal["before", "torn", "written", "mirrored", "amid"]
_MOMENTS: tuple[Moment, ...] = ("before", "torn", "written", "mirrored", "amid")
#: How long into an effect it is killed; commands and balancer calls take between 3 ms and some 100 ms.
_AMID_S = (0.004, 0.02, 0.06)
#: How long into its recovery a recovering process is killed: from its first look to well into a long undo.
_RECOVERING_S = (0.05, 0.3, 1.0, 2.0, 3.5)
_PATIENCE_S = 120.0
_STRATEGIES = {
    "application": ("canary", "in_place", "blue_green", "rolling"),
    "postgres_schema": ("down", "snapshot"),
    "pgvector_index": ("in_place",),
    "sglang_model": ("hot_swap", "in_place", "rolling", "blue_green"),
    "ray_node": ("in_place", "rolling", "scale"),
    "nixos_system": ("in_place", "rolling", "reboot"),
    "ipfs_content": ("in_place",),
    "release": ("failing", "promoted"),
}


class CrashLab(Protocol):
    """What a component brings: a system of its own, a deployment of it, and a look at all of it."""

    def start(self) -> None:
        """Bring the system up in its first state."""

    def stop(self) -> None:
        """Leave nothing behind."""

    def prepare(self) -> None:
        """Make the system known to Prefect; runs in a process of its own."""

    def deploy(self) -> None:
        """Run one deployment that goes well; runs in a process of its own, which is killed."""

    def snapshot(self) -> object:
        """Return the whole observable state, read without the code that deploys."""


@dataclass(frozen=True)
class Point:
    """Where a deployment is killed: at which entry, counted from 0, and when."""

    entry: int
    moment: Moment


@dataclass
class Report:
    """What came out of all points."""

    points: int = 0
    recovered: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)


def crash_everywhere(lab: CrashLab, directory: Path, *, every: int = 1, log: Callable[[str], None]) -> Report:
    """Kill and recover at each point in turn, `every` n-th of them, and report.

    The lab is started, and this process is a client of a Prefect server, but has not talked to it: it forks.
    """
    _in_child(lab.prepare)
    before = lab.snapshot()
    kinds = _rehearse(lab, directory / "rehearsal")
    after = lab.snapshot()
    _take_back(directory / "rehearsal")
    report = Report()
    if lab.snapshot() != before:
        report.failures.append({"point": "rehearsal", "left": lab.snapshot(), "wanted": before})
        return report
    for number, point in enumerate(_points(kinds)[::every]):
        _try_point(lab, point, directory / f"point-{number}", report, before=before, after=after)
        log(f"{point.entry:3d} {point.moment:9} {report.recovered}/{report.points}")
    return report


def _points(kinds: list[str]) -> list[Point]:
    """Return the points of a journal with entries of these kinds, each of which is another situation."""
    points = []
    for number, kind in enumerate(kinds):
        # others are mirrored together with the next intent; the promotion is mirrored before it is written
        is_mirrored_alone = kind in ("planned", "intent") or kinds[number + 1 : number + 2] == ["moved"]
        for moment in _MOMENTS:
            if moment == "mirrored" and not is_mirrored_alone:
                continue
            if moment == "amid" and kind != "intent":
                continue
            points.append(Point(number, moment))
    return points


def _rehearse(lab: CrashLab, journal: Path) -> list[str]:
    """Deploy once without a crash; return the kinds of the journal's entries, of all journals together."""
    _use_journal(journal)
    status = _in_child(lambda: _deploy(lab))
    if status != 0:
        raise RuntimeError(f"the deployment that should go well ended with {status}; see {journal}")
    # a release has a journal for each of its components: one process writes all, so their times are in order
    lines = [
        json.loads(line)
        for path in journal.glob("[!.]*/journal.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line["entry"] for line in sorted(lines, key=lambda line: str(line["at"]))]


def _try_point(
    lab: CrashLab, point: Point, journal: Path, report: Report, *, before: object, after: object
) -> None:
    _use_journal(journal)
    report.points += 1
    status = _in_child(lambda: _deploy_and_die(lab, point))
    if point.moment == "amid":
        delay_s = _RECOVERING_S[report.points % len(_RECOVERING_S)]
        _in_child(lambda: _recover_and_die(delay_s))
    _in_child(_recover)
    _in_child(_recover)  # a second one must find nothing to do
    states, of_parts = _states(journal)
    wanted = after if "promoted" in states else before
    left = lab.snapshot()
    ended = not {*states, *of_parts} & {"running", "rolling_back", "rollback_failed"}
    fine = left == wanted and ended and ("promoted" in states or "promoted" not in of_parts)
    if fine and status == -signal.SIGKILL:
        report.recovered += 1
    else:
        failure = {"entry": point.entry, "moment": point.moment, "status": status, "states": states}
        failure["of_parts"] = of_parts
        report.failures.append({**failure, "left": left, "wanted": wanted})
    if "promoted" in states:
        _take_back(journal)
    if lab.snapshot() != before:
        raise RuntimeError(f"after {point} the system cannot be brought back: {lab.snapshot()}")


def _deploy_and_die(lab: CrashLab, point: Point) -> None:
    with _armed(point):
        _deploy(lab)


def _deploy(lab: CrashLab) -> None:
    """Deploy without heartbeats: each synchronous flow waits a second for their thread to end."""
    from prefect.settings import (  # noqa: PLC0415 - only the child talks to Prefect
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        lab.deploy()


@contextmanager
def _armed(point: Point) -> Iterator[None]:
    """Have this process kill itself at `point`. Nothing else of the product is changed."""
    from tasks.journal import JournalFile, Mirror  # noqa: PLC0415 - only the child needs it

    append, flush = JournalFile.append, Mirror.flush
    seen = -1

    def killing_append(journal: JournalFile, entry: Entry) -> None:
        nonlocal seen
        seen += 1
        if seen == point.entry and point.moment == "before":
            _die()
        if seen == point.entry and point.moment == "torn":
            _tear(journal, entry)
        append(journal, entry)
        if seen == point.entry and point.moment == "written":
            _die()
        if seen == point.entry and point.moment == "amid" and isinstance(entry, Intent):
            threading.Timer(_AMID_S[point.entry % len(_AMID_S)], _die).start()

    def killing_flush(mirror: Mirror) -> None:
        flush(mirror)
        if seen >= point.entry and point.moment == "mirrored":
            _die()

    JournalFile.append = killing_append  # type: ignore[assignment,method-assign]
    Mirror.flush = killing_flush  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        JournalFile.append, Mirror.flush = append, flush  # type: ignore[method-assign]


def _tear(journal: Any, entry: Entry) -> None:
    from rules.entries import line  # noqa: PLC0415

    text = line(entry)
    with journal.path.open("ab") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        os.fsync(file.fileno())
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(_PATIENCE_S)


def _recover_and_die(delay_s: float) -> None:
    threading.Timer(delay_s, _die).start()
    _recover()
    os._exit(0)  # it was quicker


def _recover() -> None:
    from tasks.recover import recover_all  # noqa: PLC0415 - only the child talks to Prefect
    from tasks.settings import Settings  # noqa: PLC0415

    recover_all(by="lab.crash", settings=Settings())


def _take_back(journal: Path) -> None:
    """Bring a promoted deployment back by a person's word, for the next point."""
    _use_journal(journal)
    status = _in_child(lambda: _roll_back(journal))
    if status != 0:
        raise RuntimeError(f"rolling back a promoted deployment ended with {status}; see {journal}")


def _roll_back(journal: Path) -> None:
    from tasks.journal import JournalFile  # noqa: PLC0415 - only the child talks to Prefect
    from tasks.recover import roll_back_by_person  # noqa: PLC0415
    from tasks.settings import Settings  # noqa: PLC0415

    for path in journal.glob("[!.]*"):
        if JournalFile(journal, path.name).read().opened.part_of:
            continue  # it goes back with its release
        view = roll_back_by_person(path.name, reason="lab.crash goes on", settings=Settings())
        if view.state not in ("rolled_back", "aborted"):
            raise RuntimeError(f"{path.name} is {view.state}: {view.reason}")


def _states(journal: Path) -> tuple[list[str], list[str]]:
    """Return the states of the deployments, and of those that are components of one."""
    from rules.entries import parse  # noqa: PLC0415
    from rules.journal import view  # noqa: PLC0415

    views = [view(parse(path.read_bytes())) for path in journal.glob("[!.]*/journal.jsonl")]
    return (
        [one.state for one in views if not one.opened.part_of],
        [one.state for one in views if one.opened.part_of],
    )


def _use_journal(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["SOVEREIGN_JOURNAL_DIR"] = str(directory)


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork of this process; return its exit code, or minus the signal that ended it.

    A fork saves the seconds that importing Prefect takes; this process itself never uses Prefect's client.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001 - a child must never return into its parent's code
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become_client_of(server: PrefectServer) -> None:
    """Set the environment that Prefect reads when it is imported, and import it: forks then need not."""
    os.environ.update(server.environment())
    os.environ["SOVEREIGN_BASELINE_S"] = "0.2"
    os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
    importlib.import_module("flows.release")
    gc.collect()
    gc.freeze()  # what is imported is never collected, so that forks share its memory instead of copying it


def run(component: str, strategy: str, *, every: int, directory: Path, cache: Path, quiet: bool) -> Report:
    """Start all that is needed, crash everywhere, and leave nothing behind.

    Args:
        component: what is deployed.
        strategy: how.
        every: try every n-th point.
        directory: everything lives below it.
        cache: where a migrated database is kept between runs.
        quiet: do not tell how it goes.
    """
    with ExitStack() as parts:
        postgres = Postgres(directory / "postgres")
        postgres.start(template=migrated_cluster(cache))
        parts.callback(postgres.stop)
        url = postgres.url(DATABASE, driver=DRIVER)
        _become_client_of(parts.enter_context(PrefectServer(directory / "prefect", url, migrated=True)))
        lab: CrashLab = _crash_lab(component)(directory / component, strategy)
        lab.start()
        parts.callback(lab.stop)

        def log(text: str) -> None:
            if not quiet:
                print(text, file=sys.stderr, flush=True)

        return crash_everywhere(lab, directory / "journals", every=every, log=log)


def _crash_lab(component: str) -> Callable[[Path, str], CrashLab]:
    """Return what a component brings: class `CrashLab` of `lab.crash_<component>`."""
    found: Callable[[Path, str], CrashLab] = importlib.import_module(f"lab.crash_{component}").CrashLab
    return found


def main() -> int:
    """Run the crash matrix of one component and strategy; 0 when every point was recovered."""
    parser = argparse.ArgumentParser(prog="python -m lab.crash", description=__doc__)
    parser.add_argument("--component", choices=tuple(_STRATEGIES), default="application")
    parser.add_argument("--strategy", default="", help="; ".join(f"{c}: {s}" for c, s in _STRATEGIES.items()))
    parser.add_argument("--every", type=int, default=1, help="try only every n-th point")
    parser.add_argument("--json", action="store_true", help="print only the report, as JSON")
    given = parser.parse_args()
    strategies = _STRATEGIES[given.component]
    if given.strategy and given.strategy not in strategies:
        parser.error(f"{given.component} has the strategies {', '.join(strategies)}")
    with tempfile.TemporaryDirectory(prefix="lab-crash-") as directory:
        report = run(
            given.component,
            given.strategy or strategies[0],
            every=given.every,
            directory=Path(directory),
            cache=Path(".lab/cache").absolute(),
            quiet=given.json,
        )
    print(json.dumps(report.__dict__, default=str))
    return 0 if report.points and report.recovered == report.points and not report.failures else 1


if __name__ == "__main__":
    sys.exit(main())
