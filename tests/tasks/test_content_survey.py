"""What is known before content is planned, and what is refused while nothing was touched."""

from __future__ import annotations

import os

import pytest

from rules.errors import InvalidRequestError
from rules.ipfs import AddOptions, IpfsNode, NodeStorage
from tasks import kubo
from tasks.content_files import ContentFilesError
from tasks.content_state import observe_content
from tasks.content_survey import survey_content
from tasks.kubo import KuboError, KuboUnreachableError
from tests.tasks.databases import execute, fresh_database
from tests.tasks.pinning import (
    V1,
    answering,
    as_new,
    content_on,
    files_in,
    fill,
    lab_nodes,
    release,
    told_node,
)

NAME = "2026-01-02-papers-1"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lab_nodes(tmp_path_factory.mktemp("kubo")) as lab:
        yield lab


@pytest.fixture
def lab(running):
    yield running
    as_new(running)


@pytest.fixture
def database(postgres):
    with fresh_database(postgres) as made:
        fill(made, {"site": None, "logo": None})
        yield made


@pytest.fixture
def source(tmp_path):
    return files_in(tmp_path / "site", index_html=os.urandom(50), img__logo_svg=os.urandom(60), img__more=b"")


@pytest.fixture
def change(source):
    return release(source, {"site": "", "logo": "img/logo.svg"})


def survey(lab, database, change, **how):
    return survey_content(change, content_on(lab, **how), database, deployment=NAME)


def added(lab, source, node="one"):
    how = {"options": AddOptions(), "heed": lambda: None, "timeout_s": 20}
    return kubo.add(lab.node(node), str(source), **how)


def test_files_cids_rows_and_nodes_are_known_and_nothing_is_kept(lab, database, change, source):
    situation = survey(lab, database, change)
    assert [(file.path, file.size_bytes) for file in situation.files] == [
        ("img/logo.svg", 60),
        ("img/more", 0),
        ("index.html", 50),
    ]
    assert set(situation.cids) == {"", "img", "img/logo.svg", "img/more", "index.html"}
    assert situation.references == {"site": None, "logo": None}
    assert {name: (node.version, node.pinned) for name, node in situation.nodes.items()} == {
        "one": ("0.22.0", ()),
        "two": ("0.22.0", ()),
    }
    assert situation.away == {}
    assert lab.observed() == {"one": {"pins": []}, "two": {"pins": []}}
    assert not lab.has("one", situation.cids[""])
    assert added(lab, source) == situation.cids


def test_what_is_pinned_of_old_and_new_is_known(lab, database, change, source):
    old = added(lab, files_in(source.parent / "old", a=os.urandom(9)), node="two")["a"]
    kubo.pin(lab.node("two"), old, timeout_s=20)
    execute(database, f"UPDATE documents SET cid = '{old}' WHERE name = 'logo'")  # noqa: S608
    new = added(lab, source)
    situation = survey(lab, database, change)
    assert situation.nodes["one"].pinned == (new[""],)
    assert situation.nodes["two"].pinned == (old,)


def test_nodes_that_lost_each_other_are_connected(lab, database, change):
    lab.disconnect("two")
    survey(lab, database, change)
    assert lab.peers("one") == ("two",)


def test_a_node_that_is_away_is_named_and_the_rest_goes_on(lab, database, change):
    lab.kill("two")
    situation = survey(lab, database, change, replicas=1)
    assert set(situation.nodes) == {"one"}
    assert "Connection refused" in situation.away["two"]


def test_a_node_that_hangs_is_away(lab, database, change, monkeypatch):
    monkeypatch.setattr(kubo, "_ASK_S", 1.0)
    lab.hang("two")
    assert "within 1 s" in survey(lab, database, change, replicas=1).away["two"]


# --- refused ---------------------------------------------------------------------------------------


def refused(lab, database, change, words, **how):
    with pytest.raises(InvalidRequestError, match=words) as failed:
        survey(lab, database, change, **how)
    assert "Nothing was touched." in str(failed.value)
    assert all(node is None or node == {"pins": []} for node in lab.observed().values())


def test_other_files_than_declared_are_refused(lab, database, change, source):
    (source / "index.html").write_text("changed since")
    refused(lab, database, change, f"declared was {change.artefact.sha256}")


def test_files_that_cannot_be_added_are_refused(lab, database, change, source):
    (source / "link").symlink_to("index.html")
    with pytest.raises(ContentFilesError, match="link is a link"):
        survey(lab, database, change)


