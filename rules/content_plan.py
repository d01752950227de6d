"""Plan new content in IPFS: added, pinned where it is to stay, proven, and only then referred to.

What rows referred to before stays pinned through the bake: the way back needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rules.content_actions import (
    AddContent,
    PinContent,
    RestoreReferences,
    SetReferences,
    UnpinContent,
    UnpinOld,
    VerifyContent,
    VerifyReferences,
)
from rules.content_change import ContentRelease
from rules.content_work import ContentWork, content_work, some_of
from rules.fleet import FleetState
from rules.ipfs import (
    Cid,
    ContentFile,
    ContentPath,
    ContentSituation,
    ContentState,
    IpfsContent,
    is_below,
)
from rules.plan import Plan, Step
from rules.rollout import numbered, step_of
from rules.strategy import InPlace

_SHOWN = 20  # rows that a note names one by one


def plan_content(
    change: ContentRelease, content: IpfsContent, fleet_before: FleetState, situation: ContentSituation
) -> Plan:
    """Return the steps that bring new content to those who follow the rows; none when they have it already.

    Args:
        change: what is asked for.
        content: its nodes, and what refers to it.
        fleet_before: of the application whose users are watched.
        situation: files, CIDs, rows and nodes as they were just read.

    Raises:
        InvalidRequestError: it cannot be done; says what would work. Nothing was touched.
    """
    work = content_work(change, content, situation)
    if not work.changed and not any(work.lacking(node) for node in work.nodes):
        steps: tuple[Step, ...] = ()
        notes = [f"{len(work.rows)} rows refer to it already, and {', '.join(work.nodes)} keep it pinned."]
    else:
        steps = numbered(_steps(content, work))
        notes = list(_notes(change, work))
    return Plan(
        change=change,
        strategy=InPlace(),
        before=fleet_before,
        content=_before(work),
        steps=steps,
        finish=tuple(_finish(work)) if steps else (),
        notes=(*notes, *_away(situation)),
    )


def concerned(plan: Plan) -> tuple[Cid, ...]:
    """Return the CIDs whose pins a plan is about, sorted: what is to be asked of the nodes."""
    if plan.content is None:
        return ()
    found = {cid for pinned in plan.content.pinned.values() for cid in pinned}
    found |= {cid for cid in plan.content.references.values() if cid is not None}
    for step in plan.steps:
        match step.action:
            case AddContent():
                found.add(step.action.root)
            case PinContent() | VerifyContent():
                found |= set(step.action.cids)
            case SetReferences() | VerifyReferences():
                found |= {row.new for row in step.action.changes}
            case _:
                continue
    return tuple(sorted(found))


def _before(work: ContentWork) -> ContentState:
    return ContentState(
        references={row.key: row.old for row in work.rows},
        pinned={node: tuple(sorted(work.pinned(node))) for node in work.nodes},
    )


# --- steps -----------------------------------------------------------------------------------------


def _steps(content: IpfsContent, work: ContentWork) -> Iterator[Step]:
    if work.is_added:
        yield _added(work)
    for node in work.nodes:
        if lacking := work.lacking(node):
            pin = PinContent(node=node, cids=lacking)
            yield step_of(
                f"{node}: fetch and pin {_count(lacking, 'CID')}", pin, UnpinContent(node=node, cids=lacking)
            )
    yield _verified(work)
    table = content.references.table
    if changed := work.changed:
        yield step_of(
            f"{table}: {_count(changed, 'row')} to the new content",
            SetReferences(changes=changed),
            RestoreReferences(changes=changed),
        )
    files = {cid: file for cid, file in (_smallest(work, path) for path in work.paths) if file is not None}
    verify = VerifyReferences(changes=work.rows, nodes=work.nodes, files=files)
    yield step_of(f"{table}: verify that {_count(work.rows, 'row')} and content agree", verify)


def _added(work: ContentWork) -> Step:
    situation = work.situation
    add = AddContent(node=work.first, root=work.root, cids=situation.cids, size_bytes=situation.size_bytes)
    title = f"{work.first}: add {_count(situation.files, 'file')}, {_size(situation.size_bytes)}"
    return step_of(title, add, UnpinContent(node=work.first, cids=(work.root,)))


def _verified(work: ContentWork) -> Step:
    files = {work.situation.cids[file.path]: file for file in _referred(work)}
    verify = VerifyContent(
        added_to=work.first, nodes=work.nodes, replicas=work.replicas, cids=work.wanted, files=files
    )
    title = (
        f"verify {_count(work.wanted, 'CID')} on {', '.join(work.nodes)}, {_count(files, 'file')} read back"
    )
    return step_of(title, verify)


def _referred(work: ContentWork) -> tuple[ContentFile, ...]:
    """Return the files that rows are to lead to."""
    return tuple(
        file for file in work.situation.files if any(is_below(file.path, path) for path in work.paths)
    )


def _smallest(work: ContentWork, path: ContentPath) -> tuple[str, ContentFile | None]:
    """Return the smallest file of what is at `path`, with its CID; None: an empty directory."""
    files = [file for file in work.situation.files if is_below(file.path, path)]
    if not files:
        return "", None
    one = min(files, key=lambda file: (file.size_bytes, file.path))
    return work.situation.cids[one.path], one


def _finish(work: ContentWork) -> Iterator[UnpinOld]:
    """Return what each node forgets in the end: what rows referred to, and the root if none refers to it."""
    for node in work.nodes:
        cids = [cid for cid in work.old if cid in work.pinned(node)]
        if work.is_added and node == work.first and work.root not in work.wanted:
            cids.append(work.root)
        if cids:
            yield UnpinOld(node=node, cids=tuple(dict.fromkeys(cids)))


# --- notes -----------------------------------------------------------------------------------------


def _notes(change: ContentRelease, work: ContentWork) -> Iterator[str]:
    situation = work.situation
    yield f"{_count(situation.files, 'file')}, {_size(situation.size_bytes)}; all of it is {work.root}."
    yield from _rows(change, work)
    loose = set(situation.files) - set(_referred(work))
    if loose:
        yield (
            f"{_count(loose, 'file')}, {_size(sum(file.size_bytes for file in loose))}, below nothing that "
            "these rows refer to: nothing keeps that once the bake is over."
        )
    for name in work.nodes:
        storage = situation.nodes[name].storage
        yield f"{name}: {_size(storage.used_bytes)} of {_size(storage.max_bytes)} used before."
    kept = {cid for name in work.nodes for cid in work.pinned(name)}
    if lost := [cid for cid in work.old if cid not in kept]:
        yield (
            f"Rows refer now to {some_of(lost)}, which no node that answers has pinned: nothing keeps it for "
            "a way back."
        )
    if old := [cid for cid in work.old if cid in kept]:
        yield f"Unpinned once the bake is over, where no row refers to it by then: {some_of(old)}."


def _rows(change: ContentRelease, work: ContentWork) -> Iterator[str]:
    changed = work.changed
    for row in changed[:_SHOWN]:
        path = change.references[row.key] or "all of it"
        yield f"Row {row.key}: from {row.old or 'NULL'} to {row.new} ({path})."
    if len(changed) > _SHOWN:
        yield f"{len(changed) - _SHOWN} more rows likewise; the plan's steps name each."
    if same := len(work.rows) - len(changed):
        yield f"{same} of {_count(work.rows, 'row')} refer to it already."


def _away(situation: ContentSituation) -> Iterator[str]:
    for name, why in sorted(situation.away.items()):
        yield (
            f"{name} gets nothing and keeps what it has, as it does not answer: {why.rstrip('.')}. Deploy "
            "the same again once it is back."
        )


def _count(things: Iterable[object], noun: str) -> str:
    number = len(tuple(things))
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes:,} bytes"  # noqa: PLR2004
