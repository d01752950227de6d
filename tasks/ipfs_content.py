"""The effects on content in IPFS: added, pinned and proven on its nodes, and unpinned again.

Each is idempotent: what a node has pinned already is neither sent nor fetched again. None of them touches a
row, so whatever fails here leaves all rows referring to the old content, which stays pinned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import cycle

from rules.content_actions import AddContent, PinContent, UnpinContent, UnpinOld, VerifyContent
from rules.content_change import ContentRelease
from rules.database import Database
from rules.errors import StepFailedError, VerdictFailedError
from rules.ipfs import ContentFile, IpfsContent, IpfsNode
from tasks import kubo
from tasks.content_references import referred
from tasks.content_state import ask_all

log = logging.getLogger(__name__)
_SLICE_S = 30.0
_LOST_TRIES = 3
_PAUSE_S = 1.0
_STILL_OLD = "No row was changed: all refer to their old content, which is pinned as before."


def add_content(
    content: IpfsContent,
    change: ContentRelease,
    action: AddContent,
    *,
    progress: Callable[[int], None] = lambda _: None,
    heed: Callable[[], None] = lambda: None,
) -> None:
    """Add the content to a node and see it pinned there as a whole; does nothing where it is already.

    Args:
        content: its nodes, and how it becomes blocks.
        change: where the content lies, and its digest.
        action: to which node, and the CIDs that have to come out.
        progress: told how many bytes were sent so far.
        heed: called each second; may raise to give up.

    Raises:
        ContentFilesError: the files are not what was declared; the node keeps nothing of them pinned.
        StepFailedError: the node failed or does not answer, or other CIDs came out.
    """
    node = content.node(action.node)
    what = f"{change.artefact.path} was not added to {node.name}"
    try:
        if kubo.pinned(node, (action.root,)):
            progress(action.size_bytes)
            return
        heed()
        cids = kubo.add(
            node,
            change.artefact.path,
            options=content.options,
            sha256=change.artefact.sha256,
            progress=progress,
            heed=heed,
            timeout_s=content.pin_s,
        )
        held = kubo.pinned(node, (action.root,))
    except kubo.KuboError as error:
        raise _failed(what, error) from error
    if cids != action.cids:
        raise _other_cids(change, action, root=cids[""])
    # the answer alone proves nothing: an error may come after it
    if not held:
        raise StepFailedError(
            f"{what}: it said so, and has not pinned {action.root}. {_STILL_OLD} Look at the node's log and "
            "its disk, and deploy again."
        )


def _other_cids(change: ContentRelease, action: AddContent, *, root: str) -> StepFailedError:
    return StepFailedError(
        f"{change.artefact.path} came to the root {root} on {action.node}, planned was {action.root}: its "
        f"files or the node's way to add changed since. {_STILL_OLD} Let {action.node} forget the other root "
        f"(ipfs pin rm {root}) if nobody needs it, and deploy again."
    )


def pin_content(content: IpfsContent, action: PinContent, *, heed: Callable[[], None] = lambda: None) -> None:
    """Have a node fetch and pin each CID with all below it, and see that it says so.

    Raises:
        StepFailedError: it did not within the content's `pin_s` each, or it failed.
    """
    node = content.node(action.node)
    for cid in action.cids:
        try:
            if not kubo.pinned(node, (cid,)):
                heed()
                _pin(content, node, cid, heed)
            held = kubo.pinned(node, (cid,))
        except kubo.KuboError as error:
            raise _failed(f"{node.name} did not pin {cid}", error) from error
        if not held:
            raise StepFailedError(
                f"{node.name} said that it pinned {cid}, and has not. {_STILL_OLD} Look at its log and disk, "
                "and deploy again."
            )


def _pin(content: IpfsContent, node: IpfsNode, cid: str, heed: Callable[[], None]) -> None:
    """Fetch in slices: between them nodes that lost each other are connected again."""
    deadline, lost = time.monotonic() + content.pin_s, 0
    while True:
        _reconnect(content, node)
        left_s = deadline - time.monotonic()
        try:
            kubo.pin(node, cid, timeout_s=max(1.0, min(_SLICE_S, left_s)), heed=heed)
        except kubo.NotFetchedError:
            if left_s <= _SLICE_S:
                raise
        except kubo.KuboUnreachableError:
            lost += 1
            if lost == _LOST_TRIES or left_s <= _PAUSE_S:
                raise
            time.sleep(_PAUSE_S)
        else:
            return
        heed()


def _reconnect(content: IpfsContent, node: IpfsNode) -> None:
    """Have a node know the others again; those that are away are not what it needs."""
    for other in content.nodes:
        if other != node:
            with suppress(kubo.KuboError):
                kubo.connect(node, other)


def _failed(what: str, error: kubo.KuboError) -> StepFailedError:
    if "no space left" in error.said:
        advice = "Make room on its disk, or let it collect garbage (ipfs repo gc), and deploy again."
    elif isinstance(error, kubo.NotFetchedError):
        advice = "Look with `ipfs swarm peers` whether it reaches the node that has it, and deploy again."
    else:
        advice = "Deploy again once the node works."
    return StepFailedError(f"{what}: {error} {_STILL_OLD} {advice}")


# --- proven ----------------------------------------------------------------------------------------


def verify_content(
    content: IpfsContent, action: VerifyContent, *, heed: Callable[[], None] = lambda: None
) -> str:
    """Prove that enough nodes hold each CID, and that files come back byte-exact; return that in words.

    Files are read in turn from the nodes that hold all, other than the one that they were added to; from
    that one only where it is the only one. Each may take the content's `fetch_s`.

    Raises:
        VerdictFailedError: too few nodes hold a CID, or a file comes back otherwise than it was.
        StepFailedError: a node fails or does not answer.
    """
    heed()
    holders = _holders(content, action)
    readers = [node for node in holders if node.name != action.added_to] or holders
    size = 0
    for node, (cid, file) in zip(cycle(readers), sorted(action.files.items()), strict=False):
        heed()
        size += _read_back(content, node, cid, file, heed=heed)
    return (
        f"{len(action.cids)} CIDs pinned on {_names(holders)} ({action.replicas} wanted); "
        f"{len(action.files)} files of {size:,} bytes read back byte-exact from {_names(readers)}"
    )


def _holders(content: IpfsContent, action: VerifyContent) -> list[IpfsNode]:
    """Return the nodes that have all pinned, in the block's order."""
    nodes = [node for node in content.nodes if node.name in action.nodes]
    try:
        pinned, away = ask_all(nodes, lambda node: set(kubo.pinned(node, action.cids)))
    except kubo.KuboError as error:
        raise _failed("What is pinned is not known", error) from error
    for name, why in sorted(away.items()):
        log.warning("%s does not count as a replica: %s", name, why)
    holders = [node for node in nodes if pinned.get(node.name, set()) >= set(action.cids)]
    if len(holders) < max(1, action.replicas):
        lacking = "; ".join(
            f"{node.name} {_lack(action.cids, pinned.get(node.name))}"
            for node in nodes
            if node not in holders
        )
        raise VerdictFailedError(
            f"{len(holders)} nodes hold the new content, {action.replicas} have to: {lacking}. {_STILL_OLD} "
            "Look at these nodes, and deploy again."
        )
    return holders