@pytest.mark.parametrize("path", ["img/logo", "img/logo.svg/x", "index", "/index.html"])
def test_a_path_that_the_content_has_not_is_refused(lab, database, change, path):
    if path.startswith("/"):
        with pytest.raises(ValueError, match="pattern"):
            type(change).model_validate({**change.model_dump(), "references": {"site": path}})
        return
    change = change.model_copy(update={"references": {"site": path}})
    refused(lab, database, change, f"has no {path}, which rows are to refer to")


def test_a_row_that_is_not_there_is_refused(lab, database, change):
    change = change.model_copy(update={"references": {"site": "", "sight": ""}})
    refused(lab, database, change, "documents has no row whose name is sight")


def test_fewer_nodes_than_replicas_are_refused(lab, database, change):
    refused(lab, database, change, "3 nodes, and 2 of 2 answer", replicas=3)
    lab.kill("one")
    refused(lab, database, change, "2 nodes, and 1 of 2 answer.*one does not answer id")


def test_nodes_that_do_not_reach_each_other_are_refused(lab, database, change):
    lab.cut("two")
    refused(lab, database, change, "two could not fetch the content from one: neither reaches the other")


def test_what_a_node_has_no_room_for_is_refused(lab, database, tmp_path):
    large = files_in(tmp_path / "large", a=os.urandom(400_000), b=os.urandom(10))
    used = kubo.storage(lab.node("two")).used_bytes
    lab.storage_max("two", used + 200_000)
    all_of_it = release(large, {"site": ""})
    refused(lab, database, all_of_it, r"two would use .* bytes with the new content, allowed are 90%")
    # the first node gets all of it, the others what is referred to
    survey(lab, database, release(large, {"site": "b"}), max_used_ratio=1.0)
    lab.mend("two")
    lab.storage_max("one", used + 200_000)
    refused(lab, database, release(large, {"site": "b"}), "one would use", max_used_ratio=1.0)


def test_what_a_node_has_already_needs_no_room(lab, database, change, source):
    cids = added(lab, source)
    for path in ("", "img/logo.svg"):
        kubo.pin(lab.node("two"), cids[path], timeout_s=20)
    for name in ("one", "two"):
        lab.storage_max(name, 1)
    assert survey(lab, database, change).nodes["one"].storage.max_bytes == 1


def test_options_that_a_node_cannot_follow_are_refused(lab, database, change):
    options = AddOptions(cid_version=1, raw_leaves=True)
    refused(
        lab,
        database,
        change,
        r"one cannot say which CIDs .* with cid_version 1, raw_leaves True.*cid-version=0 only",
        options=options,
    )


def test_a_cid_of_another_kind_than_the_old_one_is_refused_with_what_keeps_it(lab, database, change):
    execute(database, f"UPDATE documents SET cid = '{V1}' WHERE name = 'logo'")  # noqa: S608
    refused(
        lab, database, change, f"logo refers to {V1}.*cid_version 1, raw_leaves True, .*hash sha2-256.*NULL"
    )


# --- what is there now -----------------------------------------------------------------------------


def observe(content, database, cids):
    return observe_content(content, database, keys=("site", "logo"), cids=cids, deployment=NAME)


def test_rows_and_pins_are_observed_and_a_node_that_is_away_left_out(lab, database, source):
    cids = added(lab, source)
    execute(database, f"UPDATE documents SET cid = '{cids['']}' WHERE name = 'site'")  # noqa: S608
    content = content_on(lab)
    state = observe(content, database, cids.values())
    assert state.references == {"site": cids[""], "logo": None}
    assert state.pinned == {"one": (cids[""],), "two": ()}
    lab.kill("two")
    assert observe(content, database, cids.values()).pinned == {"one": (cids[""],)}
    lab.kill("one")
    with pytest.raises(KuboUnreachableError, match="No node of papers answers"):
        observe(content, database, cids.values())


def test_a_node_that_answers_and_fails_is_not_merely_away(lab, database):
    error = {"Message": "pinner is closed", "Code": 0, "Type": "error"}
    with told_node(answering(error, status="500 Internal Server Error")) as broken:
        content = content_on(lab).model_copy(update={"nodes": (*lab.nodes, broken.node)})
        with pytest.raises(KuboError, match="pinner is closed"):
            observe(content, database, (V1,))


def test_a_node_may_hold_more_than_numbers_of_32_bits_say():
    said = {"RepoSize": str(5 << 40), "StorageMax": str(2**64 - 1)}
    with told_node(answering(said)) as one:
        node: IpfsNode = one.node
        assert kubo.storage(node) == NodeStorage(used_bytes=5 << 40, max_bytes=2**64 - 1)
