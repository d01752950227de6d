"""A schema and its application change in step: neither is taken to where the other cannot work."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from blocks.environment import Environment
from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.recover import roll_back
from lab.database import LabDatabase
from lab.database_migrations import LabMigrations, folder_sha256, good_expand
from lab.prefect_server import PrefectServer, Worker
from lab.register import save_database
from rules.change import MigrationFolder, SchemaChange, Served
from rules.database import DatabaseState
from rules.entries import DeploymentState, Moved, Opened, line
from rules.environment import Monitoring
from rules.errors import InvalidRequestError
from rules.journal import JournalView
from rules.strategy import BlueGreen, InPlace, Watching
from tasks.database import observe_database
from tasks.journal import JournalFile
from tasks.planning import _refuse_while_baking
from tasks.recover import recover_all
from tasks.settings import Settings
from tests.flows.conftest import Kept
from tests.flows.site import EASY, Site
from tests.tasks.deploying import opening

QUICK = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=20, limits=EASY))
#: For a day, by one run that nobody has: what is promoted stays so.
DAY = Monitoring(every_s=86_400, for_s=86_400)
#: Its bake is over at once, and it is completed by the next who looks.
MOMENT = Monitoring(every_s=0.5, for_s=0.5, probe_every_s=0.1)
#: What only the old release reads.
MADE = """\
CREATE VIEW public.current_episodes AS
SELECT id, occurred_at, content, embedding FROM public.episodic_memories_2026_03;
"""
OLD, NEW = "1.*", "2.*"


class Pair(NamedTuple):
    """An application with users, and the database that it works on."""

    site: Site
    lab: LabDatabase
    as_built: DatabaseState

    def serves(self, *, before: tuple[str, ...], after: tuple[str, ...]) -> tuple[Served, ...]:
        return (Served(application=self.site.application.name, before=before, after=after),)

    def expand(self, directory: Path) -> SchemaChange:
        """A change that both releases work with, but only the new one needs."""
        serves = self.serves(before=(OLD,), after=(OLD, NEW))
        return good_expand(directory).change(self.lab.name, serves=serves)

    def contract(self, directory: Path) -> SchemaChange:
        """Take away what only the old release needs: a view, whose way down makes it again."""
        serves = self.serves(before=("*",), after=(NEW,))
        return no_view(directory).change(self.lab.name, serves=serves)

    def deploy(self, change: SchemaChange) -> JournalView:
        """Deploy it; return its journal, however that went."""
        known = {view.opened.deployment for view in self.site.views()}
        try:
            deploy(change, InPlace(), environment="baking")
        finally:
            (new,) = [view for view in self.site.views() if view.opened.deployment not in known]
        return self.again(new)

    def deploy_application(self, environment: str = "baking") -> JournalView:
        record = deploy(self.site.change("2.0.0"), QUICK, environment=environment)
        assert self.site.fleet_state().traffic.live == "green"
        return self.view(record.deployment)

    def again(self, view: JournalView) -> JournalView:
        return self.view(view.opened.deployment)

    def view(self, deployment: str) -> JournalView:
        (view,) = [view for view in self.site.views() if view.opened.deployment == deployment]
        return view

    def newest(self) -> JournalView:
        return self.site.views()[-1]

    def state(self) -> DatabaseState:
        return observe_database(self.lab.database, deployment="test", like=self.as_built)


def no_view(directory: Path) -> LabMigrations:
    """A view goes that only old releases read; the way down makes it as it was."""
    directory.mkdir(parents=True)
    (directory / "0003_no_view.up.sql").write_text("DROP VIEW public.current_episodes;\n")
    (directory / "0003_no_view.down.sql").write_text(MADE)
    folder = MigrationFolder(path=str(directory), sha256=folder_sha256(directory))
    return LabMigrations(
        folder=folder, release="0003_no_view", phase="contract", accepted_lint=("ban-drop-view",)
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, lab_cache: Path) -> Iterator[LabDatabase]:
    with LabDatabase(tmp_path_factory.mktemp("memories"), cache=lab_cache) as running:
        yield running


@pytest.fixture(scope="module")
def as_built(lab: LabDatabase) -> DatabaseState:
    return observe_database(lab.database, deployment="test")


@pytest.fixture
def forget_site(kept_sites: Kept) -> None:
    """The next site is a new one: what other tests did to theirs is in the books of their application."""
    while kept_sites:
        kept_sites.pop().stop()


@pytest.fixture
def pair(lab: LabDatabase, as_built: DatabaseState, site: Site, workers: list[Worker]) -> Iterator[Pair]:
    """Both, known to Prefect; what a test leaves of the schema is taken back."""
    for worker in workers:
        worker.stop()
    save_database(lab.database)
    Environment(monitoring=DAY).save("baking", overwrite=True)
    Environment(monitoring=MOMENT).save("baked", overwrite=True)
    pair = Pair(site, lab, as_built)
    yield pair
    for view in reversed(site.views()):
        if view.state == "promoted" and view.opened.database:
            roll_back(view.opened.deployment, "the test is over")
    assert pair.state().differences(as_built) == ()


def test_a_schema_that_does_not_serve_what_runs_is_refused_before_anything_is_touched(
    pair: Pair, tmp_path: Path
) -> None:
    serves = pair.serves(before=("*",), after=(NEW,))
    change = good_expand(tmp_path / "m").change(pair.lab.name, serves=serves)
    with pytest.raises(TakenBackError, match=r"runs 1\.0\.0, which the new schema does not serve") as refusal:
        pair.deploy(change)

    assert "Deploy a release that works with both first" in str(refusal.value)
    view = pair.newest()
    assert view.state == "aborted"
    assert view.intents == ()
    assert pair.state().differences(pair.as_built) == ()
    assert pair.site.application.observed() == pair.site.before


def test_an_expand_is_taken_back_only_after_the_application_that_needs_it(pair: Pair, tmp_path: Path) -> None:
    expand = pair.deploy(pair.expand(tmp_path / "m"))
    assert expand.state == "promoted"
    assert_watched(expand, pair.site)
    application = pair.deploy_application()
    assert application.state == "promoted"
    expanded = pair.state()

    with pytest.raises(InvalidRequestError, match=r"runs 2\.0\.0, which the old schema does not serve") as no:
        roll_back(expand.opened.deployment, "second thoughts")
    assert "Take the application back first" in str(no.value)
    refused = pair.again(expand)
    assert refused.state == "promoted"
    assert refused.to_undo == expand.to_undo
    assert pair.state().differences(expanded) == ()

    roll_back(application.opened.deployment, "second thoughts")
    roll_back(expand.opened.deployment, "second thoughts")
    assert pair.again(expand).state == "rolled_back"
    assert pair.state().differences(pair.as_built) == ()
    assert pair.site.application.observed() == pair.site.before
    assert pair.site.failed_requests() == 0


def test_a_contract_step_waits_until_the_application_has_baked(
    forget_site: None, pair: Pair, tmp_path: Path
) -> None:
    application = pair.deploy_application("baked")
    name = application.opened.deployment
    contract = pair.contract(tmp_path / "m")
    with pytest.raises(TakenBackError, match=f"wait for the application's bake: {name} is promoted"):
        pair.deploy(contract)
    refused = pair.newest()
    assert refused.state == "aborted"
    assert refused.intents == ()
    assert pair.state().differences(pair.as_built) == ()

    promoted_at = application.moved_at("promoted")
    assert promoted_at
    time.sleep(max(0.0, MOMENT.for_s + 2 * MOMENT.probe_every_s - (time.time() - promoted_at.timestamp())))
    recover_all(by="test", settings=pair.site.settings())
    assert pair.view(name).state == "completed"
    done = pair.deploy(contract)
    assert done.state == "promoted"
    assert_watched(done, pair.site)
    assert pair.lab.query("SELECT to_regclass('public.current_episodes')") == [(None,)]
    roll_back(done.opened.deployment, "second thoughts")
    assert pair.state().differences(pair.as_built) == ()
    assert pair.site.failed_requests() == 0


def test_a_failed_way_back_of_the_application_holds_a_contract_step_up_until_it_is_repeated(
    prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(tmp_path / "journal"))
    settings, application = Settings(), f"web-{secrets.token_hex(3)}"
    change = no_view(tmp_path / "m").change("memories", serves=(Served(application=application),))
    opened = opening(target=f"application-{application}")
    left(settings, opened, "promoted", "rolling_back", "rollback_failed")
    with pytest.raises(InvalidRequestError, match=f"{opened.deployment} is rollback_failed"):
        _refuse_while_baking(change, settings)

    repeated = opened.model_copy(
        update={"deployment": f"{opened.deployment}-again", "continues": opened.deployment}
    )
    again = left(settings, repeated, "rolling_back")
    with pytest.raises(InvalidRequestError, match=f"{repeated.deployment} is rolling_back"):
        _refuse_while_baking(change, settings)
    move(again, "rolled_back")
    _refuse_while_baking(change, settings)


def left(settings: Settings, opened: Opened, *states: DeploymentState) -> JournalFile:
    """Leave a journal that went through these states."""
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.adopt(line(opened))
    move(journal, *states)
    return journal


def move(journal: JournalFile, *states: DeploymentState) -> None:
    for state in states:
        journal.append(Moved(state=state, reason="by hand", by="test", at=datetime.now(UTC)))


def assert_watched(view: JournalView, site: Site) -> None:
    """The users of the application were measured before and after, and compared."""
    assert view.opened.fleet.application == site.application.name
    compared = {one.name: one for one in view.comparisons}
    assert compared["error_ratio"].before == compared["error_ratio"].after == 0.0
    assert not [entry for entry in view.entries if isinstance(entry, Moved) and entry.state == "rolling_back"]
