"""Schema, index and application as one release: all of them are promoted, or all are as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blocks.environment import Environment
from flows.control import control
from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.recover import recover, roll_back
from flows.release import release
from lab.database import LabDatabase
from lab.database_content import COLUMN, INDEX, TABLE
from lab.database_migrations import good_expand
from lab.prefect_server import Worker
from lab.processes import Process, wait_until
from lab.register import save_database
from lab.releases import GOOD, Behaviour
from rules.change import IndexChange, SchemaChange, Served
from rules.cluster_loss import LossNotAcceptedError
from rules.database import DatabaseState
from rules.entries import Moved
from rules.environment import Monitoring, Stage
from rules.errors import GateBlockedError, LockHeldError
from rules.journal import JournalView
from rules.plan import Plan
from rules.release import Component, Release
from rules.strategy import BlueGreen, InPlace, Strategy, Watching
from rules.vector_index import Hnsw, IndexGate
from tasks.database import observe_database
from tasks.recover import recover_all
from tests.flows.site import EASY, ENDLESS, PATIENCE_S, Site

#: For a day, by one run that nobody has: what is promoted stays so.
DAY = Monitoring(every_s=86_400, for_s=86_400)
QUICK = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=20, limits=EASY))
NEW = "2.0.0"
#: Every answer but that to the probe is an error.
BROKEN = Behaviour(error_ratio=1.0)


class Whole(NamedTuple):
    """An application with users, the database that it works on, and migrations for it."""

    site: Site
    lab: LabDatabase
    as_built: DatabaseState
    schema: SchemaChange

    def index(self, column: str = COLUMN) -> IndexChange:
        return IndexChange(
            database=self.lab.name,
            table=TABLE,
            column=column,
            index=INDEX,
            how=Hnsw(m=16, ef_construction=64),
            gate=IndexGate(queries=10, min_recall=0.5, max_latency_ratio=100.0),
        )

    def release(self, behaviour: Behaviour = GOOD, *, strategy: Strategy = QUICK, **changes: Any) -> Release:
        """Schema, index and application, in this order; `changes` replace a component's change."""
        web = self.site.change(NEW, behaviour)
        known = {"schema": self.schema, "index": self.index(), "web": web, **changes}
        return Release(
            name=self.site.application.name,
            release=NEW,
            components=(
                Component(name="web", change=known["web"], strategy=strategy, after=("schema", "index")),
                Component(name="schema", change=known["schema"]),
                Component(name="index", change=known["index"], after=("schema",)),
            ),
        )

    def releasing(self, wanted: Release, environment: str) -> Process:
        """Start it in a process of its own."""
        parameters = {"change": wanted.model_dump(mode="json"), "environment": environment}
        return self.site.run("flows.release.release", parameters)

    def views(self) -> dict[str, JournalView]:
        """Return the journals of this test: component -> its own, and that of the release under ''."""
        views = self.site.views()
        (top,) = [view for view in views if view.opened.component == "release"]
        parts = {
            view.opened.deployment.rpartition("-")[2]: view
            for view in views
            if view.opened.part_of == top.opened.deployment
        }
        return {"": top, **parts}

    def states(self) -> dict[str, str]:
        return {name: view.state for name, view in self.views().items()}

    def is_as_before(self) -> bool:
        now = observe_database(self.lab.database, deployment="test", like=self.as_built, indexes_of=TABLE)
        assert now.differences(self.as_built) == ()
        assert self.site.application.observed() == self.site.before
        locks = [row["name"] for row in self.site.ask("POST", "variables/filter", {}).json()]
        assert not [name for name in locks if name.startswith("sovereign_lock_")]
        return True


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, lab_cache: Path) -> Iterator[LabDatabase]:
    with LabDatabase(tmp_path_factory.mktemp("memories"), cache=lab_cache) as running:
        yield running


@pytest.fixture(scope="module")
def as_built(lab: LabDatabase) -> DatabaseState:
    return observe_database(lab.database, deployment="test", indexes_of=TABLE)


@pytest.fixture
def whole(  # noqa: PLR0917 - fixtures
    lab: LabDatabase, as_built: DatabaseState, site: Site, workers: list[Worker], tmp_path: Path
) -> Iterator[Whole]:
    """All of it, known to Prefect; what a failed test leaves is taken back."""
    for worker in workers:
        worker.stop()
    save_database(lab.database)
    flow = site.ask("POST", "flows/", {"name": "delayed-roll-back"}).json()["id"]
    site.ask("POST", "deployments/", {"name": "delayed-roll-back", "flow_id": flow}).raise_for_status()
    Environment(monitoring=DAY).save("releasing", overwrite=True)
    Environment(monitoring=DAY, approval=True).save("releasing-asked", overwrite=True)
    Environment(monitoring=DAY, stage=Stage.STAGING).save("releasing-strictly", overwrite=True)
    serves = (Served(application=site.application.name, before=("1.*",), after=("1.*", "2.*")),)
    yield Whole(site, lab, as_built, good_expand(tmp_path / "m").change(lab.name, serves=serves))
    site.end()
    recover_all(by="test", settings=site.settings())
    for view in site.views():
        if view.state == "promoted" and not view.opened.part_of:
            roll_back(view.opened.deployment, "the test is over")


