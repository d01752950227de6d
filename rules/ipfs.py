"""Content in IPFS: its nodes, its identifiers, and the rows of a database that refer to it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from rules.database import Identifier, QualifiedName
from rules.frozen import AbsolutePath, Count, Frozen, Name, PositiveSeconds, Ratio

#: A content identifier as text: version 0 (Qm…, base58) or version 1 in base32 (b…).
Cid = Annotated[str, Field(pattern=r"^(Qm[1-9A-HJ-NP-Za-km-z]{44}|b[a-z2-7]{20,120})$")]
#: Of a node's RPC API; without a user, whose password would stand in Prefect and in messages.
ApiUrl = Annotated[str, Field(pattern=r"^https?://[^/\s@]+/?$")]
#: What a path in the content may be: relative, with neither `.` nor `..` nor an empty part; "": all of it.
ContentPath = Annotated[str, Field(pattern=r"^([^/\x00\n]+(/[^/\x00\n]+)*)?$")]

_CID: TypeAdapter[str] = TypeAdapter(Cid)
_V0 = re.compile(r"Qm[1-9A-HJ-NP-Za-km-z]{44}")


class IpfsNode(Frozen):
    """One Kubo node."""

    name: Name
    api: ApiUrl = Field(description="such as http://127.0.0.1:5001")
    token_file: AbsolutePath | None = Field(
        default=None,
        description="bearer token, on the worker's host, for its owner alone; None: none is asked",
    )
    swarm: str | None = Field(
        default=None,
        pattern=r"^/(ip4|ip6|dns|dns4|dns6)/\S+$",
        description="multiaddress by which the other nodes reach it; None: those that it says itself",
    )


class ContentReferences(Frozen):
    """The column of a table that refers to content: one row for each key."""

    table: QualifiedName
    key: Identifier = Field(description="unique column that names the row")
    cid: Identifier = Field(description="column of type text that holds the CID")


class AddOptions(Frozen):
    """How content becomes blocks: the same file has another CID with other options."""

    cid_version: Annotated[int, Field(ge=0, le=1)] = 0
    raw_leaves: bool = False
    chunker: Annotated[str, Field(pattern=r"^(size-[0-9]+|rabin(-[0-9]+){0,3}|buzhash)$")] = "size-262144"
    hash: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "sha2-256"


class IpfsContent(Frozen):
    """All that is needed to reach content and what refers to it, in one value that holds no secret."""

    name: Name = Field(description="of its Sovereign IPFS Content block")
    nodes: Annotated[tuple[IpfsNode, ...], Field(min_length=1)]
    replicas: Annotated[int, Field(ge=1)] = Field(
        default=2, description="nodes that must hold the content, each seen to"
    )
    references: ContentReferences
    options: AddOptions = AddOptions()
    pin_s: PositiveSeconds = Field(default=600.0, description="until a node has fetched and pinned one CID")
    fetch_s: PositiveSeconds = Field(default=300.0, description="until a file was read back")
    max_used_ratio: Ratio = Field(
        default=0.9, description="of a node's StorageMax, with the new content; more is refused"
    )

    def node(self, name: str) -> IpfsNode:
        """Return the node of that name.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"{self.name} has no node {name}; it has {', '.join(n.name for n in self.nodes)}")


class ContentFile(Frozen):
    """One file of the content, as it lies on the worker's host."""

    path: ContentPath = Field(description='below the content\'s directory; "" where the content is one file')
    size_bytes: Count
    sha256: str


class ReferenceChange(Frozen):
    """One row, whose CID becomes another one."""

    key: str
    old: str | None = Field(description="None: NULL")
    new: Cid


class NodeStorage(Frozen):
    """How full a node is, by its `repo/stat`."""

    used_bytes: Count
    max_bytes: Count


class NodeFacts(Frozen):
    """A node as it was just read."""

    peer_id: str
    version: str
    storage: NodeStorage
    pinned: tuple[Cid, ...] = Field(default=(), description="of the concerned CIDs, those pinned recursively")


class ContentState(Frozen):
    """What undo restores and verification compares: references, and who has pinned what they refer to."""

    references: dict[str, str | None] = Field(description="key -> CID, of the keys that the change is about")
    pinned: dict[Name, tuple[Cid, ...]] = Field(
        description="node -> the concerned CIDs that it has pinned recursively, sorted"
    )

    def differences(self, expected: ContentState) -> tuple[str, ...]:
        """Say in words where this state is not the `expected` one; empty when they agree.

        Of nodes only those are compared that both know: one that is away is told elsewhere.
        """
        words = [
            f"{key}: refers to {self.references.get(key)}, not {cid}"
            for key, cid in sorted(expected.references.items())
            if self.references.get(key) != cid
        ]
        for name, cids in sorted(expected.pinned.items()):
            if name not in self.pinned:
                continue
            lacking = sorted(set(cids) - set(self.pinned[name]))
            beyond = sorted(set(self.pinned[name]) - set(cids))
            words += [f"{name}: {cid} is not pinned" for cid in lacking]
            words += [f"{name}: {cid} is pinned" for cid in beyond]
        return tuple(words)


class ContentSituation(Frozen):
    """Content, nodes and references as they were just read. Nothing live was touched."""

    files: tuple[ContentFile, ...]
    cids: dict[ContentPath, Cid] = Field(description='every path of the content, and "": all of it')
    references: dict[str, str | None] = Field(description="key -> what the row refers to now")
    nodes: dict[Name, NodeFacts] = Field(description="those that answer")
    away: dict[Name, str] = Field(default_factory=dict, description="those that do not -> why")

    @property
    def size_bytes(self) -> int:
        """How large the content is, without what IPFS adds."""
        return sum(file.size_bytes for file in self.files)


def cid_version(cid: str) -> int:
    """Return 0 or 1."""
    return 0 if _V0.fullmatch(cid) else 1


def is_cid(text: str) -> bool:
    """Return whether a text is a plain CID: without a scheme, or a path behind it."""
    try:
        _CID.validate_python(text)
    except ValidationError:
        return False
    return True


def is_below(path: ContentPath, top: ContentPath) -> bool:
    """Return whether a path of the content is at, or below, another one."""
    return top in {"", path} or path.startswith(f"{top}/")
