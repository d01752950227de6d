"""What a change has kept is removed once nothing leads back any more, and not before."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.database import LabDatabase
from lab.database_content import COLUMN, INDEX, TABLE
from lab.database_migrations import good_expand
from rules.change import IndexChange, SchemaChange
from rules.database import Database, LockPolicy
from rules.database_plan import ApplyMigration, VerifyDatabase
from rules.entries import DeploymentState, Intent, Moved, Opened, Planned, line
from rules.fleet import NOBODY
from rules.journal import JournalView
from rules.strategy import InPlace
from rules.vector_index import Hnsw, IndexGate
from tasks.database_undo import take_database_back
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.migrate import apply_migration
from tasks.observed import differences_from_before, differences_from_promised
from tasks.planning import plan_now
from tasks.settings import Settings
from tests.tasks import vectors
from tests.tasks.databases import idle_in_transaction
from tests.tasks.deploying import opening

EASY = IndexGate(queries=5, min_recall=0.2, max_latency_ratio=1000)
STABLE = f"public.{INDEX}"
#: Each change is to an index of its own: what is as wanted already is not built again.
_sizes = itertools.count(4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, lab_cache: Path) -> Iterator[LabDatabase]:
    with LabDatabase(tmp_path_factory.mktemp("memories"), cache=lab_cache, months=2) as running:
        yield running


class Site(NamedTuple):
    """A database, and the journals of what was done to it by hand."""

    lab: LabDatabase
    settings: Settings

    @property
    def database(self) -> Database:
        lock = LockPolicy(first_ms=20, longest_ms=100, pause_s=0.05, patience_s=0.5)
        return self.lab.database.model_copy(update={"lock": lock, "check_corruption": False})

    def left(self, *states: DeploymentState, change: IndexChange | SchemaChange | None = None) -> JournalFile:
        """Do a whole change and leave its journal, which then went through these states."""
        wanted = change or self.index()
        opened = self.opened(wanted)
        plan = plan_now(wanted, InPlace(), opened, self.settings)
        assert plan.steps
        for action in (step.action for step in plan.steps):
            if isinstance(action, ApplyMigration):
                apply_migration(self.database, action, deployment=opened.deployment)
            elif isinstance(wanted, IndexChange) and not isinstance(action, VerifyDatabase):
                vectors.do(self.database, action)
        intents = [Intent(number=s.number, title=s.title, undo=s.undo) for s in plan.steps if s.undo]
        journal = JournalFile(self.settings.journal_dir, opened.deployment)
        journal.adopt(b"".join(line(entry) for entry in (opened, Planned(plan=plan), *intents)))
        self.moved(journal, *states)
        return journal

    def take_back(self, view: JournalView) -> None:
        """Take a whole change back, newest step first."""
        for intent in view.to_undo:
            take_database_back(
                view, intent.undo, settings=self.settings, accept_loss=False, tell=lambda _about, _words: None
            )

    def moved(self, journal: JournalFile, *states: DeploymentState) -> None:
        for state in states:
            journal.append(Moved(state=state, reason="by hand", by="test", at=datetime.now(UTC)))

    def opened(self, change: IndexChange | SchemaChange) -> Opened:
        return opening(
            NOBODY, component=change.component, target=change.target, database=self.database, users=()
        )

    def index(self) -> IndexChange:
        how = Hnsw(m=next(_sizes), ef_construction=64, ef_search=40)
        return IndexChange(
            database=self.lab.name, table=TABLE, column=COLUMN, index=INDEX, how=how, gate=EASY
        )

    def indexes(self) -> dict[str, bool]:
        """Return the indexes on vectors, with those of the partitions, and whether each is valid."""
        query = (
            "SELECT i.indexrelid::regclass::text, i.indisvalid FROM pg_index i JOIN pg_class c "
            "ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
        )
        return {f"public.{name}": valid for name, valid in self.lab.query(query)}

    def kept(self, journal: JournalFile) -> str:
        """Return what a change has kept, by its name."""
        (old,) = plan_of(journal.read()).finish
        return old.index


def plan_of(view: JournalView):
    assert view.plan
    return view.plan


@pytest.fixture
def site(lab: LabDatabase, tmp_path: Path) -> Iterator[Site]:
    site = Site(lab, Settings(journal_dir=tmp_path / "journal", host="here"))
    yield site
    # the next test begins with one index, and none that is kept
    for name in site.indexes():
        if "_kept" in name:
            lab.query(f"DROP INDEX IF EXISTS {name}")


@pytest.mark.parametrize("end", ["completed", "superseded"])
def test_what_was_kept_is_dropped_once_the_undo_is_disarmed(site: Site, end: DeploymentState) -> None:
    journal = site.left("promoted", end)
    kept, before = site.kept(journal), site.indexes()
    assert {kept, STABLE} < set(before)

    assert finish_due(site.settings) == (kept,)
    after = site.indexes()
    assert kept not in after
    assert len(after) == len(before) / 2  # the parts of the kept one went with it
    assert all(after.values())
    assert STABLE in after


def test_it_is_looked_at_once_and_again_when_asked(site: Site) -> None:
    journal = site.left("promoted", "completed")
    kept = site.kept(journal)
    finish_due(site.settings)
    # as a way back through a snapshot of the whole cluster brings it back
    site.lab.query(f"CREATE INDEX {kept.split('.')[1]} ON {TABLE} USING hnsw ({COLUMN} vector_l2_ops)")

    assert finish_due(site.settings) == ()
    assert kept in site.indexes()
    assert finish_due(site.settings, again=True) == (kept,)
    assert kept not in site.indexes()


@pytest.mark.parametrize("states", [(), ("promoted",), ("promoted", "rolling_back")], ids=str)
def test_what_still_leads_back_is_left_alone(site: Site, states: tuple[DeploymentState, ...]) -> None:
    journal = site.left(*states)
    before = site.indexes()
    assert finish_due(site.settings) == ()
    assert finish_due(site.settings, again=True) == ()
    assert site.indexes() == before

    view = journal.read()
    site.take_back(view)
    assert differences_from_before(view, plan_of(view)) == ()


def test_a_database_that_is_down_is_only_logged_and_tried_later(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    kept = site.kept(site.left("promoted", "completed"))
    site.lab.run(site.lab.service.stop)
    try:
        with caplog.at_level(logging.WARNING):
            assert finish_due(site.settings) == ()
        assert "is still there and is removed later" in caplog.text
    finally:
        site.lab.start()
    assert kept in site.indexes()
    assert finish_due(site.settings) == (kept,)
    assert kept not in site.indexes()


def test_one_whose_database_is_down_keeps_no_other_waiting(site: Site) -> None:
    away = site.database.address.model_copy(update={"port": 1})
    opened = site.opened(site.index()).model_copy(
        update={
            "deployment": "away-1",
            "target": "database-away",
            "database": site.database.model_copy(update={"name": "away", "address": away}),
        }
    )
    done = site.left("promoted", "completed")
    other = JournalFile(site.settings.journal_dir, opened.deployment)
    other.adopt(line(opened) + line(Planned(plan=plan_of(done.read()))))
    site.moved(other, "promoted", "completed")
    assert finish_due(site.settings) == (site.kept(done),)
    assert finish_due(site.settings) == ()


def test_one_that_is_still_read_is_dropped_when_that_has_ended(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    kept = site.kept(site.left("promoted", "completed"))
    with idle_in_transaction(site.database, "SELECT count(*) FROM episodic_memories"):
        assert finish_due(site.settings) == ()
        assert kept in caplog.text
    assert kept in site.indexes()
    assert finish_due(site.settings) == (kept,)


def test_an_index_of_that_name_on_another_table_is_left_alone(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    kept = site.kept(site.left("promoted", "completed"))
    site.lab.query(f"DROP INDEX {kept}")
    site.lab.query(f"CREATE INDEX {kept.split('.')[1]} ON public.memories (source)")
    try:
        assert finish_due(site.settings) == ()
        assert "it is not ours and was left alone" in caplog.text
        assert site.lab.query("SELECT to_regclass(%s) IS NOT NULL", (kept,)) == [(True,)]
    finally:
        site.lab.query(f"DROP INDEX IF EXISTS {kept}")


#: What a later change is, and how it still can be taken back: by its run, a person, or one more try.
LATER: tuple[tuple[str, tuple[DeploymentState, ...]], ...] = (
    ("index", ()),
    ("schema", ("promoted",)),
    ("index", ("rolling_back", "rollback_failed")),
)


@pytest.mark.parametrize(("component", "states"), LATER, ids=str)
def test_it_waits_while_a_later_change_of_the_database_leads_back_to_it(
    site: Site, tmp_path: Path, component: str, states: tuple[DeploymentState, ...]
) -> None:
    kept = site.kept(site.left("promoted", "superseded"))
    change = site.index() if component == "index" else good_expand(tmp_path / "m").change(site.lab.name)
    later = site.left(*states, change=change)

    assert finish_due(site.settings, again=True) == ()
    view = later.read()
    assert differences_from_promised(view.opened, plan_of(view), touched=set()) == ()
    site.take_back(view)
    assert differences_from_before(view, plan_of(view)) == ()
    if view.state == "rollback_failed":  # one more try, a deployment of its own, has brought it back
        again = view.opened.model_copy(update={"deployment": "again", "continues": later.deployment})
        later = JournalFile(site.settings.journal_dir, "again")
        later.adopt(line(again))
    site.moved(later, "rolling_back", "rolled_back")
    assert finish_due(site.settings) == (kept,)