def test_a_release_approved_once_goes_through_and_a_person_takes_all_of_it_back(whole: Whole) -> None:
    site = whole.site
    careful = whole.schema.model_copy(update={"max_loss_s": 0.0})
    process = whole.releasing(whole.release(schema=careful), "releasing-asked")
    wait_until(
        lambda: any(site.run_state(view.opened.flow_run_id)[0] == "PAUSED" for view in site.views()),
        timeout_s=2 * PATIENCE_S,
        what="the question",
        process=process,
    )
    waiting = whole.views()
    assert set(waiting) == {""}  # no component has begun
    run, name = waiting[""].opened.flow_run_id, waiting[""].opened.deployment
    page = site.artifact(f"components-{name}")
    assert page.index("database-memories: release 0002") < page.index("# application-")
    answer = {"approved": True, "by": "Ada", "words": "as planned"}
    site.ask("POST", f"flow_runs/{run}/resume", {"run_input": answer}).raise_for_status()
    site.ended(process, within_s=3 * PATIENCE_S)

    promoted = whole.views()
    assert {part: view.state for part, view in promoted.items()} == dict.fromkeys(
        ("", "schema", "index", "web"), "promoted"
    )
    assert site.application.observed()["route_map"] == {site.application.name: "green:blue:0"}
    for part in ("schema", "index", "web"):
        view = promoted[part]
        assert view.approval
        assert (view.approval.by, view.approval.words) == ("Ada", f"with {name}: as planned")
        assert view.gate
        assert view.baseline("before")
    began = [promoted[part].opened.at for part in ("schema", "index", "web")]
    assert began == sorted(began)
    assert site.failed_requests() == 0

    with pytest.raises(LossNotAcceptedError, match="takes away what was written there"):
        roll_back(name, "second thoughts")
    assert set(whole.states().values()) == {"promoted"}
    roll_back(promoted["web"].opened.deployment, "it is slow")
    assert [one.acted for one in recover() if one.deployment == name] == [False]
    assert proposals(site, name) == 1
    assert whole.states() == {"": "promoted", "schema": "promoted", "index": "promoted", "web": "rolled_back"}

    record = roll_back(name, "second thoughts", accept_loss=True)
    assert (record.state, len(record.parts)) == ("rolled_back", 3)
    assert set(whole.states().values()) == {"rolled_back"}
    assert whole.is_as_before()
    assert site.failed_requests() == 0
    for part in ("schema", "index", "web"):
        assert "| state | **rolled_back** |" in site.artifact(f"record-{promoted[part].opened.deployment}")


def proposals(site: Site, name: str) -> int:
    """Return how many runs wait to take a release back once a person has agreed."""
    wanted = {"flow_runs": {"tags": {"all_": ["sovereign", name]}}}
    runs = site.ask("POST", "flow_runs/filter", wanted).json()
    return len([run for run in runs if run["parameters"]["approval"]])


def test_when_the_last_component_fails_all_are_as_before_newest_first(whole: Whole) -> None:
    with pytest.raises(TakenBackError, match=r"-3-web failed: .*FAIL.* Rolled back and verified in"):
        release(whole.release(BROKEN), environment="releasing")

    views = whole.views()
    assert set(whole.states().values()) == {"rolled_back"}
    assert whole.is_as_before()
    back = {
        part: next(e.at for e in view.entries if isinstance(e, Moved) and e.state == "rolled_back")
        for part, view in views.items()
    }
    assert back["web"] < back["index"] < back["schema"] < back[""]
    run = views[""].opened.flow_run_id
    state, message = whole.site.run_state(run)
    assert state == "FAILED"
    assert "Rolled back and verified" in message
    page = whole.site.artifact(f"record-{views[''].opened.deployment}")
    assert "components, in order" in page


def test_what_the_gate_of_a_later_component_asks_for_blocks_before_anything_is_changed(whole: Whole) -> None:
    with pytest.raises(GateBlockedError, match=r"The checklist blocks this release.* web: ") as blocked:
        release(whole.release(), environment="releasing-strictly")

    assert "nothing was changed" in str(blocked.value)
    assert whole.states() == {"": "blocked"}
    assert whole.is_as_before()


def test_a_strangers_deployment_is_refused_and_an_aborted_release_takes_all_back(whole: Whole) -> None:
    site = whole.site
    process = whole.releasing(whole.release(strategy=ENDLESS), "releasing")
    wait_until(
        lambda: any(site.journal_dir.glob("*-3-web/samples.jsonl")),
        timeout_s=4 * PATIENCE_S,
        what="a canary that is watched",
        process=process,
    )
    name = whole.views()[""].opened.deployment
    with pytest.raises(LockHeldError, match=f"database-memories is held by {name}"):
        deploy(whole.index(), InPlace(), environment="releasing")
    assert [view.state for view in site.views() if not view.opened.part_of] == ["running", "aborted"]

    control(name, "abort", "Ada", "not today")
    site.ended(process, within_s=3 * PATIENCE_S)
    assert set(whole.states().values()) == {"rolled_back"}
    assert "Aborted by Ada: not today" in whole.views()["web"].cause
    assert whole.is_as_before()


def test_a_dry_run_shows_the_order_and_what_can_only_be_planned_later(whole: Whole) -> None:
    wanted = whole.release(index=whole.index("made_by_the_schema"))
    plan = release(wanted, environment="releasing", dry_run=True)

    assert isinstance(plan, Plan)
    assert [step.title.partition(":")[0] for step in plan.steps] == ["schema", "index", "web"]
    page = whole.site.artifact(f"dry-run-release-{whole.site.application.name}")
    schema, index, web = (
        page.index(words)
        for words in (
            "# database-memories: release 0002",
            "# index\n\nIt is planned later: after",
            "# application-",
        )
    )
    assert schema < index < web
    assert "made_by_the_schema" in page[index:web]
    assert not Path(whole.site.journal_dir).exists()
    assert whole.is_as_before()


def test_a_release_that_cannot_be_planned_changes_nothing(whole: Whole) -> None:
    stranger = whole.schema.model_copy(update={"release": "9999_unknown"})
    with pytest.raises(TakenBackError, match="9999_unknown"):
        release(whole.release(schema=stranger), environment="releasing")
    assert whole.states() == {"": "aborted"}
    assert whole.is_as_before()
