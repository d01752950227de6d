"""What a release of content in IPFS comes to: rows, CIDs and nodes; and what cannot be done at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from rules.content_change import ContentRelease
from rules.errors import InvalidRequestError
from rules.ipfs import (
    ContentPath,
    ContentSituation,
    IpfsContent,
    ReferenceChange,
    is_below,
    is_cid,
)
from rules.words import listed

_SHOWN = 20


class ContentWork(NamedTuple):
    """What is to be done, by all its names."""

    situation: ContentSituation
    rows: tuple[ReferenceChange, ...]  # of every key, changed or not; sorted by key
    paths: tuple[ContentPath, ...]  # that rows are to refer to, each once
    nodes: tuple[str, ...]  # that answer, in the order of the block
    replicas: int

    @property
    def first(self) -> str:
        """The node that the content is added to."""
        return self.nodes[0]

    @property
    def root(self) -> str:
        """All of the content."""
        return self.situation.cids[""]

    @property
    def wanted(self) -> tuple[str, ...]:
        """What rows are to refer to, each once."""
        return tuple(dict.fromkeys(self.situation.cids[path] for path in self.paths))

    @property
    def changed(self) -> tuple[ReferenceChange, ...]:
        """The rows that refer to something else now."""
        return tuple(row for row in self.rows if row.old != row.new)

    @property
    def old(self) -> tuple[str, ...]:
        """What these rows refer to now, and none of them afterwards; each once."""
        replaced = (row.old for row in self.changed if row.old is not None)
        return tuple(cid for cid in dict.fromkeys(replaced) if cid not in self.wanted)

    @property
    def is_added(self) -> bool:
        """Whether the content has to be sent: the first node does not keep it already."""
        pinned = self.pinned(self.first)
        return self.root not in pinned and not pinned.issuperset(self.wanted)

    def pinned(self, node: str) -> set[str]:
        """Return what the node has pinned now, of what is concerned."""
        return set(self.situation.nodes[node].pinned)

    def lacking(self, node: str) -> tuple[str, ...]:
        """Return what the node has still to pin, once the content is added: that has pinned the root."""
        have = self.pinned(node) | ({self.root} if self.is_added and node == self.first else set())
        return tuple(cid for cid in self.wanted if cid not in have)


def content_work(change: ContentRelease, content: IpfsContent, situation: ContentSituation) -> ContentWork:
    """Return what a release comes to.

    Raises:
        InvalidRequestError: it cannot be done; says what would work. Nothing was touched.
    """
    refuse_missing_paths(change, situation.cids)
    refuse_missing_rows(change, content, situation.references)
    _refuse_odd_rows(change, content, situation)
    refuse_few_nodes(content, situation.nodes, situation.away)
    rows = tuple(
        ReferenceChange(key=key, old=situation.references[key], new=situation.cids[path])
        for key, path in sorted(change.references.items())
    )
    return ContentWork(
        situation=situation,
        rows=rows,
        paths=tuple(sorted(set(change.references.values()))),
        nodes=tuple(node.name for node in content.nodes if node.name in situation.nodes),
        replicas=content.replicas,
    )


def some_of(words: Sequence[str]) -> str:
    """Return the first of them in words, and how many more there are."""
    return listed(words, shown=_SHOWN)


def refuse_missing_paths(change: ContentRelease, known: Iterable[ContentPath]) -> None:
    """Refuse references to what is not in the content.

    Args:
        change: what is asked for.
        known: paths of the content: of its files at least.

    Raises:
        InvalidRequestError: says which.
    """
    paths = tuple(known)
    wanted = set(change.references.values())
    missing = sorted(path for path in wanted if not any(is_below(one, path) for one in paths))
    if missing:
        raise InvalidRequestError(
            f"{change.artefact.path} has no {some_of(missing)}, which rows are to refer to. Nothing was "
            "touched. Paths are relative to it; an empty one means all of it."
        )


def refuse_missing_rows(change: ContentRelease, content: IpfsContent, rows: Collection[str]) -> None:
    """Refuse references of rows that are not there; `rows` are the keys of those that are.

    Raises:
        InvalidRequestError: says which.
    """
    references = content.references
    missing = sorted(key for key in change.references if key not in rows)
    if missing:
        raise InvalidRequestError(
            f"{references.table} has no row whose {references.key} is {some_of(missing)}, as the database "
            f"writes it. Nothing was touched. Insert it first, with NULL as its {references.cid}, or leave "
            "it out."
        )


def refuse_few_nodes(content: IpfsContent, answering: Collection[str], away: Mapping[str, str]) -> None:
    """Refuse content that too few nodes would keep.

    Args:
        content: says how many there have to be.
        answering: names of those that answer.
        away: the others, and why they do not.

    Raises:
        InvalidRequestError: says which are away.
    """
    if len(answering) >= content.replicas:
        return
    why = "".join(f" {words.rstrip('.')}." for _, words in sorted(away.items()))
    raise InvalidRequestError(
        f"{content.name} is to be kept by {content.replicas} nodes, and {len(answering)} of "
        f"{len(content.nodes)} answer.{why} Nothing was touched. Bring the others back, or lower `replicas` "
        "in the block."
    )


def _refuse_odd_rows(change: ContentRelease, content: IpfsContent, situation: ContentSituation) -> None:
    held = {key: situation.references[key] for key in sorted(change.references)}
    odd = [
        f"row {key} holds {value}" for key, value in held.items() if value is not None and not is_cid(value)
    ]
    if odd:
        raise InvalidRequestError(
            f"{content.references.table}.{content.references.cid} has to hold a plain CID (Qm… or b…) or "
            f"NULL: {some_of(odd)}. How the new one would have to be written cannot be told. Nothing was "
            "touched. Store plain CIDs, and let the application add ipfs:// or a path."
        )
