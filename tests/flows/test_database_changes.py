"""Schema and index changes of a database with users: good ones go through, bad ones come back to the same.

`LAB_DATABASE=large` runs them on 200,000 rows and 20,000 vectors of 128 dimensions.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blocks.environment import Environment
from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.recover import roll_back
from lab.database import LabDatabase
from lab.database_load import DatabaseLoad, LoadFigures
from lab.database_migrations import (
    LabMigrations,
    bad_delete,
    bad_half_way,
    bad_rename,
    bad_slow,
    good_contract,
    good_expand,
)
from lab.prefect_server import PrefectServer
from lab.processes import wait_until
from lab.register import save_database
from lab.zfs import LabZfs
from rules.change import IndexChange, SchemaChange
from rules.cluster_loss import LossNotAcceptedError
from rules.database import DatabaseState
from rules.entries import Noted
from rules.environment import Monitoring
from rules.errors import WorldMovedError
from rules.fleet import NOBODY
from rules.journal import JournalView
from rules.strategy import BlueGreen, InPlace
from rules.vector_index import Hnsw, IndexGate
from tasks.database import observe_database
from tasks.finish import prune_ways_back
from tasks.journal import journals
from tasks.planning import plan_now, renewed
from tasks.settings import Settings
from tests.tasks.backing_up import one_at_a_time, pool
from tests.tasks.deploying import opening

log = logging.getLogger(__name__)
pytestmark = one_at_a_time
__all__ = ["pool"]  # a fixture

#: Transactions of the migration itself: it is foreseen in one that keeps nothing, then done.
_OURS = 2
TABLE = "public.episodic_memories"
INDEX = "episodic_memories_embedding_idx"
LARGE = {"rows": 200_000, "vectors": 20_000, "dimensions": 128, "months": 6}
#: Watched for a moment: what is tested is the way there and back.
SHORT = Monitoring(every_s=86_400, for_s=86_400)


class Memories(NamedTuple):
    """A database with users, known to Prefect."""

    lab: LabDatabase
    load: DatabaseLoad
    journal_dir: Path

    def deploy(self, change: SchemaChange | IndexChange) -> None:
        deploy(change, InPlace(), environment="memories")

    def view(self) -> JournalView:
        """Return the newest deployment's journal."""
        return max(
            (journal.read() for journal in journals(self.journal_dir)), key=lambda view: view.opened.at
        )

    def state_of_any(self) -> str:
        """Return the newest deployment's state; empty: there is none yet."""
        return self.view().state if list(self.journal_dir.glob("[!.]*/journal.jsonl")) else ""

    def state(self, like: DatabaseState | None = None) -> DatabaseState:
        """Return the database's state; content as far as it was there for `like`."""
        return observe_database(self.lab.database, deployment="test", like=like, indexes_of=TABLE)

    def index(self, **fields: Any) -> IndexChange:
        return IndexChange(
            **{
                "database": self.lab.name,
                "table": TABLE,
                "column": "embedding",
                "index": INDEX,
                "how": Hnsw(m=16, ef_construction=64, ef_search=200),
                "gate": IndexGate(queries=20, min_recall=0.9, max_latency_ratio=20),
                **fields,
            }
        )


@pytest.fixture(scope="module")
def kept_database(
    pool: LabZfs, tmp_path_factory: pytest.TempPathFactory, lab_cache: Path
) -> Iterator[LabDatabase]:
    """One database for all tests here: each leaves it as it was, or says what it left."""
    # its transactions count as lost too, as they should: here they would blur the count of users' own
    quiet = {"autovacuum": "off"}
    size = LARGE if os.environ.get("LAB_DATABASE") == "large" else {}
    with LabDatabase(
        tmp_path_factory.mktemp("memories"), zfs=pool, cache=lab_cache, settings=quiet, **size
    ) as running:
        yield running


