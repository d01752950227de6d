"""Kubo's RPC API: what is asked for, what counts as an answer, and what is done where none comes."""

from __future__ import annotations

import hashlib
import os
import time
import tracemalloc

import pytest

from rules.ipfs import AddOptions, IpfsNode, NodeStorage
from tasks import kubo
from tasks.kubo import KuboError, KuboUnreachableError, NotFetchedError
from tests.tasks.pinning import OTHER_V0, V0, V1, answering, as_new, files_in, lab_nodes, told_node

OPTIONS = AddOptions()


def add(node, source, **how):
    how = {"options": OPTIONS, "heed": lambda: None, "timeout_s": 20, **how}
    return kubo.add(node, str(source), **how)


def row(name, cid=V0):
    return {"Name": name, "Hash": cid, "Size": "7"}


@pytest.fixture
def source(tmp_path):
    return files_in(tmp_path / "source", a__one_txt=b"one", a__two_txt=b"two" * 100_000, three_txt=b"three")


ROWS = [row(f"content/{name}") for name in ("a/one.txt", "a/two.txt", "three.txt", "a")] + [row("content")]


# --- what is asked for -----------------------------------------------------------------------------


def test_all_that_decides_on_a_cid_is_said(source):
    options = AddOptions(cid_version=1, raw_leaves=True, chunker="size-1048576", hash="blake2b-256")
    with told_node(answering(*[{**one, "Hash": V1} for one in ROWS])) as one:
        cids = add(one.node, source, options=options)
    (talk,) = one.seen
    assert (talk.method, talk.command) == ("POST", "add")
    assert dict(talk.params) == {
        "cid-version": "1",
        "raw-leaves": "true",
        "chunker": "size-1048576",
        "hash": "blake2b-256",
        "only-hash": "false",
        "pin": "true",
        "progress": "false",
    }
    assert set(cids) == {"", "a", "a/one.txt", "a/two.txt", "three.txt"}
    assert set(cids.values()) == {V1}


def test_what_is_only_hashed_is_not_pinned(source):
    with told_node(answering(*ROWS)) as one:
        add(one.node, source, only_hash=True)
    params = dict(one.seen[0].params)
    assert (params["only-hash"], params["pin"]) == ("true", "false")


