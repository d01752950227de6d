"""The demo's changes of content in IPFS: what they are, and what they end in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rich.console import Console

from lab.content import LabContent
from rules.content_change import ContentRelease


@dataclasses.dataclass(frozen=True)
class ContentScene:
    """One release of the content, what happens to a node meanwhile, and what it is to end in."""

    title: str
    release: str
    ends: str
    harm: Callable[[LabContent, str], None] = lambda _lab, _release: None

    def change(self, lab: LabContent) -> ContentRelease:
        """Write the content and return its change."""
        change = lab.change(self.release)
        self.harm(lab, self.release)
        return change


def _lie(lab: LabContent, release: str) -> None:
    lab.kubo.lie("two", lab.cids(release)["handbook.md"], b"something else")


CONTENT_SCENES = (
    ContentScene("Content in IPFS, and the rows that refer to it", "c2", "promoted"),
    ContentScene("Content that one node gives back wrongly", "c3", "rolled_back", _lie),
)


def show_content(lab: LabContent, console: Console) -> None:
    """Collect garbage on every node, and print whether what the rows refer to is whole there."""
    collected = sum(len(lab.kubo.gc(node.name)) for node in lab.kubo.nodes)
    missing = lab.missing()
    console.print(
        f"The content's rows: {len(lab.references())} on {len(lab.kubo.nodes)} nodes; after a collection of "
        f"{collected} blocks {len(missing)} do not resolve.",
        soft_wrap=True,
    )
