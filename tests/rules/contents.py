"""Content, nodes and rows for the tests of the rules: what a survey would have read."""

from __future__ import annotations

from hypothesis import strategies as st

from rules.content_change import ContentFiles, ContentRelease
from rules.fleet import FleetState
from rules.ipfs import (
    AddOptions,
    ContentFile,
    ContentReferences,
    ContentSituation,
    IpfsContent,
    IpfsNode,
    NodeFacts,
    NodeStorage,
)
from tests.rules import builders

PATHS = {"": "r", "a": "a", "a/one.txt": "1", "a/two.txt": "2", "three.txt": "3"}
FILES = (
    ContentFile(path="a/one.txt", size_bytes=10, sha256="1" * 64),
    ContentFile(path="a/two.txt", size_bytes=5, sha256="2" * 64),
    ContentFile(path="three.txt", size_bytes=7, sha256="3" * 64),
)
NODES = ("one", "two", "three")


def cid(letter: str) -> str:
    """Return a CID that is told from others by its letter."""
    return "Qm" + letter * 44


CIDS = {path: cid(letter) for path, letter in PATHS.items()}
OLD = cid("x")


def content(*nodes: str, replicas: int = 2) -> IpfsContent:
    return IpfsContent(
        name="memories",
        nodes=tuple(IpfsNode(name=name, api="http://127.0.0.1:5001") for name in nodes or NODES[:2]),
        replicas=replicas,
        references=ContentReferences(table="public.episodes", key="id", cid="cid"),
        options=AddOptions(),
    )


def change(references: dict[str, str] | None = None) -> ContentRelease:
    return ContentRelease(
        content="memories",
        release="r2",
        artefact=ContentFiles(path="/srv/content", sha256="a" * 64),
        references={"1": "a", "2": "three.txt"} if references is None else references,
    )


def facts(*pinned: str) -> NodeFacts:
    storage = NodeStorage(used_bytes=2_000_000, max_bytes=10_000_000)
    return NodeFacts(peer_id="12D3", version="0.22.0", storage=storage, pinned=pinned)


def situation(
    references: dict[str, str | None] | None = None, pinned: dict[str, tuple[str, ...]] | None = None, **more
) -> ContentSituation:
    """Two nodes that keep the old content, and two rows that refer to it."""
    nodes = {"one": (OLD,), "two": (OLD,)} if pinned is None else pinned
    known = {
        "files": FILES,
        "cids": CIDS,
        "references": {"1": OLD, "2": OLD} if references is None else references,
        "nodes": {name: facts(*cids) for name, cids in nodes.items()},
    }
    return ContentSituation(**{**known, **more})


def watched() -> FleetState:
    """The application whose users would notice."""
    return builders.state(builders.fleet())


@st.composite
def releases(draw: st.DrawFn) -> tuple[ContentRelease, IpfsContent, ContentSituation]:
    """Any change of any rows, with any nodes that have pinned any of it before, at least one of them up."""
    nodes = NODES[: draw(st.integers(1, 3))]
    up = draw(st.sets(st.sampled_from(nodes), min_size=1))
    pins = st.lists(st.sampled_from([*CIDS.values(), OLD, cid("y")]), unique=True).map(tuple)
    wanted = draw(st.dictionaries(st.sampled_from("12345"), st.sampled_from(list(CIDS)), min_size=1))
    held = st.sampled_from([None, OLD, cid("y"), *CIDS.values()])
    found = situation(
        references={key: draw(held) for key in wanted},
        pinned={name: draw(pins) for name in nodes if name in up},
        away={name: "no answer" for name in nodes if name not in up},
    )
    replicas = draw(st.integers(1, len(up)))
    return change(wanted), content(*nodes, replicas=replicas), found
