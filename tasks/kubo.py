"""A Kubo node by its RPC API: add, pin, read. What it says is checked; what it only implies is asked for.

Each command is a POST. An error that comes late stands behind the answer, where a status of 200 came first:
so whatever matters is asked for again, by `pinned` and `read`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rules.frozen import Frozen
from rules.ipfs import AddOptions, Cid, IpfsNode, NodeStorage
from tasks.kubo_http import Exchange, KuboError, KuboUnreachableError, Params
from tasks.kubo_upload import Upload, parameters, read_rows

__all__ = [
    "KuboError",
    "KuboUnreachableError",
    "NotFetchedError",
    "Peer",
    "add",
    "below",
    "connect",
    "peer",
    "pin",
    "pinned",
    "read",
    "storage",
    "unpin",
    "version",
]

_ASK_S = 10.0
# it waits for a garbage collection under way
_UNPIN_S = 120.0
# more than the node's own limit, so that its answer still comes
_GRACE_S = 5.0
_DIAL_S = 10
# a node has many addresses, and dials those that it knows at each try
_DIAL_ALL_S = 20.0
_LIST_S = 30.0
_DIRECTORY = 1  # of UnixFS
_CIDS = TypeAdapter[dict[str, str]](dict[str, Cid])


class NotFetchedError(KuboError):
    """A node did not come by all blocks in time; those that it has it keeps, and goes on from there."""


class Peer(Frozen):
    """A node as the others know it."""

    peer_id: str
    addresses: tuple[str, ...]


# --- reads -----------------------------------------------------------------------------------------


def version(node: IpfsNode) -> str:
    """Return Kubo's version, such as 0.22.0.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    answer = _object(node, "version")
    if "Version" not in answer:
        raise Exchange(node, "version", limit_s=_ASK_S).foreign(str(answer))
    return str(answer["Version"])


