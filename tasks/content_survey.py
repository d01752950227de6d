"""What must be known of files, nodes and rows before new content in IPFS is planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from rules.cid import options_that_keep
from rules.content_change import ContentFiles, ContentRelease
from rules.content_work import refuse_few_nodes, refuse_missing_paths, refuse_missing_rows
from rules.database import Database
from rules.errors import InvalidRequestError
from rules.frozen import Frozen
from rules.ipfs import (
    AddOptions,
    ContentFile,
    ContentSituation,
    IpfsContent,
    IpfsNode,
    NodeFacts,
    NodeStorage,
    is_below,
    is_cid,
)
from tasks import kubo
from tasks.content_files import content_digest, read_files
from tasks.content_references import read_references
from tasks.content_state import ask_all


class _Node(Frozen):
    """What a node says of itself."""

    peer: kubo.Peer
    version: str
    storage: NodeStorage


def survey_content(
    change: ContentRelease, content: IpfsContent, database: Database, *, deployment: str
) -> ContentSituation:
    """Return files, CIDs, rows and nodes as they are; nothing is added, pinned or written.

    The CIDs are what a node computes from the files and keeps nothing of. Nodes are connected with the one
    that the content will be added to.

    Raises:
        ContentFilesError: the files cannot be added as they are, or are not what was declared.
        InvalidRequestError: it cannot be done: a path or row is missing, too few nodes answer, one has no
            room, two do not reach each other, or the CIDs would be of another kind; nothing was touched.
        KuboError: a node answers and fails; nothing was touched.
        DatabaseError: see `tasks.postgres.connection`; nothing was touched.
    """
    files = _files(change.artefact)
    refuse_missing_paths(change, (file.path for file in files))
    nodes, away = ask_all(content.nodes, _node)
    refuse_few_nodes(content, nodes, away)
    rows = read_references(database, content.references, tuple(change.references), deployment=deployment)
    refuse_missing_rows(change, content, rows)
    answering = [node for node in content.nodes if node.name in nodes]
    cids = _cids(content, answering[0], change.artefact)
    _refuse_other_kind(change, content, rows, cids)
    pins = _pins(answering, _concerned(change, rows, cids))
    _refuse_full(change, content, files, cids=cids, nodes=nodes, pins=pins)
    for node in answering[1:]:
        _acquaint(answering[0], node)
    return ContentSituation(
        files=files,
        cids=cids,
        references={key: rows[key] for key in change.references},
        nodes={
            name: NodeFacts(
                peer_id=node.peer.peer_id, version=node.version, storage=node.storage, pinned=pins[name]
            )
            for name, node in nodes.items()
        },
        away=away,
    )


# --- the files -------------------------------------------------------------------------------------


def _files(artefact: ContentFiles) -> tuple[ContentFile, ...]:
    files = read_files(artefact.path)
    found = content_digest(artefact.path, files)
    if found != artefact.sha256:
        raise InvalidRequestError(
            f"{artefact.path} has the digest {found}, declared was {artefact.sha256}: files are missing, "
            "changed or too many. Nothing was touched. Copy it once more, or declare what it is now."
        )
    return files


# --- nodes and rows --------------------------------------------------------------------------------


def _node(node: IpfsNode) -> _Node:
    return _Node(peer=kubo.peer(node), version=kubo.version(node), storage=kubo.storage(node))


def _acquaint(first: IpfsNode, other: IpfsNode) -> None:
    """Connect two nodes, by whichever reaches the other."""
    with suppress(kubo.KuboError):
        kubo.connect(other, first)
        return
    try:
        kubo.connect(first, other)
    except kubo.KuboError as error:
        raise InvalidRequestError(
            f"{other.name} could not fetch the content from {first.name}: neither reaches the other. {error} "
            "Nothing was touched."
        ) from error


def _concerned(
    change: ContentRelease, rows: Mapping[str, str | None], cids: Mapping[str, str]
) -> tuple[str, ...]:
    """Return what is or will be referred to, and the whole: all that plan and undo are about."""
    new = {cids[path] for path in (*change.references.values(), "")}
    old = {rows[key] for key in change.references}
    return tuple(sorted(new | {cid for cid in old if cid is not None and is_cid(cid)}))


def _pins(nodes: Iterable[IpfsNode], cids: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    pins, away = ask_all(nodes, lambda node: kubo.pinned(node, cids))
    if away:
        raise InvalidRequestError(
            f"{', '.join(sorted(away))} answered at first and not any more: {' '.join(away.values())} "
            "Nothing was touched. Deploy again once it stays up."
        )
    return pins


# --- what it would come to -------------------------------------------------------------------------


def _cids(content: IpfsContent, node: IpfsNode, artefact: ContentFiles) -> dict[str, str]:
    try:
        return kubo.add(
            node,
            artefact.path,
            options=content.options,
            only_hash=True,
            sha256=artefact.sha256,
            heed=lambda: None,
            timeout_s=content.pin_s,
        )
    except kubo.KuboUnreachableError:
        raise
    except kubo.KuboError as error:
        raise InvalidRequestError(
            f"{node.name} cannot say which CIDs {artefact.path} would have with "
            f"{_in_words(content.options)}: {error} Nothing was touched. Other `options` in the block, "
            "or another version of Kubo, may do."
        ) from error


def _refuse_other_kind(
    change: ContentRelease, content: IpfsContent, rows: Mapping[str, str | None], cids: Mapping[str, str]
) -> None:
    """Refuse CIDs that whoever reads them may not expect: of another version, codec or hash."""
    for key, path in sorted(change.references.items()):
        old, new = rows[key], cids[path]
        if old is None or not is_cid(old) or old == new:
            continue
        options = options_that_keep(old, new, content.options)
        if options is not None:
            raise InvalidRequestError(
                f"{key} refers to {old}, and would refer to {new}: a CID of another kind, which its readers "
                "may not expect. Nothing was touched. To keep the kind, set the block's options to "
                f"{_in_words(options)}. To change it, set that row to NULL first."
            )


def _refuse_full(
    change: ContentRelease,
    content: IpfsContent,
    files: Iterable[ContentFile],
    *,
    cids: Mapping[str, str],
    nodes: Mapping[str, _Node],
    pins: Mapping[str, tuple[str, ...]],
) -> None:
    """Refuse what a node has no room for, before it finds out in the middle."""
    paths = set(change.references.values())
    wanted = {cids[path] for path in paths}
    all_bytes = sum(file.size_bytes for file in files)
    referred = sum(file.size_bytes for file in files if any(is_below(file.path, path) for path in paths))
    first = next(iter(name for name in (node.name for node in content.nodes) if name in nodes))
    for name, node in nodes.items():
        has_it = cids[""] in pins[name] or wanted <= set(pins[name])
        added = 0 if has_it else all_bytes if name == first else referred
        used, limit = node.storage.used_bytes + added, node.storage.max_bytes
        if added and used > content.max_used_ratio * limit:
            raise InvalidRequestError(
                f"{name} would use {used:,} of {limit:,} bytes with the new content, allowed are "
                f"{content.max_used_ratio:.0%}. Nothing was touched. Let it collect garbage (ipfs repo gc), "
                "raise Datastore.StorageMax if its disk has room, or max_used_ratio in the block."
            )


def _in_words(options: AddOptions) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.model_dump(mode="json").items())
