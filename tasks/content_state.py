"""The observable state of content: what rows refer to, and what each node has pinned of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rules.database import Database
from rules.ipfs import ContentState, IpfsContent, IpfsNode
from tasks import kubo
from tasks.content_references import read_references

log = logging.getLogger(__name__)
T = TypeVar("T")
_AT_ONCE = 8


def observe_content(
    content: IpfsContent,
    database: Database,
    *,
    keys: Iterable[str],
    cids: Iterable[str],
    deployment: str,
) -> ContentState:
    """Return what the rows of `keys` refer to, and which of `cids` each node has pinned itself.

    A node that does not answer is left out.

    Raises:
        KuboError: no node answers, or one answers and fails.
        DatabaseError: see `tasks.postgres.connection`.
    """
    concerned = tuple(sorted(set(cids)))
    pinned, away = ask_all(content.nodes, lambda node: kubo.pinned(node, concerned))
    if not pinned:
        raise kubo.KuboUnreachableError(
            f"No node of {content.name} answers, so nobody knows what is pinned: {'; '.join(away.values())} "
            "Nothing was changed by asking. Bring a node back."
        )
    for name, why in sorted(away.items()):
        log.warning("%s is left out: %s", name, why)
    references = read_references(database, content.references, tuple(keys), deployment=deployment)
    return ContentState(references=references, pinned=pinned)


def ask_all(
    nodes: Iterable[IpfsNode], question: Callable[[IpfsNode], T]
) -> tuple[dict[str, T], dict[str, str]]:
    """Ask all nodes at once; return what each answered, and why the others did not, by their names.

    Raises:
        KuboError: one answers and fails: that is no node which is merely away.
    """
    asked = tuple(nodes)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        said = list(pool.map(lambda node: _asked(node, question), asked))
    answers = {node.name: one[0] for node, one in zip(asked, said, strict=True) if one[0] is not None}
    away = {node.name: one[1] for node, one in zip(asked, said, strict=True) if one[0] is None}
    return answers, away


def _asked(node: IpfsNode, question: Callable[[IpfsNode], T]) -> tuple[T | None, str]:
    try:
        return question(node), ""
    except kubo.KuboUnreachableError as error:
        return None, str(error)
