"""What this project relies on in a Kubo node, as named checks: `python -m lab.kubo_checks`.

The tests run the list against the lab's nodes. Where the environment names real ones, as `KUBO_API` and
`KUBO_API_2` (such as http://127.0.0.1:5001), they run it against these too, so that neither the lab's RPC
nor what we know of Kubo's can drift. The two nodes must reach each other's swarm. Each check pins small
content of its own and takes the pins away again; nothing else is touched, and nothing is collected.
"""

from __future__ import annotations

import os
import sys
import time
import uuid

import httpx

from lab.contract import ContractError, expect
from lab.kubo_contract import CHECKS, Contract, check, expect_error, parts, real_nodes

FILE_CID = ("hello", "QmWfVY9y3xjsixTgbd9AorQxH7VtMpzfx2HaWtsoUYecaX")
EMPTY_DIRECTORY_CID = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
#: Nobody holds it: a digest of nothing but ones.
UNREACHABLE = "QmNLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51"

_CHUNK_BYTES = 262_144
_NAMES = ("a+b c%.txt", "ü/quo'te", "ü/deep/er", "z")


def _own(text: str = "") -> bytes:
    """Return content that nobody has added before."""
    return f"{text} {uuid.uuid4()}".encode()


@check
def a_command_is_posted_and_nothing_else(node: Contract) -> None:
    """A command is posted and nothing else."""
    answer = node.send("GET", "version")
    expect(answer.status_code == httpx.codes.METHOD_NOT_ALLOWED, "GET is answered 405", answer)


@check
def a_page_of_another_origin_is_refused(node: Contract) -> None:
    """A page of another origin is refused."""
    answer = node.send("POST", "version", headers={"Origin": "https://example.org"})
    expect(answer.status_code == httpx.codes.FORBIDDEN, "another origin is answered 403", answer)


@check
def an_unknown_command_is_404_in_plain_text(node: Contract) -> None:
    """An unknown command is 404 in plain text."""
    answer = node.ask("no/such/command")
    expect(answer.status_code == httpx.codes.NOT_FOUND, "404", answer)
    expect(answer.headers["Content-Type"].startswith("text/plain"), "plain text", answer.headers)


@check
def a_missing_argument_is_400_in_plain_text(node: Contract) -> None:
    """A missing argument is 400 in plain text."""
    for command in ("cat", "pin/add", "pin/rm", "swarm/connect"):
        answer = node.ask(command)
        expect(answer.status_code == httpx.codes.BAD_REQUEST, f"{command} wants an argument", answer)
        expect(answer.headers["Content-Type"].startswith("text/plain"), "plain text", answer.headers)
        expect("is required" in answer.text, "says that it is required", answer.text)
    expect(node.ask("add").status_code == httpx.codes.BAD_REQUEST, "add wants a file", "something else")


@check
def a_node_says_its_version_its_id_and_where_it_is_reached(node: Contract) -> None:
    """A node says its version its id and where it is reached."""
    expect(node.ask("version").json()["Version"].count(".") == 2, "a version", node.ask("version").text)  # noqa: PLR2004
    said = node.ask("id").json()
    expect(said["Addresses"], "addresses", said)
    expect(all(a.endswith(f"/p2p/{said['ID']}") for a in said["Addresses"]), "each ends with the id", said)


@check
def a_node_says_how_full_it_is(node: Contract) -> None:
    """A node says how full it is."""
    said = node.ask("repo/stat", size_only="true").json()
    size = said.get("SizeStat", said)
    expect(0 < int(size["RepoSize"]) < int(size["StorageMax"]), "sizes in bytes", said)


@check
def a_file_has_the_cid_that_all_of_ipfs_gives_it(node: Contract) -> None:
    """A file has the CID that all of IPFS gives it."""
    said = node.add({"greeting": FILE_CID[0].encode()}, only_hash="true")
    expect([(r["Name"], r["Hash"]) for r in said] == [("greeting", FILE_CID[1])], "one row", said)


