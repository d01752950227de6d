"""What rows of a database refer to in IPFS: read, set and restored, each in one transaction.

Rows are locked in the order of their keys and waited for in short tries, so that nobody queues for long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from rules.cid_spellings import spellings
from rules.content_actions import RestoreReferences, SetReferences, VerifyReferences
from rules.content_work import some_of
from rules.database import Database
from rules.errors import InvalidRequestError, VerdictFailedError, WorldMovedError
from rules.ipfs import Cid, ContentFile, ContentReferences, IpfsContent, IpfsNode
from tasks import kubo
from tasks.kubo import KuboUnreachableError
from tasks.postgres import Session, connection, end_sessions, in_short_tries
from tasks.reference_rows import in_words, reference_rows

log = logging.getLogger(__name__)


# --- read ------------------------------------------------------------------------------------------


def read_references(
    database: Database, references: ContentReferences, keys: Iterable[str], *, deployment: str
) -> dict[str, str | None]:
    """Return what the rows of `keys` refer to, as it is written there; None: NULL. No row: not in it.

    Args:
        database: which.
        references: the table and its columns.
        keys: as the database writes them: of the row 7 it is `7`, not `07`.
        deployment: for whom.

    Raises:
        InvalidRequestError: there is no such table or column, it holds no text, the key's column cannot hold
            such keys, or a key names several rows.
        DatabaseError: see `connection`.
    """
    with connection(database, deployment=deployment, read_only=True) as session:
        held = reference_rows(session, references).held(list(dict.fromkeys(keys)))
    if several := sorted(key for key, values in held.items() if len(values) > 1):
        raise InvalidRequestError(
            f"{references.table}.{references.key} names several rows for {some_of(several)}: it has to be "
            "unique. Nothing was changed."
        )
    return {key: values[0] for key, values in held.items()}


def referred(
    database: Database, references: ContentReferences, cids: Iterable[Cid], *, deployment: str
) -> frozenset[Cid]:
    """Return which of `cids` any row of the table refers to, whether its key is the change's or not.

    A row refers to a CID that it contains: alone, or in `ipfs://CID`, `/ipfs/CID/path` or a URL; in either
    version, in base32 or base58. That may find too much, never too little.

    Raises:
        InvalidRequestError: there is no such table or column, or it holds no text.
        DatabaseError: see `connection`; also where row-level security would hide rows.
    """
    spelt = {text: cid for cid in cids for text in spellings(cid)}
    if not spelt:
        return frozenset()
    with connection(database, deployment=deployment, read_only=True) as session:
        found = reference_rows(session, references).referred(sorted(spelt))
    return frozenset(spelt[text] for text in found)


# --- set and restore -------------------------------------------------------------------------------


def set_references(
    database: Database,
    references: ContentReferences,
    action: SetReferences,
    *,
    deployment: str,
    heed: Callable[[], None],
) -> None:
    """Have all rows refer to the new content, in one transaction. All of them new already is fine.

    Args:
        database: which.
        references: the table and its columns.
        action: which rows, from what to what.
        deployment: for whom.
        heed: asked before each try; may raise to give up.

    Raises:
        WorldMovedError: a row is gone, or refers to something else than planned; no row was changed.
        StepFailedError: a lock was not to be had, or a trigger kept a row from it; no row was changed.
        InvalidRequestError: see `read_references`; no row was changed.
        DatabaseError: see `in_short_tries`.
    """
    changes = {change.key: change for change in action.changes}

    def work(session: Session) -> int:
        rows = reference_rows(session, references)
        now = rows.locked(sorted(changes))
        if all(now.get(key) == [change.new] for key, change in changes.items()):
            return 0
        moved = [
            f"row {key} {in_words(now.get(key, []))}, not {change.old or 'NULL'}"
            for key, change in sorted(changes.items())
            if now.get(key) != [change.old]
        ]
        if moved:
            raise WorldMovedError(
                f"{references.table} is not what the plan was made for: {some_of(moved)}. No row was "
                "changed. What was pinned for this is taken back. Deploy again."
            )
        rows.write({key: change.new for key, change in changes.items()})
        return len(changes)

    what = f"setting {len(changes)} references of {references.table}"
    changed = in_short_tries(database, work, deployment=deployment, what=what, heed=heed)
    log.info("%s: %d of %d rows changed", references.table, changed, len(changes))


def restore_references(
    database: Database, references: ContentReferences, step: RestoreReferences, *, deployment: str
) -> str:
    """Have rows that refer to the new content refer to the old again; say in words what was done and left.

    Rows that refer to something else by now, or are gone, were changed by somebody else and stay so.

    Raises:
        StepFailedError: a lock was not to be had, or a trigger kept a row from it; no row was changed.
        InvalidRequestError: see `read_references`; no row was changed.
        DatabaseError: see `in_short_tries`.
    """
    changes = {change.key: change for change in step.changes if change.old != change.new}
    end_sessions(database, deployment=deployment)

    def work(session: Session) -> tuple[int, list[str]]:
        rows = reference_rows(session, references)
        now = rows.locked(sorted(changes))
        back = {key: change.old for key, change in changes.items() if now.get(key) == [change.new]}
        if back:
            rows.write(back)
        others = [
            f"row {key} {in_words(now.get(key, []))}"
            for key, change in sorted(changes.items())
            if now.get(key) not in ([change.new], [change.old])
        ]
        return len(back), others

    what = f"restoring {len(changes)} references of {references.table}"
    restored, others = in_short_tries(database, work, deployment=deployment, what=what)
    said = [f"{references.table}: {restored} of {len(changes)} rows refer to what they did before again"]
    if already := len(changes) - restored - len(others):
        said.append(f"{already} did already")
    if others:
        said.append(f"somebody else has changed these, and they are left so: {some_of(others)}")
    return f"{'; '.join(said)}."


# --- verify ----------------------------------------------------------------------------------------


def verify_references(
    content: IpfsContent,
    database: Database,
    action: VerifyReferences,
    *,
    deployment: str,
    heed: Callable[[], None],
) -> str:
    """Prove that the rows refer to what they should, and that nodes keep and give it; say so in words.

    A node that does not answer is told, and does no harm as long as the content's replicas are proven.

    Args:
        content: its nodes, and the table.
        database: which.
        action: which rows refer to what, and the nodes that keep it.
        deployment: for whom.
        heed: asked before each node and file, and each second of reading one; may raise to give up.

    Raises:
        WorldMovedError: a row refers to something else.
        VerdictFailedError: a node has not pinned it, fails, or gives something else; or too few answer.
        DatabaseError: see `connection`.
    """
    heed()
    wanted = {change.key: change.new for change in action.changes}
    _refuse_other_rows(content, database, wanted, deployment)
    away: dict[str, str] = {}
    for name in action.nodes:
        heed()
        try:
            _prove(content, content.node(name), action, heed=heed)
        except KuboUnreachableError as error:
            log.warning("%s is left out: %s", name, error)
            away[name] = str(error)
    _refuse_few(content, action, away)
    _refuse_other_rows(content, database, wanted, deployment)  # what was proven is what they refer to now
    proven = ", ".join(name for name in action.nodes if name not in away)
    silent = f" {', '.join(away)} did not answer." if away else ""
    return (
        f"{len(wanted)} rows of {content.references.table} refer to {len(set(wanted.values()))} CIDs; "
        f"{proven} pinned each and gave {len(action.files)} files of them.{silent}"
    )


def _refuse_other_rows(
    content: IpfsContent, database: Database, wanted: Mapping[str, str], deployment: str
) -> None:
    now = read_references(database, content.references, wanted, deployment=deployment)
    moved = [
        f"row {key} {in_words([now[key]] if key in now else [])}, not {cid}"
        for key, cid in sorted(wanted.items())
        if key not in now or now[key] != cid
    ]
    if moved:
        raise WorldMovedError(
            f"{content.references.table} does not refer to the new content: {some_of(moved)}. Somebody else "
            "has changed that. What this deployment has set is set back, what others have set is left."
        )


def _prove(
    content: IpfsContent, node: IpfsNode, action: VerifyReferences, *, heed: Callable[[], None]
) -> None:
    cids = sorted({change.new for change in action.changes})
    try:
        pinned = set(kubo.pinned(node, cids))
        if lacking := [cid for cid in cids if cid not in pinned]:
            raise VerdictFailedError(
                f"{node.name} has not pinned {some_of(lacking)}, which rows refer to now. They are set back."
            )
        for cid, file in sorted(action.files.items()):
            heed()
            given = kubo.read(node, cid, timeout_s=content.fetch_s, heed=heed)
            _refuse_other_bytes(node, cid, file, given)
    except KuboUnreachableError:
        raise
    except kubo.KuboError as error:
        raise VerdictFailedError(f"{error} Rows refer to that now; they are set back.") from error


def _refuse_other_bytes(node: IpfsNode, cid: Cid, file: ContentFile, given: tuple[int, str]) -> None:
    size_bytes, sha256 = given
    if given != (file.size_bytes, file.sha256):
        raise VerdictFailedError(
            f"{node.name} gives {size_bytes} bytes with SHA-256 {sha256} for {cid}, not the "
            f"{file.size_bytes} with {file.sha256} of {file.path or 'the content'}. Rows refer to that now; "
            "they are set back."
        )


def _refuse_few(content: IpfsContent, action: VerifyReferences, away: Mapping[str, str]) -> None:
    proven = len(action.nodes) - len(away)
    if proven < max(1, content.replicas):
        raise VerdictFailedError(
            f"What rows refer to now was proven on {proven} of the {content.replicas} nodes that have to "
            f"keep it. {' '.join(away.values())} The rows are set back. Bring the nodes back, and deploy "
            "again."
        )