def peer(node: IpfsNode) -> Peer:
    """Return who a node is, and by which multiaddresses it says that others reach it.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    answer = _object(node, "id")
    try:
        return Peer(peer_id=answer["ID"], addresses=tuple(answer.get("Addresses") or ()))
    except (KeyError, TypeError, ValidationError) as error:
        raise Exchange(node, "id", limit_s=_ASK_S).foreign(str(answer)) from error


def storage(node: IpfsNode) -> NodeStorage:
    """Return how full a node is, and how full it may be by its own configuration; in bytes.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    answer = _object(node, "repo/stat", [("size-only", "true")])
    # by version flat or nested, as number or text
    nested = answer.get("SizeStat")
    found = nested if isinstance(nested, dict) else answer
    try:
        return NodeStorage(used_bytes=int(found["RepoSize"]), max_bytes=int(found["StorageMax"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Exchange(node, "repo/stat", limit_s=_ASK_S).foreign(str(answer)) from error


def pinned(node: IpfsNode, cids: Iterable[str]) -> tuple[str, ...]:
    """Return those of `cids` that a node has pinned recursively itself, in their order.

    What is only pinned as a part of something else does not count.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    return tuple(cid for cid in cids if _is_pinned(node, cid))


def read(
    node: IpfsNode, cid: str, *, timeout_s: float, heed: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Return size and SHA-256 of a file, as a node gives it; read piece by piece, kept nowhere.

    Args:
        node: who is asked.
        cid: of the file.
        timeout_s: for all of it.
        heed: called each second; may raise to give up.

    Raises:
        NotFetchedError: the node does not come by it in time.
        KuboError: it is no file, or the node fails in the middle.
        KuboUnreachableError: no answer, or not all of it.
    """
    exchange = Exchange(node, "cat", limit_s=timeout_s + _GRACE_S, heed=heed)
    digest, size = hashlib.sha256(), 0
    try:
        with exchange.answer([("arg", cid), ("timeout", _duration(timeout_s))]) as answer:
            for piece in answer.iter_raw():
                digest.update(piece)
                size += len(piece)
    except KuboError as error:
        raise _as_not_fetched(error, node, cid, timeout_s) from error
    if late := exchange.late_error:
        raise KuboError(f"{node.name} failed in the middle of {cid}: {late}.", said=late)
    return size, digest.hexdigest()


def below(node: IpfsNode, cid: str) -> frozenset[str]:
    """Return the CIDs of all files and directories below a directory; of a file, at most its pieces.

    Args:
        node: who is asked; it should hold it, or it has to fetch each directory first.
        cid: of the directory or file.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    found: set[str] = set()
    open_ = [cid]
    while open_:
        links = [link for link in _links(node, open_.pop()) if link[0] not in found]
        found |= {one for one, _ in links}
        open_ += [one for one, is_directory in links if is_directory]
    return frozenset(found)


def _is_pinned(node: IpfsNode, cid: str) -> bool:
    try:
        answer = _object(node, "pin/ls", [("arg", cid), ("type", "recursive")])
    except KuboError as error:
        if "not pinned" in error.said:
            return False
        raise
    keys = answer.get("Keys", {})  # with nothing to say Kubo leaves it out
    if not isinstance(keys, dict):
        raise Exchange(node, "pin/ls", limit_s=_ASK_S).foreign(str(answer))
    return any(isinstance(key, dict) and key.get("Type") == "recursive" for key in keys.values())


def _links(node: IpfsNode, cid: str) -> list[tuple[str, bool]]:
    """Return the CID of each entry of a directory, and whether that is a directory too."""
    answer = _object(node, "ls", [("arg", cid), ("timeout", _duration(_LIST_S))], _LIST_S + _GRACE_S)
    try:
        links = answer["Objects"][0]["Links"] or ()
        return [(str(link["Hash"]), link["Type"] == _DIRECTORY) for link in links]
    except (KeyError, IndexError, TypeError) as error:
        raise Exchange(node, "ls", limit_s=_LIST_S).foreign(str(answer)) from error


# --- effects ---------------------------------------------------------------------------------------


def connect(node: IpfsNode, to: IpfsNode) -> None:
    """Connect a node to another one, so that either can fetch from the other; connected already is fine.

    Raises:
        KuboError: it does not reach the other one; carries the addresses that were tried.
        KuboUnreachableError: one of them does not answer us.
    """
    other = peer(to)
    own = f"/p2p/{other.peer_id}"
    addresses = [to.swarm] if to.swarm else [*other.addresses, own]  # the last: as the node itself knows it
    addresses = [address if "/p2p/" in address else f"{address}{own}" for address in addresses]
    failed: list[str] = []
    give_up_at = time.monotonic() + _DIAL_ALL_S
    for address in dict.fromkeys(addresses):
        if failed and time.monotonic() > give_up_at:
            break
        try:
            _object(node, "swarm/connect", [("arg", address), ("timeout", f"{_DIAL_S}s")], _DIAL_S + _GRACE_S)
        except KuboUnreachableError:
            raise
        except KuboError as error:
            failed.append(f"{address}: {error.said or error}")
        else:
            return
    raise KuboError(
        f"{node.name} does not reach {to.name}: {'; '.join(failed)}. Look whether {to.name}'s swarm port is "
        f"open to it, and give its address as `swarm` in the block.",
        said="; ".join(failed),
    )


def add(  # noqa: PLR0913 - whence, whereto, how, and how long
    node: IpfsNode,
    source: str,
    *,
    options: AddOptions,
    only_hash: bool = False,
    pin: bool = True,
    sha256: str | None = None,
    progress: Callable[[int], None] | None = None,
    heed: Callable[[], None],
    timeout_s: float,
) -> dict[str, str]:
    """Add a directory or a file to a node; return path -> CID, where "" is all of it.

    It is read from disk and sent piece by piece. Repeating it comes to the same CIDs and keeps nothing twice.

    Args:
        node: whom to add it to.
        source: where it lies on this host.
        options: how it becomes blocks.
        only_hash: the node says the CIDs and keeps nothing.
        pin: it is pinned as a whole when all of it has arrived.
        sha256: what it has to be, as `ContentFiles.sha256` has it; otherwise it is not sent to its end.
        progress: told how many bytes of the files were sent so far.
        heed: called each second; may raise to give up.
        timeout_s: for each wait in which no byte moves.

    Raises:
        ContentFilesError: the files cannot be read or added, or have another digest.
        KuboError: the node fails, as on a full disk: carries its words.
        KuboUnreachableError: no answer, or not all of it.
    """
    upload = Upload(source, sha256=sha256, progress=progress)
    exchange = Exchange(node, "add", limit_s=timeout_s, by_progress=True, heed=heed)
    params = parameters(options, only_hash=only_hash, pin=pin)
    with exchange.answer(params, content=upload.body(exchange), headers=upload.headers) as answer:
        cids = read_rows(exchange, answer.iter_lines(), upload.paths)
    try:
        return _CIDS.validate_python(cids)
    except ValidationError as error:
        raise exchange.foreign(str(cids)) from error


def pin(node: IpfsNode, cid: str, *, timeout_s: float, heed: Callable[[], None] = lambda: None) -> None:
    """Have a node fetch a CID with all below it and keep it; kept already is fine.

    Args:
        node: who is to keep it.
        cid: what.
        timeout_s: how long the node may take to fetch it.
        heed: called each second; may raise to give up.

    Raises:
        NotFetchedError: it did not come by all of it in time.
        KuboError: it failed, as on a full disk: carries its words.
        KuboUnreachableError: no answer.
    """
    params = [("arg", cid), ("recursive", "true"), ("timeout", _duration(timeout_s))]
    try:
        _object(node, "pin/add", params, timeout_s + _GRACE_S, heed=heed)
    except KuboError as error:
        raise _as_not_fetched(error, node, cid, timeout_s) from error


def unpin(node: IpfsNode, cid: str) -> None:
    """Let a node forget a CID that it has pinned recursively; not pinned is fine.

    Raises:
        KuboError, KuboUnreachableError: see each.
    """
    try:
        _object(node, "pin/rm", [("arg", cid), ("recursive", "true")], _UNPIN_S)
    except KuboError as error:
        if "not pinned" not in error.said and "pinned indirectly" not in error.said:
            raise


def _as_not_fetched(error: KuboError, node: IpfsNode, cid: str, timeout_s: float) -> KuboError:
    if "deadline exceeded" not in error.said:
        return error
    return NotFetchedError(
        f"{node.name} did not come by all of {cid} within {timeout_s:g} s: no node that it reaches gives it.",
        said=error.said,
    )


# --- one request -----------------------------------------------------------------------------------


def _object(
    node: IpfsNode,
    command: str,
    params: Params = (),
    limit_s: float | None = None,
    *,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return the JSON object that a command answers."""
    exchange = Exchange(node, command, limit_s=limit_s or _ASK_S, heed=heed)
    with exchange.answer(params) as answer:
        answer.read()
    if late := exchange.late_error:
        raise KuboError(f"{node.name} at {node.api} failed at {command}: {late}.", said=late)
    try:
        found = answer.json()
    except ValueError as error:
        raise exchange.foreign(answer.text) from error
    if not isinstance(found, dict):
        raise exchange.foreign(answer.text)
    return found


def _duration(seconds: float) -> str:
    """Return seconds as Go writes them."""
    return f"{seconds:.3f}s"