@pytest.fixture
def memories(
    kept_database: LabDatabase,
    prefect_api: PrefectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Memories]:
    """The database with readers and writers; a deployment that a test leaves is taken back."""
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(tmp_path / "journal"))
    monkeypatch.setenv("SOVEREIGN_HOST", "here")
    monkeypatch.setenv("SOVEREIGN_BASELINE_S", "0.3")
    save_database(kept_database.database)
    Environment(monitoring=SHORT, backup_keep_s=0.001).save("memories", overwrite=True)
    with DatabaseLoad(kept_database.database, tmp_path / "load") as load:
        running = Memories(kept_database, load, tmp_path / "journal")
        yield running
        for view in (journal.read() for journal in journals(tmp_path / "journal")):
            if view.state == "promoted":
                roll_back(view.opened.deployment, "the test is over", accept_loss=True)


def seen(load: DatabaseLoad, what: str, *, may_be_refused: bool = False) -> LoadFigures:
    """Return what users saw; whatever is done to the schema, no read has failed."""
    figures = load.figures()
    log.info(
        "%s: %d reads, %d failed, %d refused, longest stall %.0f ms, p50 %.1f ms",
        what,
        figures.reads,
        figures.failed,
        figures.refused,
        1000 * figures.longest_stall_s,
        1000 * figures.p50_s,
    )
    assert figures.failed == 0
    assert may_be_refused or figures.refused == 0
    return figures


def assert_as_before(memories: Memories, before: DatabaseState) -> None:
    assert memories.view().state == "rolled_back", memories.view().reason
    now = memories.state(before)
    assert now.differences(before) == ()
    assert now.tables == before.tables


def test_a_good_schema_change_is_promoted_and_taken_back_by_its_way_down(
    memories: Memories, tmp_path: Path
) -> None:
    before = memories.state()
    memories.deploy(good_expand(tmp_path / "m").change(memories.lab.name))

    view = memories.view()
    assert view.state == "promoted"
    assert view.plan
    assert "rehears" in " ".join(view.plan.notes).lower()
    after = memories.state(before)
    assert after.revisions != before.revisions
    assert after.tables == before.tables
    roll_back(view.opened.deployment, "second thoughts")
    assert_as_before(memories, before)
    seen(memories.load, "expand and back")


def test_what_fails_on_the_copy_is_refused_before_anything_is_touched(
    memories: Memories, tmp_path: Path
) -> None:
    before = memories.state()
    with pytest.raises(TakenBackError, match="settings_pkey"):
        memories.deploy(bad_half_way(tmp_path / "m").change(memories.lab.name))

    assert memories.view().state == "aborted"
    assert memories.view().intents == ()
    assert memories.state(before).differences(before) == ()
    seen(memories.load, "refused by the rehearsal")


