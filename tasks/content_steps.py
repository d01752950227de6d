"""Each action on IPFS content as a Prefect task, named after what it does to which node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import assert_never

from rules.content_actions import (
    AddContent,
    ContentAction,
    PinContent,
    SetReferences,
    VerifyContent,
    VerifyReferences,
)
from rules.content_change import ContentRelease
from tasks import content_references, ipfs_content
from tasks.as_task import as_task
from tasks.deployment import OpenDeployment
from tasks.report import publish_upload

_SHOWN_EVERY_S = 2.0

add_content = as_task(ipfs_content.add_content, "add content", "{action.node}: add {action.root}")
pin_content = as_task(ipfs_content.pin_content, "pin content", "{action.node}: pin", retries=1)
verify_content = as_task(ipfs_content.verify_content, "verify content", "{content.name}: verify")
set_references = as_task(
    content_references.set_references, "set references", "{references.table}: set references"
)
verify_references = as_task(
    content_references.verify_references, "verify references", "{content.name}: verify references"
)


def change_content(deployment: OpenDeployment, change: ContentRelease, action: ContentAction) -> None:
    """Do one action of a plan on IPFS content, or on the rows that refer to it.

    Raises:
        DeployError: it failed; see each task.
    """
    content, database, name = (
        deployment.opened.changed_content,
        deployment.opened.changed_database,
        deployment.name,
    )
    heed = deployment.prove_wanted
    match action:
        case AddContent():
            add_content(content, change, action, progress=_progress(deployment, action), heed=heed)
        case PinContent():
            pin_content(content, action, heed=heed)
        case VerifyContent():
            deployment.note("content_verified", verify_content(content, action, heed=heed))
        case SetReferences():
            set_references(database, content.references, action, deployment=name, heed=heed)
        case VerifyReferences():
            words = verify_references(content, database, action, deployment=name, heed=heed)
            deployment.note("references_verified", words)
        case unknown:
            assert_never(unknown)


def _progress(deployment: OpenDeployment, action: AddContent) -> Callable[[int], None]:
    """Return what shows how much of the content was sent: every few seconds at most."""
    shown_at = time.monotonic()

    def progress(sent_bytes: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at > _SHOWN_EVERY_S:
            shown_at = time.monotonic()
            publish_upload(deployment, action.node, min(1.0, sent_bytes / max(1, action.size_bytes)))

    return progress