def _lack(cids: Iterable[str], pinned: set[str] | None) -> str:
    if pinned is None:
        return "does not answer"
    return f"has not pinned {', '.join(sorted(set(cids) - pinned))}"


def _read_back(
    content: IpfsContent, node: IpfsNode, cid: str, file: ContentFile, *, heed: Callable[[], None]
) -> int:
    try:
        size, sha256 = kubo.read(node, cid, timeout_s=content.fetch_s, heed=heed)
    except kubo.KuboError as error:
        raise _failed(
            f"{file.path or 'The file'} ({cid}) was not read back from {node.name}", error
        ) from error
    if (size, sha256) != (file.size_bytes, file.sha256):
        raise VerdictFailedError(
            f"{node.name} gives {cid} ({file.path or 'the file'}) as {size:,} bytes with SHA-256 {sha256}, "
            f"not {file.size_bytes:,} with {file.sha256}. {_STILL_OLD} Let that node check its blocks (ipfs "
            "repo verify), look whether something stands before its API, and deploy again."
        )
    return size


def _names(nodes: Iterable[IpfsNode]) -> str:
    return ", ".join(node.name for node in nodes)


# --- forgotten -------------------------------------------------------------------------------------


def unpin_content(content: IpfsContent, database: Database, step: UnpinContent, *, deployment: str) -> str:
    """Let a node forget what a deployment has pinned, unless a row refers to it; return that in words.

    A node that does not answer keeps its pins, which harms nobody: content that nothing refers to.

    Raises:
        KuboError: the node answers and fails, or keeps what it was told to forget; it can be repeated.
        DatabaseError: what rows refer to cannot be read, so nothing was unpinned.
    """
    node = content.node(step.node)
    try:
        gone, kept = _unpin(content, database, node, step.cids, deployment=deployment)
    except kubo.KuboUnreachableError as error:
        log.warning("%s keeps its pins: %s", node.name, error)
        return (
            f"{node.name} does not answer and keeps what it has pinned of {', '.join(step.cids)}: it takes "
            "room and harms nothing. Let it forget them later (ipfs pin rm)."
        )
    words = f"{node.name}: {len(gone)} CIDs not pinned any more"
    return f"{words}; {', '.join(kept)} stays, a row refers to it" if kept else words


def unpin_old(
    content: IpfsContent, database: Database, action: UnpinOld, *, deployment: str
) -> tuple[str, ...]:
    """Let a node forget what was kept through the bake; return what it forgot. What a row refers to stays.

    Raises:
        KuboError: the node fails or does not answer; it can be repeated.
        DatabaseError: what rows refer to cannot be read, so nothing was unpinned.
    """
    gone, kept = _unpin(content, database, content.node(action.node), action.cids, deployment=deployment)
    if kept:
        log.info("%s keeps %s: a row refers to it", action.node, ", ".join(kept))
    return gone


def _unpin(
    content: IpfsContent, database: Database, node: IpfsNode, cids: tuple[str, ...], *, deployment: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what was unpinned and what was kept; rows are asked as late as can be.

    A row may also refer to a file that is pinned only as a part of a directory: that one stays then.
    """
    pinned = kubo.pinned(node, cids)
    if not pinned:
        return (), ()
    below = {cid: kubo.below(node, cid) for cid in pinned}
    asked = {*pinned, *(part for parts in below.values() for part in parts)}
    needed = referred(database, content.references, sorted(asked), deployment=deployment)
    by_itself = {*kubo.pinned(node, sorted(needed - set(pinned))), *(needed & set(pinned))}
    kept = {cid for cid in pinned if cid in needed or (below[cid] & needed) - by_itself}
    for cid in pinned:
        if cid not in kept:
            kubo.unpin(node, cid)
    gone = tuple(cid for cid in pinned if cid not in kept)
    if still := kubo.pinned(node, gone):
        raise kubo.KuboError(f"{node.name} said that it unpinned {', '.join(still)}, and has not.")
    return gone, tuple(cid for cid in pinned if cid in kept)
