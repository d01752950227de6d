"""What is done to content in IPFS and to what refers to it, its way back, and what each means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import Count, Frozen, Name
from rules.ipfs import Cid, ContentFile, ContentPath, ContentState, ReferenceChange


class AddContent(Frozen):
    """Add the content to one node, pinned as a whole; every CID must come out as the plan says."""

    action: Literal["add_content"] = "add_content"
    node: Name
    root: Cid
    cids: dict[ContentPath, Cid] = Field(description='of every path, and "": all of it')
    size_bytes: Count


class PinContent(Frozen):
    """Have a node fetch and pin what will be referred to, recursively, and see that it says so."""

    action: Literal["pin_content"] = "pin_content"
    node: Name
    cids: Annotated[tuple[Cid, ...], Field(min_length=1)]


class VerifyContent(Frozen):
    """Prove that enough nodes hold it, and that each file is byte-exact from another node than it came to."""

    action: Literal["verify_content"] = "verify_content"
    added_to: Name
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    replicas: Count
    cids: Annotated[tuple[Cid, ...], Field(min_length=1)] = Field(description="that will be referred to")
    files: dict[Cid, ContentFile] = Field(
        description="files among what is below them, read back and compared"
    )


class SetReferences(Frozen):
    """Have the rows refer to the new content, all in one transaction; each must still have its old value."""

    action: Literal["set_references"] = "set_references"
    changes: Annotated[tuple[ReferenceChange, ...], Field(min_length=1)]


class VerifyReferences(Frozen):
    """Read the rows again, and prove that what each refers to resolves on every node that pinned it."""

    action: Literal["verify_references"] = "verify_references"
    changes: Annotated[tuple[ReferenceChange, ...], Field(min_length=1)]
    nodes: Annotated[tuple[Name, ...], Field(min_length=1)]
    files: dict[Cid, ContentFile] = Field(
        default_factory=dict, description="one, the smallest, of what each row refers to; read on every node"
    )


class UnpinOld(Frozen):
    """Let a node forget what was kept through the bake; kept if a row refers to it, gone already is fine."""

    action: Literal["unpin_old"] = "unpin_old"
    node: Name
    cids: Annotated[tuple[Cid, ...], Field(min_length=1)]


ContentAction = AddContent | PinContent | VerifyContent | SetReferences | VerifyReferences


class UnpinContent(Frozen):
    """Unpin what this deployment has pinned on a node; what a row refers to stays."""

    undo: Literal["unpin_content"] = "unpin_content"
    node: Name
    cids: tuple[Cid, ...] = Field(description="those that the node had not pinned before")

    def describe(self) -> str:
        """Return this step in words."""
        count = len(self.cids)
        return f"{self.node}: {count} {'CID' if count == 1 else 'CIDs'} not pinned"


class RestoreReferences(Frozen):
    """Have the rows refer to what they referred to before, all in one transaction.

    A row that refers to something else by now was changed by somebody else, and stays as it is.
    """

    undo: Literal["restore_references"] = "restore_references"
    changes: tuple[ReferenceChange, ...] = Field(description="as they were made: `old` is what comes back")

    def describe(self) -> str:
        """Return this step in words."""
        return f"{len(self.changes)} rows refer to their old content"


ContentUndo = UnpinContent | RestoreReferences


def content_applied(state: ContentState, action: ContentAction) -> ContentState:
    """Return the state after `action`: the meaning of each action, without the effect."""
    match action:
        case AddContent():
            return _pinned(state, action.node, {action.root})
        case PinContent():
            return _pinned(state, action.node, set(action.cids))
        case SetReferences():
            references: dict[str, str | None] = {**state.references}
            references.update({change.key: change.new for change in action.changes})
            return state.model_copy(update={"references": references})
        case VerifyContent() | VerifyReferences():
            return state


def content_undone(state: ContentState, step: ContentUndo) -> ContentState:
    """Return the state after `step`: the meaning of each undo step, without the effect."""
    match step:
        case UnpinContent():
            left = tuple(cid for cid in state.pinned.get(step.node, ()) if cid not in step.cids)
            return state.model_copy(update={"pinned": {**state.pinned, step.node: left}})
        case RestoreReferences():
            back = {c.key: c.old for c in step.changes if state.references.get(c.key) == c.new}
            return state.model_copy(update={"references": {**state.references, **back}})


def not_taken_back(now: ContentState, before: ContentState, after: ContentState) -> tuple[str, ...]:
    """Say in words what is not back after the way back: rows, and the pins of what they referred to.

    A row that refers neither to old nor to new content, or is gone, is somebody else's and no difference.
    What is pinned beyond is none either: a row refers to it by now, or its node was away. It harms nobody,
    and a way back that failed for it could never succeed.

    Args:
        now: of the nodes that answer.
        before: the change.
        after: the change, as it was planned.
    """
    words = [
        f"{key}: still refers to {new}, not {before.references[key]}"
        for key, new in sorted(after.references.items())
        if new != before.references[key] and now.references.get(key) == new
    ]
    for name, cids in sorted(before.pinned.items()):
        lacking = sorted(set(cids) - set(now.pinned.get(name, cids)))
        words += [f"{name}: {cid} is not pinned" for cid in lacking]
    return tuple(words)


def _pinned(state: ContentState, node: str, cids: set[str]) -> ContentState:
    now = tuple(sorted({*state.pinned.get(node, ()), *cids}))
    return state.model_copy(update={"pinned": {**state.pinned, node: now}})
