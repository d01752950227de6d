"""Content is taken back from its journal alone, whatever users, nodes and people have done meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.kubo import LabKubo
from lab.postgres import Postgres
from rules.database_undo import RestoreSnapshot
from rules.entries import Intent, line
from rules.fleet import NOBODY
from rules.migration import Migration, VersionTable
from tasks import kubo
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.observed import differences_from_promised
from tests.tasks.databases import fresh_database
from tests.tasks.deploying import opening, settings_in
from tests.tasks.pinning import OTHER_V0, as_new, content_on, fill, lab_nodes
from tests.tasks.releasing import Shelf, moved, plan_of, told


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabKubo]:
    with lab_nodes(tmp_path_factory.mktemp("kubo")) as lab:
        yield lab


@pytest.fixture
def shelf(running: LabKubo, postgres: Postgres, tmp_path: Path) -> Iterator[Shelf]:
    """The first release is deployed for good, and its journal has ended."""
    settings = settings_in(tmp_path, only_host=True, rollback_deadline_s=20.0)
    with fresh_database(postgres) as database:
        fill(database, {"site": None, "logo": None, "other": None})
        made = Shelf(running, content_on(running), database, settings, tmp_path)
        made.left(made.change("first"), "promoted", "completed")
        assert finish_due(settings)
        yield made
        as_new(running)


def test_a_release_goes_back_to_what_rows_referred_to(shelf: Shelf) -> None:
    before = shelf.rows, shelf.lab.observed()
    view = shelf.take_back(shelf.left(shelf.change("second")))
    assert view.state == "rolled_back", view.reason
    assert (shelf.rows, shelf.lab.observed()) == before
    shelf.collect()


def test_what_another_row_refers_to_by_now_stays_pinned_and_all_else_goes_back(shelf: Shelf) -> None:
    before = shelf.rows
    journal = shelf.left(shelf.change("second"))
    logo = shelf.rows["logo"]
    shelf.refer("other", logo)
    view = shelf.take_back(journal)
    assert view.state == "rolled_back", view.reason
    assert shelf.rows == {**before, "other": logo}
    assert told("unpinned", view, lambda words: f"{logo} stays" in words)
    shelf.collect()


def test_rows_that_somebody_else_has_changed_or_removed_are_told_and_left(shelf: Shelf) -> None:
    journal, theirs = shelf.left(shelf.change("second")), shelf.rows["site"]
    shelf.refer("logo", theirs)
    shelf.remove("site")
    view = shelf.take_back(journal)
    assert view.state == "rolled_back", view.reason
    assert shelf.rows == {"logo": theirs, "other": None}
    assert told("references", view, lambda words: "row site is gone" in words and "row logo refers" in words)
    shelf.collect()


def test_a_node_that_was_away_and_has_now_what_rows_refer_to_keeps_it(shelf: Shelf) -> None:
    """The same is deployed again once a node is back; what it pins then, rows refer to already."""
    for cid in shelf.lab.pins("two"):
        kubo.unpin(shelf.lab.node("two"), cid)
    journal = shelf.left(shelf.change("first"))
    view = shelf.take_back(journal)
    assert view.state == "rolled_back", view.reason
    shelf.collect()


def test_a_node_that_is_back_with_its_pins_when_all_is_looked_at_does_no_harm(shelf: Shelf) -> None:
    journal = shelf.left(shelf.change("second"), up_to=3)
    shelf.lab.kill("two")
    again = threading.Timer(2.0, shelf.lab.start_node, ("two",))
    shelf.lab.kill("one")  # so that it is waited until one of them answers
    again.start()
    try:
        view = shelf.take_back(journal)
    finally:
        again.join()
        shelf.lab.mend("one")
    assert view.state == "rolled_back", view.reason
    assert told("unpinned", view, lambda words: "two does not answer and keeps" in words)
    shelf.collect()


def test_without_any_node_it_fails_and_works_once_one_is_back(shelf: Shelf) -> None:
    before = shelf.rows
    shelf.settings = shelf.settings.model_copy(update={"rollback_deadline_s": 1.0})
    journal = shelf.left(shelf.change("second"))
    for node in shelf.lab.nodes:
        shelf.lab.kill(node.name)
    view = shelf.take_back(journal)
    assert view.state == "rollback_failed"
    assert "Bring a node back" in view.reason
    assert shelf.rows == before, "whoever reads a row must not wait for that"
    for node in shelf.lab.nodes:
        shelf.lab.mend(node.name)


# --- promoted --------------------------------------------------------------------------------------


def test_content_that_every_node_has_lost_is_still_taken_back(shelf: Shelf) -> None:
    journal = shelf.left(shelf.change("second"), "promoted")
    for node in shelf.lab.nodes:
        for cid in set(shelf.rows.values()) - {None}:
            kubo.unpin(node, str(cid))
    assert differences_from_promised(journal.read().opened, plan_of(journal), touched=set()) == ()


def test_a_row_that_a_user_has_changed_does_not_keep_the_others_from_going_back(shelf: Shelf) -> None:
    journal = shelf.left(shelf.change("second"), "promoted")
    opened, plan = journal.read().opened, plan_of(journal)
    shelf.refer("logo", OTHER_V0)
    assert differences_from_promised(opened, plan, touched=set()) == ()
    shelf.remove("site")
    moved_on = differences_from_promised(opened, plan, touched=set())
    assert f"row logo refers to {OTHER_V0}" in moved_on[0]
    assert "row site is gone" in moved_on[1]


# --- kept through the bake -------------------------------------------------------------------------


def test_a_node_that_is_gone_for_ever_keeps_no_other_from_forgetting(shelf: Shelf) -> None:
    old = {cid for cid in shelf.rows.values() if cid}
    shelf.left(shelf.change("second"), "promoted", "completed")
    shelf.lab.kill("one")
    removed = finish_due(shelf.settings)
    assert old.isdisjoint(shelf.lab.pins("two"))
    assert len(removed) == 1
    shelf.lab.mend("one")
    assert finish_due(shelf.settings), "it is done as soon as the node is back"
    assert old.isdisjoint(shelf.lab.pins("one"))
    assert finish_due(shelf.settings) == ()


def test_a_later_release_in_its_bake_keeps_what_an_earlier_one_kept(shelf: Shelf) -> None:
    first = {cid for cid in shelf.rows.values() if cid}
    shelf.left(shelf.change("second"), "promoted", "superseded")
    before = shelf.rows
    later = shelf.left(shelf.change("first"), "promoted")  # back to the first one, as a change of its own
    assert finish_due(shelf.settings) == ()
    assert first <= set(shelf.lab.pins("two"))
    view = shelf.take_back(later)
    assert view.state == "rolled_back", view.reason
    assert shelf.rows == before
    shelf.collect()
    assert finish_due(shelf.settings)
    shelf.collect()
    assert first.isdisjoint(shelf.lab.pins("two"))


def test_of_two_that_have_ended_nothing_is_forgotten_that_the_rows_came_back_to(shelf: Shelf) -> None:
    shelf.left(shelf.change("second"), "promoted", "superseded")
    shelf.left(shelf.change("first"), "promoted", "completed")
    assert finish_due(shelf.settings)
    shelf.collect()
    assert set(shelf.lab.pins("one")) == {cid for cid in shelf.rows.values() if cid}


def test_a_database_that_may_go_back_as_a_whole_keeps_what_its_rows_may_refer_to_then(shelf: Shelf) -> None:
    old = {cid for cid in shelf.rows.values() if cid}
    shelf.left(shelf.change("second"), "promoted", "completed")
    table = VersionTable(table="public.alembic_version", column="version_num")
    undo = RestoreSnapshot(
        migration=Migration(revision="2", title="second", up=("SELECT 1",), record=(), unrecord=()),
        version_table=table,
        revisions=("1",),
        schema_sha256=None,
        dataset="tank/pg",
        snapshot="tank/pg@before",
        max_loss_s=60.0,
    )
    opened = opening(NOBODY, target="database-main", database=shelf.database, users=())
    schema = JournalFile(shelf.settings.journal_dir, opened.deployment)
    schema.adopt(line(opened) + line(Intent(number=0, title="apply 2", undo=undo)))
    moved(schema, "promoted")
    assert finish_due(shelf.settings) == ()
    assert old <= set(shelf.lab.pins("one"))
    moved(schema, "completed")
    assert finish_due(shelf.settings)
    assert old.isdisjoint(shelf.lab.pins("one"))


def test_what_was_pinned_by_hand_since_is_not_forgotten_again(shelf: Shelf) -> None:
    """As after a way back through a snapshot of the whole cluster, when indexes have come back."""
    old = plan_of(shelf.left(shelf.change("second"), "promoted", "completed")).content_before.references
    finish_due(shelf.settings)
    archived = str(old["logo"])
    kubo.pin(shelf.lab.node("one"), archived, timeout_s=20)
    assert finish_due(shelf.settings, again=True) == ()
    assert archived in shelf.lab.pins("one")