@check
def the_last_row_of_a_directory_is_its_root_and_each_path_has_one(node: Contract) -> None:
    """The last row of a directory is its root and each path has one."""
    files = {f"top/{name}": _own(name) for name in _NAMES} | {"top/zz": None}
    said = node.add(files, only_hash="true")
    expect(said[-1]["Name"] == "top", "the last row is the root", said[-1])
    wanted = {"top", "top/ü", "top/ü/deep", *files}
    expect({row["Name"] for row in said} == wanted, f"rows of {sorted(wanted)}", said)
    empty = next(row["Hash"] for row in said if row["Name"] == "top/zz")
    expect(empty == EMPTY_DIRECTORY_CID, "the CID of an empty directory", empty)


@check
def only_hash_says_the_cids_that_adding_gives_and_stores_nothing(node: Contract) -> None:
    """Only hash says the CIDs that adding gives and stores nothing."""
    files = {f"top/{name}": _own(name) for name in _NAMES}
    files["top/zzz"] = os.urandom(3 * _CHUNK_BYTES)
    foretold = {row["Name"]: row["Hash"] for row in node.add(files, only_hash="true")}
    expect_error(node.ask("block/stat", foretold["top"], offline="true"))
    with node.added(files) as cids:
        expect(cids == foretold, f"{foretold}", cids)
        size = node.ask("block/stat", cids["top"], offline="true").json()["Size"]
        expect(size > 0, "the root is stored", size)


@check
def what_is_added_is_pinned_recursively_unless_it_should_not_be(node: Contract) -> None:
    """What is added is pinned recursively unless it should not be."""
    with node.added({"top/one": _own(), "top/two": _own()}) as cids:
        expect(node.pins(cids["top"]) == {cids["top"]: "recursive"}, "the root is pinned", node.pins())
        expect(not node.pins(cids["top/one"]), "a file is not pinned itself", "it is")
    loose = node.add({"loose": _own()}, pin="false")[-1]["Hash"]
    expect(not node.pins(loose, kind="all"), "pin=false pins nothing", "it does")


@check
def progress_is_told_in_rows_of_bytes(node: Contract) -> None:
    """Progress is told in rows of bytes."""
    content = os.urandom(3 * _CHUNK_BYTES + 1)
    said = node.add({"big": content}, progress="true", only_hash="true")
    steps = [row["Bytes"] for row in said if "Hash" not in row]
    expect(steps == sorted(steps) and steps[-1] == len(content), "bytes that grow to all", steps)
    expect("Hash" in said[-1], "the last row has the CID", said[-1])


@check
def a_late_error_is_announced_as_a_trailer(node: Contract) -> None:
    """A late error is announced as a trailer."""
    answer = node.send("POST", "add?only-hash=true", files=parts({"file": _own()}))
    expect(answer.headers.get("Trailer") == "X-Stream-Error", "a trailer", answer.headers)


@check
def a_pin_is_said_with_its_kind(node: Contract) -> None:
    """A pin is said with its kind."""
    with node.added({"top/one": _own(), "top/two": _own()}) as cids:
        root, one = cids["top"], cids["top/one"]
        expect(node.pins(one, kind="all") == {one: f"indirect through {root}"}, "indirect", "not")
        expect_error(node.ask("pin/ls", one, type="recursive"), "is not pinned")
        node.ask("pin/add", one)
        both = {root: "recursive", one: "recursive"}
        expect(node.pins(root, one) == both, "both", node.pins(root, one))
        everything = node.pins(kind="all")
        expect(everything.get(cids["top/two"]) == "indirect", "all lists what lies below", everything)


@check
def pins_of_a_directory_and_of_a_file_in_it_are_apart(node: Contract) -> None:
    """Pins of a directory and of a file in it are apart."""
    with node.added({"top/one": _own(), "top/two": _own()}) as cids:
        node.ask("pin/add", cids["top/one"])
        removed = node.ask("pin/rm", cids["top"])
        expect(removed.json() == {"Pins": [cids["top"]]}, "the root's pin is gone", removed.text)
        expect(node.pins(cids["top/one"]), "the file's pin stays", node.pins())
        expect(not node.pins(cids["top/two"], kind="all"), "the other file is pinned no more", "it is")