#: What builds it, what is said of it, and what it is rehearsed on.
Bad = tuple[Callable[[Path], LabMigrations], str, str | None]
BAD: dict[str, Bad] = {
    # without the rows a copy does not tell: it fails on the live database
    "fails half-way": (bad_half_way, "settings_pkey", "schema_copy"),
    "breaks a query": (bad_rename, "setting", None),
    "makes a query slow": (bad_slow, "earlier-of-its-kind", None),
    "loses rows": (bad_delete, r"public\.settings", None),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_schema_change_comes_back_to_the_same_checksums(
    memories: Memories, tmp_path: Path, bad: Bad
) -> None:
    build, words, rehearsal = bad
    before = memories.state()
    migrations = build(tmp_path / "m")
    rules = ("delete-without-where", *migrations.accepted_lint)
    save_database(memories.lab.database.model_copy(update={"rehearsal": rehearsal}))
    with pytest.raises(TakenBackError, match=words):
        memories.deploy(migrations.change(memories.lab.name, accepted_lint=rules))

    assert memories.view().intents
    assert_as_before(memories, before)
    seen(memories.load, "bad change and back", may_be_refused=build is bad_delete)


def test_what_only_the_snapshot_brings_back_loses_as_many_commits_as_it_said(
    memories: Memories, tmp_path: Path
) -> None:
    before = memories.state()
    change = good_contract(tmp_path / "m").change(memories.lab.name, max_loss_s=0)
    memories.deploy(change)
    view = memories.view()
    assert view.state == "promoted"

    with pytest.raises(LossNotAcceptedError, match="accept_loss"):
        roll_back(view.opened.deployment, "second thoughts")
    assert memories.view().state == "promoted"
    ours = f"{view.opened.deployment}-schema"
    assert not [name for name in prune_ways_back(Settings()) if name.endswith(ours)]  # it is armed
    roll_back(view.opened.deployment, "second thoughts", accept_loss=True)

    assert_as_before(memories, before)
    notes = [
        entry.words for entry in memories.view().entries if isinstance(entry, Noted) and entry.about == "loss"
    ]
    lost, told = (
        len(memories.load.lost()),
        int(re.search(r"loses ([\d,]+) commits", notes[-1])[1].replace(",", "")),
    )
    assert lost
    # beside the users' confirmed ones: ours, and those that the stop cut off from their answer
    assert lost + _OURS <= told <= lost + _OURS + memories.load.figures().unknown
    seen(memories.load, "snapshot and back", may_be_refused=True)
    (gone,) = prune_ways_back(Settings())
    assert gone.endswith(ours)


def test_a_good_index_serves_while_the_old_one_is_kept_and_comes_back_at_once(memories: Memories) -> None:
    before = memories.state()
    memories.deploy(memories.index())

    view, after = memories.view(), memories.state(before)
    assert view.state == "promoted"
    assert "m='16'" in after.indexes[f"public.{INDEX}"].definition
    assert len(after.indexes) > len(before.indexes)  # the old one is still there
    roll_back(view.opened.deployment, "second thoughts")
    assert_as_before(memories, before)
    seen(memories.load, "index and back")


def test_an_index_with_too_little_recall_never_serves(memories: Memories) -> None:
    before = memories.state()
    poor = memories.index(how=Hnsw(m=2, ef_construction=4, ef_search=1), gate=IndexGate(min_recall=1.0))
    with pytest.raises(TakenBackError, match="recall"):
        memories.deploy(poor)

    assert_as_before(memories, before)
    seen(memories.load, "poor index and back")


def test_a_server_that_restarts_on_the_way_back_is_waited_for(memories: Memories, tmp_path: Path) -> None:
    before = memories.state()

    def restart() -> None:
        wait_until(lambda: memories.state_of_any() == "rolling_back", timeout_s=60, what="the way back")
        memories.lab.run(memories.lab.service.stop)
        time.sleep(4)
        memories.lab.run(memories.lab.service.start)

    with ThreadPoolExecutor(1) as beside:
        restarted = beside.submit(restart)
        with pytest.raises(TakenBackError, match="Rolled back and verified"):
            memories.deploy(bad_rename(tmp_path / "m").change(memories.lab.name))
        restarted.result()

    assert_as_before(memories, before)


def test_what_has_changed_since_the_plan_was_made_stops_the_deployment(
    memories: Memories, tmp_path: Path
) -> None:
    change, settings = good_expand(tmp_path / "m").change(memories.lab.name), Settings()
    opened = opening(fleet=NOBODY, database=memories.lab.database)
    plan = plan_now(change, InPlace(), opened, settings)
    assert renewed(plan, opened, settings).steps == plan.steps
    memories.lab.query("ALTER TABLE public.settings ADD COLUMN by_hand text")
    try:
        with pytest.raises(WorldMovedError, match="Since the plan was made"):
            renewed(plan, opened, settings)
    finally:
        memories.lab.query("ALTER TABLE public.settings DROP COLUMN by_hand")


def test_a_strategy_that_makes_no_sense_is_refused_before_anything_is_touched(
    memories: Memories, tmp_path: Path
) -> None:
    before = memories.state()
    change = good_expand(tmp_path / "m").change(memories.lab.name)
    with pytest.raises(TakenBackError, match="use the strategy in_place"):
        deploy(change, BlueGreen(), environment="memories")

    assert memories.view().state == "aborted"
    assert memories.state(before).differences(before) == ()
