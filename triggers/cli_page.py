"""The page of a dry run, as a terminal shows it and as an exit code tells it."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markdown import Markdown

from triggers.live_text import clean

#: A row of `rules.record.checklist_page` that blocks: its result is bold.
_BLOCKS = re.compile(r"^\| [^|]* \| (?P<id>[a-z0-9-]+) \| \*\*[^|]*\| (?P<evidence>.*) \|$", re.MULTILINE)
#: A dry run tells nobody, and so cannot know: the deployment tells, and is judged by that.
_TOLD_LATER = ("team-notified", "a dry run tells nobody; the deployment will.")


def blocking_rows(page: str) -> tuple[str, ...]:
    """Return the rows of the checklists on a dry run's page that would block the deployment itself."""
    rows = {(row["id"], row["evidence"]) for row in _BLOCKS.finditer(page)}
    return tuple(sorted({name for name, _ in rows - {_TOLD_LATER}}))


def print_page(console: Console, page: str, *, is_drawn: bool) -> None:
    """Show a Markdown page: drawn, or as it is written."""
    lines = "\n".join(_line(text) for text in page.split("\n"))
    if is_drawn:
        console.print(Markdown(lines))
    else:
        console.print(lines, soft_wrap=True)


def _line(text: str) -> str:
    """Return a line of a page with its indent, without what a terminal would obey."""
    return text[: len(text) - len(text.lstrip(" "))] + clean(text)
