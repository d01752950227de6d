"""Take one step of a change of IPFS content back: from the journal's data alone, with no API."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from rules.content_actions import ContentUndo, RestoreReferences, UnpinContent
from rules.entries import Opened
from tasks.content_references import restore_references
from tasks.ipfs_content import unpin_content


def take_content_back(opened: Opened, step: ContentUndo, *, tell: Callable[[str, str], None]) -> None:
    """Bring about the state of the content that `step` names. Repeating it changes nothing.

    Args:
        opened: of the deployment.
        step: what to take back.
        tell: keeps a note, of a kind and in words, of what was found and left.

    Raises:
        DeployError: it did not work; the message says how far it came.
    """
    content, database, name = opened.changed_content, opened.changed_database, opened.deployment
    match step:
        case RestoreReferences():
            tell("references", restore_references(database, content.references, step, deployment=name))
        case UnpinContent():
            tell("unpinned", unpin_content(content, database, step, deployment=name))
        case unknown:
            assert_never(unknown)
