"""Content that was promoted is watched: it is there as long as a node that answers keeps it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.postgres import Postgres
from rules.entries import Planned, line
from rules.journal import JournalView
from tasks import kubo
from tasks.content_watch import content_health
from tasks.journal import JournalFile
from tests.tasks.databases import fresh_database
from tests.tasks.deploying import settings_in
from tests.tasks.pinning import OTHER_V0, content_on, fill, lab_nodes
from tests.tasks.releasing import Shelf

NODES = ("one", "two")


@pytest.fixture(scope="module")
def promoted(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shelf, JournalView]]:
    """A release that was promoted, once for all tests."""
    directory = tmp_path_factory.mktemp("watched")
    with lab_nodes(directory / "kubo") as lab, fresh_database(postgres) as database:
        fill(database, {"site": None, "logo": None})
        made = Shelf(lab, content_on(lab), database, settings_in(directory), directory)
        yield made, made.left(made.change("first"), "promoted").read()


@pytest.fixture
def shelf(promoted: tuple[Shelf, JournalView]) -> Iterator[Shelf]:
    """What a test does to nodes and rows is mended after it."""
    made, rows = promoted[0], promoted[0].rows
    pins = {node: made.lab.pins(node) for node in NODES}
    yield made
    for node in made.lab.nodes:
        made.lab.mend(node.name)
    for name, cids in pins.items():
        for cid in cids:
            kubo.pin(made.lab.node(name), cid, timeout_s=20)
    for key, text in rows.items():
        made.refer(key, text)


@pytest.fixture
def view(promoted: tuple[Shelf, JournalView]) -> JournalView:
    return promoted[1]


def logo(shelf: Shelf) -> str:
    return str(shelf.rows["logo"])


def test_content_that_each_node_keeps_is_well(shelf: Shelf, view: JournalView) -> None:
    assert content_health(view) == ({"content": True}, "")


def test_a_node_that_is_away_is_told_and_does_no_harm(shelf: Shelf, view: JournalView) -> None:
    shelf.lab.kill("two")
    probes, words = content_health(view)
    assert probes == {"content": True}
    assert "two does not answer" in words
    assert f"{logo(shelf)} is pinned on 1 of the 2 nodes" in words


def test_when_no_node_answers_nothing_is_known(shelf: Shelf, view: JournalView) -> None:
    for node in NODES:
        shelf.lab.kill(node)
    probes, words = content_health(view)
    assert probes == {}, "what nobody can be asked about is not gone"
    assert "Bring a node back" in words


def test_one_replica_too_few_is_told(shelf: Shelf, view: JournalView) -> None:
    kubo.unpin(shelf.lab.node("two"), logo(shelf))
    assert content_health(view) == (
        {"content": True},
        f"{logo(shelf)} is pinned on 1 of the 2 nodes that are to hold it",
    )


def test_content_that_no_node_keeps_any_more_is_gone(shelf: Shelf, view: JournalView) -> None:
    for node in shelf.lab.nodes:
        kubo.unpin(node, logo(shelf))
    probes, words = content_health(view)
    assert probes == {"content": False}
    assert f"{logo(shelf)} is pinned on 0 of the 2 nodes" in words


@pytest.mark.parametrize("other", [None, OTHER_V0])
def test_what_no_row_refers_to_any_more_is_not_missed(
    shelf: Shelf, view: JournalView, other: str | None
) -> None:
    gone = logo(shelf)
    shelf.refer("logo", other)
    for node in shelf.lab.nodes:
        kubo.unpin(node, gone)
    assert content_health(view) == ({"content": True}, "")


def test_a_full_node_is_told_before_it_takes_no_more(shelf: Shelf, view: JournalView) -> None:
    used = kubo.storage(shelf.lab.node("two")).used_bytes
    shelf.lab.storage_max("two", used)
    probes, words = content_health(view)
    assert probes == {"content": True}
    assert f"of {used:,} bytes, more than 90%" in words
    assert words.startswith("two uses")


def test_a_database_that_is_away_leaves_it_unknown(shelf: Shelf, view: JournalView) -> None:
    address = shelf.database.address.model_copy(update={"database": "not_there"})
    nowhere = shelf.database.model_copy(update={"address": address})
    entries = (view.opened.model_copy(update={"database": nowhere}), *view.entries[1:])
    probes, words = content_health(JournalView(opened=entries[0], entries=entries))
    assert probes == {}
    assert "not_there" in words


def test_what_has_no_content_or_no_plan_is_nothing_to_look_at(shelf: Shelf, view: JournalView) -> None:
    bare = view.opened.model_copy(update={"content": None})
    assert content_health(JournalView(opened=bare, entries=(bare, *view.entries[1:]))) == ({}, "")
    assert content_health(JournalView(opened=view.opened, entries=(view.opened,))) == ({}, "")


def test_it_survives_the_journal(shelf: Shelf, view: JournalView) -> None:
    copy = JournalFile(shelf.settings.journal_dir, "copy")
    copy.adopt(b"".join(line(entry) for entry in view.entries))
    assert copy.read() == view
    assert any(isinstance(entry, Planned) and entry.plan.content for entry in copy.read().entries)