def test_a_directory_comes_before_what_is_in_it_and_names_are_quoted_as_a_whole(tmp_path):
    source = files_in(tmp_path / "source")
    for path in ("b c+d/é&%.txt", "b c+d/deep/x", "b"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("x")
    rows = [row(f"content/{name}") for name in ("b c+d/é&%.txt", "b c+d/deep/x", "b", "b c+d", "b c+d/deep")]
    with told_node(answering(*rows, row("content"))) as one:
        add(one.node, source)
    names = [
        line.split(b'filename="')[1].rstrip(b'"').decode()
        for line in one.seen[0].body.split(b"\r\n")
        if b"filename=" in line
    ]
    assert names == [
        "content",
        "content%2Fb",
        "content%2Fb%20c%2Bd",
        "content%2Fb%20c%2Bd%2Fdeep",
        "content%2Fb%20c%2Bd%2Fdeep%2Fx",
        "content%2Fb%20c%2Bd%2F%C3%A9%26%25.txt",
    ]
    assert one.seen[0].body.count(b"application/x-directory") == 3


def test_progress_is_told_up_to_the_last_byte(source):
    told = []
    with told_node(answering({"Name": "content/a", "Bytes": 5}, *ROWS)) as one:
        add(one.node, source, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 3 + 300_000 + 5


def test_a_large_file_passes_through_little_memory(tmp_path):
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(128 << 20)

    def script(talk):
        while not talk.read().endswith(b"0\r\n\r\n"):
            pass
        talk.answer(row("content"))

    with told_node(script) as one:
        tracemalloc.start()
        try:
            assert add(one.node, source) == {"": V0}
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < 8 << 20


def test_pins_are_asked_for_with_a_limit_that_the_node_keeps_itself():
    with told_node(answering({"Pins": [V0]})) as one:
        kubo.pin(one.node, V0, timeout_s=30)
    assert one.commands == ["pin/add"]
    assert dict(one.seen[0].params) == {"arg": V0, "recursive": "true", "timeout": "30.000s"}


def test_the_environments_proxy_is_not_asked(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with told_node(answering({"Version": "0.40.1"})) as one:
        assert kubo.version(one.node) == "0.40.1"


def test_the_token_is_sent_and_read_anew_each_time(tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    with told_node(answering({"Version": "1"}), token_file=file) as one:
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            kubo.version(one.node)
    assert [talk.headers["authorization"] for talk in one.seen] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("secret", 0o644, "can be read by others"),
        ("two secrets", 0o600, "holds no token"),
        ("", 0o600, "holds no token"),
        ("secrét", 0o600, "holds no token"),
    ],
)
def test_a_token_that_is_none_or_that_all_can_read_is_not_sent(tmp_path, content, mode, words):
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    with told_node(answering({"Version": "1"}), token_file=file) as one:
        with pytest.raises(KuboError, match=words) as failed:
            kubo.version(one.node)
        assert one.seen == []
    assert "secr" not in str(failed.value)


def test_a_token_that_is_not_there_is_told(tmp_path):
    node = IpfsNode(name="one", api="http://127.0.0.1:1", token_file=str(tmp_path / "none"))
    with pytest.raises(KuboError, match="token cannot be read"):
        kubo.version(node)


# --- what counts as an answer ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {"RepoSize": 5, "StorageMax": 10},
        {"RepoSize": "5", "StorageMax": "10", "NumObjects": "3"},
        {"SizeStat": {"RepoSize": 5, "StorageMax": 10}, "NumObjects": 3},
    ],
)
def test_how_full_a_node_is_may_be_said_in_several_ways(said):
    with told_node(answering(said)) as one:
        assert kubo.storage(one.node) == NodeStorage(used_bytes=5, max_bytes=10)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (kubo.storage, {"RepoSize": 5}),
        (kubo.storage, {"RepoSize": "many", "StorageMax": 1}),
        (kubo.version, {"version": "1"}),
        (kubo.version, ["0.22"]),
        (kubo.version, "<html>Welcome</html>"),
        (kubo.peer, {"Addresses": []}),
        (lambda node: kubo.pinned(node, [V0]), {"Keys": ["Qm"]}),
        (lambda node: kubo.below(node, V0), {"Objects": []}),
    ],
)
def test_what_kubo_would_not_say_is_no_answer(ask, said):
    with told_node(answering(said)) as one, pytest.raises(KuboError, match="as Kubo does"):
        ask(one.node)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("404 Not Found", "port 5001"),
        ("405 Method Not Allowed", "port 5001"),
        ("403 Forbidden", "token_file"),
        ("401 Unauthorized", "token_file"),
        ("302 Found", "proxy"),
        ("502 Bad Gateway", "proxy"),
    ],
)
def test_an_answer_of_something_else_says_what_to_look_at(status, words):
    with told_node(answering("404 page not found", status=status)) as one:
        with pytest.raises(KuboError, match=words) as failed:
            kubo.version(one.node)
        assert not isinstance(failed.value, KuboUnreachableError)


def test_an_error_of_the_node_is_told_in_its_words(source):
    said = {"Message": "write blocks: no space left on device", "Code": 0, "Type": "error"}
    with (
        told_node(answering(said, status="500 Internal Server Error")) as one,
        pytest.raises(KuboError, match="failed at add: write blocks: no space left on device") as failed,
    ):
        add(one.node, source)
    assert failed.value.said == said["Message"]


