"""The main job on real parts: deployments of an application and a database under load; half of them go back.

`make demo` runs it; `make demo KEEP=1` leaves everything running afterwards, to look at it in Prefect's UI.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lab.calls import is_over, run_state, start_run
from lab.content import LabContent
from lab.database import LabDatabase
from lab.database_load import DatabaseLoad
from lab.demo_content import CONTENT_SCENES, show_content
from lab.demo_database import DATABASE_SCENES, show_database
from lab.demo_model import ALONE, MODEL_SCENES, PROMPTS_PER_S, show_model
from lab.demo_system import HOST, SYSTEM_SCENES
from lab.demo_system import why_not as why_no_host
from lab.figures import Figures, figures_of, plot_canary, sparkline
from lab.kubo_install import why_not as why_no_kubo
from lab.load import Load
from lab.nixos import LabNixos
from lab.production import Production
from lab.releases import Behaviour
from lab.sglang import LabSglang
from rules.change import Change
from rules.entries import (
    Decided,
    Entry,
    Gated,
    Intent,
    Monitored,
    MonitoringScheduled,
    Moved,
    Noted,
    Opened,
    parse,
)
from rules.environment import Environment, Monitoring
from rules.journal import JournalView, view
from rules.record import in_words
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Strategy, Watching

_DIRECTORY = Path(".lab/demo").absolute()
_REQUESTS_PER_S = 200.0
_RUN_TIMEOUT_S = 180.0
_WATCH = Watching(limits=CanaryLimits(min_observation_s=3.0))
#: Notes of a deployment that people want to see.
_TOLD = frozenset(
    {
        "index_judged",
        "index_verified",
        "loss",
        "snapshot",
        "model_verified",
        "inference",
        "memory",
        "system_verified",
        "content_verified",
        "references_verified",
    }
)
#: Each scene is followed by the next one before a second run of its monitoring would begin.
_CALM = Environment(name="calm", monitoring=Monitoring(every_s=21_600))
#: 24 hours of runs of 15 minutes, with a look each 30 s, told in a minute.
_WATCHED = Environment(
    name="watched", monitoring=Monitoring(every_s=10, for_s=60, probe_every_s=0.5, min_requests=50)
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One deployment of the demo, and what it is to end in."""

    title: str
    release: str
    strategy: Strategy
    ends: str
    behaviour: Behaviour
    taken_back_by_hand: bool = False
    environment: str = "calm"


#: Each release stops abruptly, dropping its open requests: whoever restarts it carelessly loses some.
_SCENES = (
    Scene(
        "A good release, by canary", "2.0.0", Canary(watch=_WATCH), "promoted", Behaviour(abrupt_stop=True)
    ),
    Scene(
        "A bad release (15 % errors), by canary",
        "2.1.0",
        Canary(watch=_WATCH),
        "rolled_back",
        Behaviour(abrupt_stop=True, error_ratio=0.15),
    ),
    Scene(
        "Blue-green, then switched back by hand",
        "3.0.0",
        BlueGreen(watch=_WATCH),
        "rolled_back",
        Behaviour(abrupt_stop=True),
        taken_back_by_hand=True,
    ),
    Scene("Rolling, instance by instance", "4.0.0", Rolling(), "promoted", Behaviour(abrupt_stop=True)),
    Scene(
        "Turns bad after its promotion (24 hours of monitoring in one minute)",
        "5.0.0",
        BlueGreen(watch=_WATCH),
        "rolled_back",
        Behaviour(abrupt_stop=True, error_ratio=0.3, errors_after_s=25.0),
        environment=_WATCHED.name,
    ),
)


