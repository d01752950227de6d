"""Releases of content on real Kubo nodes: rows always resolve, and nothing they refer to is collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError
from flows.ipfs_content import update_content
from flows.recover import roll_back
from lab.content import FIRST_RELEASE, LabContent, files_of
from lab.kubo_install import why_not
from lab.prefect_server import PrefectServer
from lab.processes import wait_until
from lab.register import save_content, save_database
from rules.content_actions import UnpinContent
from rules.content_change import ContentRelease
from rules.journal import JournalView
from rules.strategy import InPlace, Rolling
from tasks.finish import finish_due
from tasks.settings import Settings
from tests.flows.host import become_host, complete, notes_of, views_of

NODES = ("one", "two")


class Library(NamedTuple):
    """Content that is known to Prefect."""

    lab: LabContent
    journal_dir: Path
    before: dict[str, Any]

    def deploy(self, change: ContentRelease) -> None:
        deploy(change, InPlace(), environment="ipfs")

    def view(self) -> JournalView:
        return views_of(self.journal_dir)[-1]

    def collect(self) -> None:
        """Let both nodes collect what is not pinned; nothing that a row refers to may be gone."""
        for node in NODES:
            self.lab.kubo.gc(node)
        assert self.lab.missing() == []

    def refused(self, match: str) -> None:
        """Deploy what must come back, and prove that it has, also after both nodes collected garbage."""
        with pytest.raises(TakenBackError, match=match):
            self.deploy(self.lab.change())
        assert self.lab.references() == {row[0]: row[1] for row in self.before["rows"]}


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do something else at the same time, to its end."""
    with ThreadPoolExecutor(1) as other:
        done = other.submit(work)
        yield
    done.result()


def pins_on(library: Library, node: str) -> bool:
    """Whether a deployment has begun to pin on a node."""
    views = views_of(library.journal_dir)
    undos = [intent.undo for view in views for intent in view.intents]
    return any(isinstance(undo, UnpinContent) and undo.node == node for undo in undos)


@pytest.fixture(scope="module")
def kept_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabContent]:
    if words := why_not():
        pytest.skip(words)
    with LabContent(tmp_path_factory.mktemp("content")) as lab:
        yield lab


@pytest.fixture
def library(
    kept_lab: LabContent, prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Library]:
    """Nodes and rows in the first release; a deployment that a test leaves is taken back."""
    become_host(monkeypatch, tmp_path / "journal", environment="ipfs")
    save_database(kept_lab.database)
    save_content(kept_lab.content, database=kept_lab.database.name)
    library = Library(kept_lab, tmp_path / "journal", kept_lab.observed())
    yield library
    for node in NODES:
        kept_lab.kubo.mend(node)
    for view in views_of(tmp_path / "journal"):
        if view.state == "promoted":
            roll_back(view.opened.deployment, "the test is over")
    assert kept_lab.observed() == library.before
    assert kept_lab.missing() == []


def test_good_content_is_promoted_survives_collection_and_comes_back(library: Library) -> None:
    library.deploy(library.lab.change())
    view = library.view()
    assert view.state == "promoted", view.reason
    new = library.lab.references()
    assert set(new.values()).isdisjoint({row[1] for row in library.before["rows"]})
    library.collect()
    assert notes_of(view, "content_verified")
    assert view.plan is not None
    assert all(str(cid) in " ".join(view.plan.notes) for cid in new.values())

    roll_back(view.opened.deployment, "a person wants it back")
    assert library.view().state == "rolled_back", library.view().reason
    library.collect()
    assert library.lab.observed() == library.before


def test_a_peer_that_cannot_be_reached_stops_it(library: Library) -> None:
    library.lab.kubo.cut("two")
    library.refused(r"two")
    library.lab.kubo.mend("two")
    library.collect()
    assert library.lab.observed() == library.before


def test_content_that_another_node_gives_wrongly_is_never_referred_to(library: Library) -> None:
    library.lab.write("c2")
    library.lab.kubo.lie("two", library.lab.cids("c2")["handbook.md"], b"something else")
    library.refused(r"handbook\.md")
    assert library.view().state == "rolled_back"


@pytest.mark.parametrize("how", ["trailer", "message"])
def test_a_full_disk_is_taken_back(library: Library, how: str) -> None:
    library.lab.kubo.full("one", how)
    library.refused(r"one")
    library.lab.kubo.mend("one")
    library.collect()
    assert library.lab.observed() == library.before


def test_a_node_that_has_no_room_is_refused_before_anything_is_touched(library: Library) -> None:
    library.lab.kubo.storage_max("one", 1000)
    library.refused(r"Nothing was touched")
    assert library.view().intents == ()


def test_a_node_that_dies_in_the_middle_leaves_rows_that_resolve(library: Library) -> None:
    def kill_once_it_pins() -> None:
        wait_until(lambda: pins_on(library, "two"), timeout_s=60, what="the second node's turn")
        library.lab.kubo.kill("two")

    with beside(kill_once_it_pins):
        library.refused(r"two")
    library.lab.kubo.start_node("two")
    library.collect()
    # what it had pinned when it died is harmless, and told
    assert any("two" in words for words in notes_of(library.view(), "unpinned"))
    left = set(library.lab.kubo.pins("two")) - set(library.before["pins"]["two"]["pins"])
    library.lab.unpin("two", *left)


def test_an_update_flow_alone_says_when_there_is_nothing_to_do(library: Library) -> None:
    assert update_content(library.lab.change()).state == "promoted"
    assert update_content(library.lab.change()).state == "aborted"
    assert finish_due(Settings()) == ()  # it may still be taken back


def test_other_strategies_make_no_sense_here(library: Library) -> None:
    with pytest.raises(TakenBackError, match="in_place"):
        deploy(library.lab.change(), Rolling(), environment="ipfs")


def test_after_the_bake_only_what_is_referred_to_is_kept(library: Library) -> None:
    library.deploy(library.lab.change())
    complete(library.journal_dir)
    assert finish_due(Settings())
    assert finish_due(Settings()) == ()
    wanted = sorted(cid for cid in library.lab.references().values() if cid)
    assert all(list(library.lab.kubo.pins(node)) == wanted for node in NODES)
    library.collect()
    # and back to the first release, as a change of its own
    library.deploy(library.lab.change(FIRST_RELEASE, files_of(FIRST_RELEASE)))
    complete(library.journal_dir)
    assert finish_due(Settings())
    assert library.lab.observed() == library.before