def test_an_error_that_comes_after_a_good_answer_counts(source):
    with told_node(answering(*ROWS, trailer="no space left on device")) as one:
        with pytest.raises(KuboError, match="in the middle of add: no space left") as failed:
            add(one.node, source)
        assert failed.value.said == "no space left on device"
        with pytest.raises(KuboError, match="no space left"):
            kubo.pin(one.node, V0, timeout_s=5)
        with pytest.raises(KuboError, match=r"in the middle of Qm.*no space left"):
            kubo.read(one.node, V0, timeout_s=5)


def test_an_error_among_the_rows_counts(source):
    said = {"Message": "disk quota exceeded", "Code": 0, "Type": "error"}
    with told_node(answering(*ROWS, said)) as one, pytest.raises(KuboError, match="disk quota exceeded"):
        add(one.node, source)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],  # no root
        [*ROWS[1:]],  # a file is missing
        [ROWS[-1], *ROWS[:-1]],  # the root is not the last
        [*ROWS[:-1], row("content/more"), ROWS[-1]],
        [*ROWS[:-1], row("content", "bafy?")],
        [*ROWS[:-1], {"Name": "content", "Hash": 5}],
        [*ROWS[:-1], {"Hash": V0}],
        ["torn", *ROWS],
        [],
    ],
)
def test_rows_that_are_not_those_of_what_was_sent_are_no_answer(source, rows):
    with told_node(answering(*rows)) as one, pytest.raises(KuboError, match="as Kubo does"):
        add(one.node, source)


def test_an_answer_that_breaks_off_is_told_as_that(source):
    def script(talk):
        talk.read_body()
        talk.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}\r\n")

    with told_node(script) as one:
        for ask in (lambda: add(one.node, source), lambda: kubo.read(one.node, V0, timeout_s=5)):
            with pytest.raises(KuboUnreachableError, match="not to its end"):
                ask()


def test_only_what_a_node_has_pinned_itself_counts():
    kinds = {V0: "recursive", OTHER_V0: "indirect through Qm"}

    def script(talk):
        cid = dict(talk.params)["arg"]
        if cid not in kinds:
            error = {"Message": f"path '{cid}' is not pinned", "Code": 0, "Type": "error"}
            talk.answer(error, status="500 Internal Server Error")
        else:
            talk.answer({"Keys": {cid: {"Type": kinds[cid], "Name": ""}}})

    with told_node(script) as one:
        assert kubo.pinned(one.node, [V1, OTHER_V0, V0]) == (V0,)


def test_a_question_that_failed_does_not_mean_that_it_is_not_pinned():
    error = {"Message": "pinner is closed", "Code": 0, "Type": "error"}
    with told_node(answering(error, status="500 Internal Server Error")) as one:
        with pytest.raises(KuboError, match="pinner is closed"):
            kubo.pinned(one.node, [V0])
        with pytest.raises(KuboError, match="pinner is closed"):
            kubo.unpin(one.node, V0)


# --- real nodes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lab_nodes(tmp_path_factory.mktemp("kubo"), with_token=True) as lab:
        yield lab


@pytest.fixture
def fresh(tmp_path):
    """Content that no node holds yet."""
    files = {"a__one_txt": os.urandom(30), "a__two_txt": os.urandom(600_000), "three_txt": os.urandom(30)}
    return files_in(tmp_path / "fresh", **files)


@pytest.fixture
def lab(running):
    yield running
    as_new(running)


def test_content_comes_back_from_another_node_byte_for_byte(lab, fresh):
    one, two = lab.nodes
    hashed = add(one, fresh, only_hash=True)
    assert lab.pins("one") == ()
    cids = add(one, fresh)
    assert cids == hashed
    assert lab.pins("one") == (cids[""],)
    kubo.pin(two, cids["a"], timeout_s=20)
    assert kubo.pinned(two, sorted(cids.values())) == (cids["a"],)
    content = (fresh / "a/two.txt").read_bytes()
    assert kubo.read(two, cids["a/two.txt"], timeout_s=20) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert kubo.below(two, cids["a"]) == {cids["a/one.txt"], cids["a/two.txt"]}
    assert kubo.below(one, cids[""]) == set(cids.values()) - {cids[""]}


