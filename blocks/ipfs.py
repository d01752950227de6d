"""Content in IPFS: the nodes that keep it, and the rows of a database that refer to it."""

from __future__ import annotations

from typing import ClassVar, cast

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field

from blocks.database import load_database
from rules.database import Database
from rules.ipfs import AddOptions, ContentReferences, IpfsContent, IpfsNode


class KuboNode(BaseModel):
    """One Kubo node, asked by its RPC API."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="short and unique")
    api: str = Field(description="of its RPC API, such as http://127.0.0.1:5001; without user and password")
    token_file: str = Field(
        default="",
        description="bearer token, on the worker's host, for its owner alone; empty: none is asked",
    )
    swarm: str = Field(
        default="",
        description="multiaddress by which the other nodes reach it, such as /dns4/node-1/tcp/4001; empty: "
        "those that it says itself",
    )


class SovereignIpfsContent(Block):
    """Content that some nodes keep pinned, and the column of a table that refers to it.

    It holds no token and no password: content must be taken back also when Prefect, which keeps the blocks,
    is down. Both are in files on the worker's host.
    """

    _block_type_name: ClassVar[str] = "Sovereign IPFS Content"
    _block_type_slug: ClassVar[str] = "sovereign-ipfs-content"
    _description: ClassVar[str] = "Content in IPFS, the nodes that keep it, and the rows that refer to it."

    nodes: list[KuboNode] = Field(
        min_length=1, description="all that keep it; new content comes to the first one that answers"
    )
    replicas: int = Field(default=2, description="nodes that must hold the content before rows refer to it")
    database: str = Field(description="name of a Sovereign Database block, whose rows refer to the content")
    table: str = Field(description="with its schema, such as public.episodic_memories")
    key_column: str = Field(default="id", description="unique column that names a row")
    cid_column: str = Field(description="column of type text or varchar that holds a plain CID, or NULL")
    options: AddOptions = Field(
        default_factory=AddOptions,
        description="how content becomes blocks: the same file has another CID with other options",
    )
    pin_s: float = Field(default=600.0, description="seconds until a node has fetched and pinned one CID")
    fetch_s: float = Field(default=300.0, description="seconds until one file was read back")
    max_used_ratio: float = Field(
        default=0.9, description="of a node's StorageMax, with the new content; more is refused"
    )

    def content(self, name: str) -> IpfsContent:
        """Return all that is needed to reach this content and what refers to it, without the database.

        Raises:
            ValueError: a field is not what a node or PostgreSQL can take, or two nodes have the same name.
        """
        return IpfsContent(
            name=name,
            nodes=_nodes(self.nodes),
            replicas=self.replicas,
            references=ContentReferences(table=self.table, key=self.key_column, cid=self.cid_column),
            options=self.options,
            pin_s=self.pin_s,
            fetch_s=self.fetch_s,
            max_used_ratio=self.max_used_ratio,
        )


def load_content(name: str) -> tuple[IpfsContent, Database]:
    """Return what the Sovereign IPFS Content block of this name describes, and the database that it names.

    Raises:
        ValueError: there is no such block, or it names one that does not exist.
    """
    block = cast("SovereignIpfsContent", SovereignIpfsContent.load(name))
    return block.content(name), load_database(block.database)


def _nodes(nodes: list[KuboNode]) -> tuple[IpfsNode, ...]:
    names = [node.name for node in nodes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several nodes are called {', '.join(twice)}: give each a name of its own")
    return tuple(
        IpfsNode(name=node.name, api=node.api, token_file=node.token_file or None, swarm=node.swarm or None)
        for node in nodes
    )