class Demo:
    """Plays the scenes one after the other and keeps what was measured."""

    def __init__(self, production: Production, load: Load, console: Console) -> None:
        self._production, self._load, self._console = production, load, console
        self._application = production.applications["web"]
        self._api_url = production.prefect.api_url
        self.figures: list[Figures] = []
        self.plotted: JournalView | None = None
        self.went_as_told = True

    def play_change(self, title: str, change: Change, ends: str, *, strategy: InPlace = InPlace()) -> None:  # noqa: B008 - frozen
        """Deploy a change that is no application's through the API and follow that to its end."""
        self._console.rule(f"[bold]{title}")
        parameters = {
            "change": change.model_dump(mode="json"),
            "strategy": strategy.model_dump(mode="json"),
            "environment": _CALM.name,
        }
        run_id = start_run(self._api_url, "deploy/deploy", parameters, key=f"demo-{change.release}")
        self._follow(run_id, change.release, subject=change.subject)
        self._expect(self._journal(change.release, subject=change.subject), ends)

    def play_others(self, hosts: Sequence[LabNixos], contents: Sequence[LabContent]) -> None:
        """Deploy systems and content; where the parts cannot be had, say why."""
        for scene, host in product(SYSTEM_SCENES, hosts):
            self.play_change(scene.title, scene.change(host), scene.ends, strategy=HOST)
        for told, content in product(CONTENT_SCENES, contents):
            self.play_change(told.title, told.change(content), told.ends)
        for words in filter(None, (why_no_host(), why_no_kubo())):
            self._console.print(f"[yellow]Left out: {words}")

    def play(self, scene: Scene) -> None:
        """Deploy one release through the API and follow it to its end."""
        self._console.rule(f"[bold]{scene.title}")
        change = self._application.change(scene.release, scene.behaviour)
        parameters = {
            "change": change.model_dump(mode="json"),
            "strategy": scene.strategy.model_dump(mode="json"),
            "environment": scene.environment,
        }
        run_id = start_run(self._api_url, "deploy/deploy", parameters, key=f"demo-{scene.release}")
        self._follow(run_id, scene.release)
        if scene.taken_back_by_hand:
            deployment = self._journal(scene.release).opened.deployment
            self._console.print(f"[dim]roll-back of {deployment}, by hand[/dim]")
            by_hand = {"deployment": deployment, "reason": "The demo shows the way back."}
            self._follow(start_run(self._api_url, "roll-back/roll-back", by_hand), scene.release)
        if scene.environment == _WATCHED.name:
            self._follow_monitoring(scene.release)
        journal = self._journal(scene.release)
        time.sleep(1)  # the last requests of this scene come to their end
        self.figures.append(figures_of(journal, self._load.rows()))
        if scene.behaviour.error_ratio:
            self.plotted = journal
        self._expect(journal, scene.ends)

    def _expect(self, journal: JournalView, ends: str) -> None:
        if journal.state != ends:
            self.went_as_told = False
            self._console.print(f"[red]It was to end {ends}, but is {journal.state}: {journal.reason}")

    def _follow(self, run_id: str, release: str, *, subject: str = "web") -> None:
        """Print each new journal entry until the flow run is over."""
        began, shown = time.time(), len(self._entries(release, subject))
        deadline = time.monotonic() + _RUN_TIMEOUT_S
        with self._console.status("waiting for the worker") as status:
            while time.monotonic() < deadline:
                state, _ = run_state(self._api_url, run_id)
                entries = self._entries(release, subject)
                for entry in entries[shown:]:
                    self._show(entry, began)
                shown = len(entries)
                status.update(f"{state.lower()}; {len(self._load.rows()):,} requests so far")
                if is_over(state):
                    return
                time.sleep(0.3)
        raise TimeoutError(f"flow run {run_id} has not ended after {_RUN_TIMEOUT_S:g} s")

    def _follow_monitoring(self, release: str) -> None:
        """Print what the scheduled runs add to the journal, until the deployment is over."""
        began, shown = time.time(), len(self._entries(release))
        deadline = time.monotonic() + _RUN_TIMEOUT_S
        with self._console.status("promoted, and watched by scheduled runs"):
            while time.monotonic() < deadline:
                entries = self._entries(release)
                for entry in entries[shown:]:
                    self._show(entry, began)
                shown = len(entries)
                if view(entries).is_terminal:
                    return
                time.sleep(0.3)
        raise TimeoutError(f"the monitoring of {release} has not ended after {_RUN_TIMEOUT_S:g} s")

    def _show(self, entry: Entry, began: float) -> None:
        shown = Intent | Decided | Moved | Gated | Monitored | MonitoringScheduled
        if isinstance(entry, shown) or (isinstance(entry, Noted) and entry.about in _TOLD):
            words = in_words(entry).replace("**", "")
            self._console.print(
                f"{entry.at.timestamp() - began:6.1f} s  {words}", markup=False, soft_wrap=True
            )

    def _entries(self, release: str, subject: str = "web") -> tuple[Entry, ...]:
        for path in self._production.journal.glob(f"{subject}-*/journal.jsonl"):
            entries = parse(path.read_bytes())
            if entries and isinstance(entries[0], Opened) and f"release {release}," in entries[0].summary:
                return entries
        return ()

    def _journal(self, release: str, *, subject: str = "web") -> JournalView:
        return view(self._entries(release, subject))


