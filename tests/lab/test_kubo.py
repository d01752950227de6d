"""The lab's Kubo nodes keep the contract with real ones, fail as they are told to, and leave nothing."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
import tracemalloc
from pathlib import Path

import httpx
import pytest

from lab.kubo import LabKubo
from lab.kubo_blocks import Blocks
from lab.kubo_checks import CHECKS
from lab.kubo_contract import Contract, expect_error, parts, real_nodes, rows
from lab.kubo_install import why_not
from lab.kubo_upload import Body, UploadError, receive
from lab.ports import is_listening
from lab.processes import LabError, marked, wait_until

pytestmark = pytest.mark.xdist_group("kubo")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if words := why_not():
        pytest.skip(words)
    with LabKubo(tmp_path_factory.mktemp("kubo") / "lab") as kubo:
        yield kubo


@pytest.fixture
def kubo(running):
    """Both nodes alive, unharmed and connected, whatever the last test did to them."""
    yield running
    for name in ("one", "two"):
        running.mend(name)


@pytest.fixture
def node(kubo):
    """The first node, and the second one as its other."""
    return Contract(*(node.api for node in kubo.nodes))


def own(size: int = 40) -> bytes:
    return os.urandom(size)


@pytest.mark.parametrize("name", CHECKS)
def test_the_labs_nodes_keep_the_contract(node, name):
    CHECKS[name](node)


@pytest.mark.skipif(real_nodes() is None, reason="KUBO_API and KUBO_API_2 name no real nodes")
def test_real_nodes_keep_the_contract():
    for holds in CHECKS.values():
        holds(real_nodes())


def test_a_killed_node_comes_back_with_its_pins_its_blocks_and_its_id(kubo, node):
    with node.added({"top/file": own(MIB)}) as cids:
        before = node.ask("id").json()
        kubo.kill("one")
        assert kubo.observed()["one"] is None
        assert kubo.has("one", cids["top"])
        with pytest.raises(httpx.ConnectError):
            node.ask("version")
        kubo.start_node("one")
        assert node.ask("id").json() == before
        assert cids["top"] in kubo.observed()["one"]["pins"]
        assert kubo.peers("one") == ("two",)
        assert len(node.ask("cat", cids["top/file"]).content) == MIB


def test_a_node_that_is_cut_off_answers_but_reaches_nobody_until_it_is_mended(kubo, node):
    with node.added({"file": own()}) as cids:
        kubo.cut("two")
        assert node.other.ask("version").status_code == 200
        assert kubo.peers("one") == kubo.peers("two") == ()
        for one, other in (("one", "two"), ("two", "one")):
            with pytest.raises(LabError, match="failed to dial"):
                kubo.connect(one, other)
        expect_error(node.other.ask("pin/add", cids["file"], timeout="1s"), "deadline exceeded")
        kubo.mend("two")
        assert node.other.ask("pin/add", cids["file"], timeout="30s").status_code == 200
        assert kubo.has("two", cids["file"])


def cid_of(node: Contract, content: bytes) -> str:
    """Return the CID of a file that no node has."""
    return str(node.add({"file": content}, only_hash="true")[-1]["Hash"])


def test_a_pin_that_was_given_up_is_not_set_when_its_content_can_be_had_later(kubo, node):
    content = own()
    cid = cid_of(node, content)
    expect_error(node.other.ask("pin/add", cid, timeout="0.5s"), "deadline exceeded")
    with node.added({"file": content}):
        kubo.disconnect("one")
        kubo.connect("one", "two")
        # the library goes on looking for it: a real node would have stopped
        wait_until(lambda: kubo.has("two", cid), timeout_s=30, what="the block")
        time.sleep(0.3)
        assert cid not in kubo.pins("two")


def test_a_client_that_hangs_up_ends_its_try_to_pin(kubo, node):
    content = own()
    cid = cid_of(node, content)
    with httpx.Client(trust_env=False, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{node.other_api}/api/v0/pin/add?arg={cid}")
    time.sleep(0.3)
    with node.added({"file": content}):
        kubo.disconnect("one")
        kubo.connect("one", "two")
        wait_until(lambda: kubo.has("two", cid), timeout_s=30, what="the block")
        assert cid not in kubo.pins("two")


def test_a_pin_that_a_kill_interrupts_is_not_set_after_the_start(kubo, node):
    cid = cid_of(node, own())
    asking = threading.Thread(target=_ask_in_vain, args=(node.other, cid))
    asking.start()
    pins = kubo.directory / "two" / "pins.json"
    wait_until(lambda: pins.exists() and cid in pins.read_text(), timeout_s=10, what="the pin under way")
    kubo.kill("two")
    asking.join(10)
    kubo.start_node("two")
    assert cid not in kubo.pins("two")
    assert cid not in pins.read_text()


def _ask_in_vain(node: Contract, cid: str) -> None:
    with pytest.raises(httpx.HTTPError):
        node.ask("pin/add", cid)


def test_collecting_keeps_all_below_a_pin_and_removes_the_rest(kubo, node):
    with node.added({"top/old": own(MIB), "top/sub/new": own(MIB)}) as cids:
        loose = node.add({"loose": own(MIB)}, pin="false")[-1]["Hash"]
        node.ask("pin/add", cids["top/sub"])
        node.ask("pin/rm", cids["top"])
        removed = kubo.gc("one")
        assert len(removed) >= 10
        assert kubo.has("one", cids["top/sub/new"])
        assert [kubo.has("one", cid) for cid in (loose, cids["top"], cids["top/old"])] == [False] * 3
        assert kubo.pins("one") == (cids["top/sub"],)
        assert kubo.peers("one") == ("two",)
        assert kubo.gc("one") == ()


def test_what_was_collected_can_be_added_again(kubo, node):
    content = own(MIB)
    cid = node.add({"file": content}, pin="false")[-1]["Hash"]
    kubo.gc("one")
    assert not kubo.has("one", cid)
    with node.added({"file": content}) as cids:
        assert cids["file"] == cid
        assert kubo.has("one", cid)
        assert node.ask("cat", cid).content == content


def test_a_disk_that_fills_up_while_adding_is_told_in_a_trailer_alone(kubo, node):
    kubo.full("one")
    files = {f"top/{n}": own() for n in range(4)}
    answer = node.send("POST", "add", files=parts(files))
    assert answer.status_code == 200
    assert not any(row["Name"] == "top" for row in rows(answer))
    assert _raw_add(node, files).endswith(b": no space left on device\r\n\r\n")
    stored = [row["Hash"] for row in rows(answer) if "Hash" in row]
    assert len(stored) == 2
    assert not set(stored) & set(kubo.pins("one"))


def test_a_disk_that_is_full_from_the_start_is_500(kubo, node):
    kubo.full("one", "message")
    expect_error(node.send("POST", "add", files=parts({"file": own()})), "no space left on device")
    assert node.add({"file": own()}, only_hash="true")[-1]["Hash"]
    with node.other.added({"file": own()}) as cids:
        expect_error(node.ask("pin/add", cids["file"], timeout="10s"), "no space left on device")


def _raw_add(node: Contract, files: dict[str, bytes]) -> bytes:
    """Return the whole answer: httpx does not show what comes after the content."""
    where = httpx.URL(node.api)
    request = httpx.Request("POST", f"{node.api}/api/v0/add", files=parts(files))
    content = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((where.host, where.port), timeout=20) as connection:
        connection.sendall(f"POST /api/v0/add HTTP/1.1\r\n{head}\r\n".encode() + content)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_node_lies_about_one_cid_by_whatever_path_it_is_asked(kubo, node):
    with node.added({"top/a": own(), "top/b": b"true"}) as cids:
        kubo.lie("one", cids["top/a"], b"a lie")
        assert node.ask("cat", cids["top/a"]).text == "a lie"
        assert node.ask("cat", f"{cids['top']}/a").text == "a lie"
        assert node.ask("cat", cids["top/a"]).text == "a lie"
        assert node.ask("cat", cids["top/b"]).text == "true"
        kubo.mend("one")
        assert node.ask("cat", cids["top/a"]).text != "a lie"


def test_a_node_that_hangs_takes_requests_and_answers_none_until_it_is_mended(kubo, node):
    kubo.hang("one")
    with httpx.Client(trust_env=False, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{node.api}/api/v0/version")
    kubo.mend("one")
    assert node.ask("version").status_code == 200


def test_a_node_says_that_it_may_hold_as_much_as_it_was_told(kubo, node):
    kubo.storage_max("one", 123_456)
    assert node.ask("repo/stat").json()["StorageMax"] == 123_456
    before = node.ask("repo/stat").json()["RepoSize"]
    with node.added({"file": own(MIB)}):
        assert MIB <= node.ask("repo/stat").json()["RepoSize"] - before < 1.2 * MIB


@pytest.mark.parametrize("option", [("cid-version", "1"), ("raw-leaves", "true"), ("chunker", "buzhash")])
def test_what_the_library_cannot_do_is_refused(node, option):
    name, value = option
    answer = node.send("POST", f"add?{name}={value}", files=parts({"file": own(5 * MIB)}))
    expect_error(answer, f"not {value}")


def test_an_upload_that_comes_back_to_a_directory_is_refused(node):
    files = {"top/a/one": own(), "top/b": own(), "top/a/two": own()}
    expect_error(node.send("POST", "add", files=parts(files)), "was left already")


def test_nodes_with_a_token_want_it_and_nothing_is_left_of_them(tmp_path):
    if words := why_not():
        pytest.skip(words)
    with LabKubo(tmp_path / "lab", nodes=("only",), with_token=True) as kubo:
        node = kubo.node("only")
        token = Path(node.token_file).read_text().strip()
        assert Path(node.token_file).stat().st_mode & 0o077 == 0
        assert Contract(node.api, node.api).ask("version").status_code == 403
        assert Contract(node.api, node.api, "wrong").ask("version").status_code == 403
        assert Contract(node.api, node.api, token).ask("version").status_code == 200
        assert kubo.pins("only") == ()
        assert kubo.peers("only") == ()
        port = httpx.URL(node.api).port
    assert not is_listening(port)
    assert list(marked(tmp_path)) == []


class _Endless(io.RawIOBase):
    """A multipart body of one file of some size, made while it is read."""

    def __init__(self, size: int, boundary: bytes) -> None:
        head = b"--%s\r\nContent-Disposition: form-data; name=file; filename=big\r\n\r\n" % boundary
        self._pieces = [head, *[b"\r\n--" + b"x" * (MIB - 4)] * (size // MIB), b"\r\n--%s--\r\n" % boundary]

    def read(self, size: int = -1) -> bytes:
        if not self._pieces:
            return b""
        piece, rest = self._pieces[0][:size], self._pieces[0][size:]
        self._pieces[:1] = [rest] if rest else []
        return piece


def test_a_large_upload_is_written_in_constant_memory(tmp_path):
    tracemalloc.start()
    try:
        (upload,) = receive(_Endless(64 * MIB, b"xxxxEND"), "multipart/form-data; boundary=xxxxEND", tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / upload.name).stat().st_size == 64 * MIB
    assert peak < 4 * MIB


@pytest.mark.parametrize("name", ["../out", "top/../../out", "%2e%2e%2fout"])
def test_an_upload_that_leads_out_is_refused(tmp_path, name):
    body = b'--E\r\nContent-Disposition: form-data; filename="%s"\r\n\r\nx\r\n--E--\r\n' % name.encode()
    with pytest.raises(UploadError, match="leads out"):
        receive(io.BytesIO(body), "multipart/form-data; boundary=E", tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_an_upload_that_breaks_off_is_an_error(tmp_path):
    body = b'--E\r\nContent-Disposition: form-data; filename="a"\r\n\r\nhalf of'
    with pytest.raises(UploadError, match="unexpected EOF"):
        receive(io.BytesIO(body), "multipart/form-data; boundary=E", tmp_path)


def test_a_body_in_chunks_is_read_to_its_end_and_no_further():
    stream = io.BytesIO(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\nnext request")
    body = Body({"Transfer-Encoding": "chunked"}, stream)
    assert b"".join(iter(lambda: body.read(2), b"")) == b"abcde"
    assert stream.read() == b"next request"


def test_a_block_that_is_not_there_is_not_held(tmp_path):
    assert not Blocks(tmp_path).has_all("QmWfVY9y3xjsixTgbd9AorQxH7VtMpzfx2HaWtsoUYecaX")