def test_repeating_each_effect_changes_nothing(lab, fresh):
    one, two = lab.nodes
    first = add(one, fresh)
    assert add(one, fresh) == first
    for _ in range(2):
        kubo.connect(two, one)
        kubo.pin(two, first[""], timeout_s=20)
    assert lab.pins("two") == (first[""],)
    for _ in range(2):
        kubo.unpin(two, first[""])
    assert lab.pins("two") == ()


def test_one_file_is_its_own_root(lab, fresh):
    cids = add(lab.node("one"), fresh / "three.txt")
    assert cids == {"": add(lab.node("one"), fresh, only_hash=True)["three.txt"]}


@pytest.mark.parametrize("how", ["trailer", "message"])
def test_a_full_disk_is_told_and_nothing_is_pinned(lab, fresh, how):
    lab.full("one", how)
    with pytest.raises(KuboError) as failed:
        add(lab.node("one"), fresh)
    assert "no space left on device" in failed.value.said
    assert lab.pins("one") == ()


def test_what_no_node_gives_is_not_waited_for_longer_than_told(lab, fresh):
    cids = add(lab.node("one"), fresh)
    lab.cut("two")
    began = time.monotonic()
    with pytest.raises(NotFetchedError, match="within 1 s"):
        kubo.pin(lab.node("two"), cids[""], timeout_s=1)
    with pytest.raises(NotFetchedError, match="within 1 s"):
        kubo.read(lab.node("two"), cids["three.txt"], timeout_s=1)
    with pytest.raises(KuboError, match=r"two does not reach one: .*give its address as `swarm`"):
        kubo.connect(lab.node("two"), lab.node("one"))
    assert time.monotonic() - began < 15


def test_nodes_that_lost_each_other_are_connected_again(lab):
    lab.disconnect("two")  # by itself it comes back too, sooner or later
    kubo.connect(lab.node("one"), lab.node("two"))
    assert lab.peers("one") == ("two",)


def test_the_address_in_the_block_is_the_one_that_is_dialled(lab):
    lab.disconnect("two")
    said = kubo.peer(lab.node("two")).addresses[0].split("/p2p/")[0]
    kubo.connect(lab.node("one"), lab.node("two").model_copy(update={"swarm": said}))
    assert lab.peers("one") == ("two",)


def test_of_several_addresses_each_is_tried_and_an_unknown_one_last():
    addresses = ["/ip4/10.0.0.1/tcp/4001/p2p/QmP", "/ip4/10.0.0.2/tcp/4001/p2p/QmP"]

    def script(talk):
        talk.answer({"Message": "failed to dial", "Code": 0, "Type": "error"}, status="500 No")

    with (
        told_node(answering({"ID": "QmP", "Addresses": addresses})) as to,
        told_node(script) as one,
        pytest.raises(KuboError, match="one does not reach one"),
    ):
        kubo.connect(one.node, to.node)
    assert [dict(talk.params)["arg"] for talk in one.seen] == [*addresses, "/p2p/QmP"]
    with told_node(answering({"ID": "QmP", "Addresses": None})) as to, told_node(answering({})) as one:
        kubo.connect(one.node, to.node.model_copy(update={"swarm": "/dns4/two/tcp/4001"}))
    assert [dict(talk.params)["arg"] for talk in one.seen] == ["/dns4/two/tcp/4001/p2p/QmP"]


def test_without_its_token_a_node_does_nothing(lab):
    bare = lab.node("one").model_copy(update={"token_file": None})
    with pytest.raises(KuboError, match=r"403.*token_file"):
        kubo.version(bare)


def test_a_directory_is_not_read_as_a_file(lab, fresh):
    cids = add(lab.node("one"), fresh)
    with pytest.raises(KuboError, match="directory"):
        kubo.read(lab.node("one"), cids["a"], timeout_s=10)