@check
def a_pin_that_is_gone_cannot_be_removed(node: Contract) -> None:
    """A pin that is gone cannot be removed."""
    with node.added({"one": _own()}) as cids:
        node.ask("pin/rm", cids["one"])
        expect_error(node.ask("pin/rm", cids["one"]), "not pinned")
        expect_error(node.ask("pin/ls", cids["one"]), "is not pinned")


@check
def content_is_read_whole_in_part_and_by_its_path(node: Contract) -> None:
    """Content is read whole in part and by its path."""
    content = os.urandom(_CHUNK_BYTES) + _own()
    with node.added({"top/ü/file": content}) as cids:
        expect(node.ask("cat", cids["top/ü/file"]).content == content, "the content", "another")
        expect(node.ask("cat", f"{cids['top']}/ü/file").content == content, "by its path", "another")
        part = node.ask("cat", cids["top/ü/file"], offset="5", length="7").content
        expect(part == content[5:12], "a part of it", part)
        expect_error(node.ask("cat", cids["top/ü"]), "is a directory")
        expect_error(node.ask("cat", f"{cids['top']}/nothing"), "no link named")


@check
def what_nobody_has_cannot_be_pinned_and_the_try_ends_in_time(node: Contract) -> None:
    """What nobody has cannot be pinned and the try ends in time."""
    began = time.monotonic()
    expect_error(node.ask("pin/add", UNREACHABLE, timeout="1s"))
    waited_s = time.monotonic() - began
    expect(0.5 < waited_s < 20, "after about a second", f"{waited_s:.1f} s")  # noqa: PLR2004
    expect(not node.pins(UNREACHABLE, kind="all"), "it is not pinned", "it is")


@check
def what_is_no_cid_is_an_error(node: Contract) -> None:
    """What is no CID is an error."""
    for command in ("cat", "pin/add", "pin/ls"):
        expect_error(node.ask(command, "nonsense"))


@check
def nodes_connect_to_who_is_there_and_to_nobody_else(node: Contract) -> None:
    """Nodes connect to who is there and to nobody else."""
    other = node.other.ask("id").json()
    answers = [node.ask("swarm/connect", address, timeout="10s") for address in other["Addresses"]]
    connected = next((a for a in answers if a.status_code == httpx.codes.OK), answers[-1])
    expect(connected.json().get("Strings") == [f"connect {other['ID']} success"], "success", connected.text)
    peers = {peer["Peer"] for peer in node.ask("swarm/peers").json()["Peers"] or ()}
    expect(other["ID"] in peers, "it is among the peers", peers)
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{UNREACHABLE}"
    expect_error(node.ask("swarm/connect", nobody, timeout="10s"), "failure")
    expect_error(node.ask("swarm/connect", "nonsense"))


@check
def a_node_fetches_what_it_pins_from_the_one_that_has_it(node: Contract) -> None:
    """A node fetches what it pins from the one that has it."""
    nodes_connect_to_who_is_there_and_to_nobody_else(node)
    content = os.urandom(2 * _CHUNK_BYTES)
    with node.added({"top/file": content}) as cids:
        answer = node.other.ask("pin/add", cids["top"], timeout="30s")
        expect(answer.json() == {"Pins": [cids["top"]]}, "it is pinned", answer.text)
        again = node.other.ask("pin/add", cids["top"], timeout="30s")
        expect(again.status_code == httpx.codes.OK, "pinned already is fine", again.text)
        expect(node.other.pins(cids["top"]), "the other node says so", "it does not")
        for cid in cids.values():
            size = node.other.ask("block/stat", cid, offline="true")
            expect(size.status_code == httpx.codes.OK, f"the other node holds {cid}", size.text)
        expect(node.other.ask("cat", cids["top/file"]).content == content, "the content", "another")


def main() -> int:
    """Check the nodes that the environment names, and return how many checks they fail."""
    node = real_nodes()
    if node is None:
        sys.exit("KUBO_API and KUBO_API_2 must say where two nodes answer, such as http://127.0.0.1:5001")
    failed = 0
    for name, holds in CHECKS.items():
        fault = ""
        try:
            holds(node)
        except (ContractError, httpx.HTTPError, LookupError, ValueError) as error:
            fault, failed = f"\n      {error!r}", failed + 1
        print(f"{'fail' if fault else 'ok':4}  {name.replace('_', ' ')}{fault}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