def show(demo: Demo, load: Load, console: Console) -> None:
    """Print the table and the plot, and write summary.json."""
    table = Table(title="What users saw", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    names = ("release", "strategy", "state", "detected", "out", "verified", "requests", "failed")
    for name in names:
        table.add_column(name, justify="left" if name in names[:3] else "right", no_wrap=True)
    for scene, row in zip(_SCENES, demo.figures, strict=False):
        times = (row.detected_s, row.out_of_traffic_s or row.switched_back_s, row.rolled_back_s)
        cells = ("" if seconds is None else f"{seconds:.2f} s" for seconds in times)
        colour = "green" if row.state == "promoted" else "yellow"
        state = f"[{colour}]{row.state}[/{colour}]"
        counts = (f"{row.requests:,}", f"{row.failed_requests:,}")
        table.add_row(scene.release, row.strategy, state, *cells, *counts)
    console.print(table)
    console.print(
        "detected: first bad answer to decision; out: until it got no more requests;", soft_wrap=True
    )
    console.print("verified: decision until all was read to be as before.", soft_wrap=True)
    if demo.plotted:
        rows = load.rows()
        plot_canary(demo.plotted, rows, _DIRECTORY / "canary.png")
        console.print("Error ratio while the bad release was there, second by second (full: 35 %):")
        console.print(f"  canary {sparkline(demo.plotted, rows, of_new_release=True)}")
        console.print(f"  stable {sparkline(demo.plotted, rows, of_new_release=False)}")
        console.print(f"Plot: {(_DIRECTORY / 'canary.png').relative_to(Path.cwd())}")
    summary = _DIRECTORY / "summary.json"
    summary.write_text(json.dumps([dataclasses.asdict(row) for row in demo.figures], indent=2) + "\n")
    console.print(f"Figures: {summary.relative_to(Path.cwd())}")


def main() -> int:
    """Play the demo; 0 when every scene ended as told."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    given = parser.parse_args()
    console = Console()
    began = time.monotonic()
    # whoever starts it in the background ends it like this, and nothing may be left then either
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(_DIRECTORY, ignore_errors=True)
    cache = _DIRECTORY.parent / "cache"
    database = LabDatabase(_DIRECTORY / "memories", cache=cache)
    model, migrations = LabSglang(_DIRECTORY / "chat"), _DIRECTORY / "migrations"
    hosts = [] if why_no_host() else [LabNixos(_DIRECTORY / "nixos")]
    contents = [] if why_no_kubo() else [LabContent(_DIRECTORY / "content")]
    production = Production(
        _DIRECTORY,
        environments=(_CALM, _WATCHED),
        databases=(database,),
        models=(model,),
        hosts=hosts,
        contents=contents,
        cache=cache,
    )
    with console.status("starting PostgreSQL, Prefect's server and worker, application, model, HAProxy"):
        production.start()
    try:
        with Load(production.applications["web"].url, _REQUESTS_PER_S, _DIRECTORY / "load") as load:
            demo = Demo(production, load, console)
            for scene in _SCENES:
                demo.play(scene)
        with DatabaseLoad(database.database, _DIRECTORY / "database-load") as users:
            for changed in DATABASE_SCENES:
                demo.play_change(changed.title, changed.change(database, migrations), changed.ends)
            seen = users.figures()
        with model.load(PROMPTS_PER_S, _DIRECTORY / "model-load") as prompts:
            for swapped in MODEL_SCENES:
                demo.play_change(swapped.title, swapped.change(model), swapped.ends, strategy=ALONE)
            said = prompts.rows()
        demo.play_others(hosts, contents)
        console.rule()
        show(demo, load, console)
        show_database(seen, console)
        show_model(said, console)
        for content in contents:
            show_content(content, console)
        console.print(f"Took {time.monotonic() - began:.0f} s.")
        _keep(production, console) if given.keep else _say_how_to_keep(console)
    finally:
        production.stop()
    return 0 if demo.went_as_told else 1


def _keep(production: Production, console: Console) -> None:
    console.print(f"Prefect's UI: {production.prefect.ui_url}   (Ctrl-C ends everything)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("ending")


def _say_how_to_keep(console: Console) -> None:
    console.print("Look at it in Prefect's UI: make demo KEEP=1")


if __name__ == "__main__":
    sys.exit(main())
