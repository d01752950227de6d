"""Releases of content that tests do by hand on real nodes and rows, with the journals that they leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab.kubo import LabKubo
from rules.content_actions import ContentAction
from rules.content_change import ContentRelease
from rules.database import Database
from rules.entries import DeploymentState, Entry, Intent, Moved, Planned, line
from rules.fleet import NOBODY
from rules.ipfs import IpfsContent
from rules.journal import JournalView
from rules.plan import Plan
from rules.strategy import InPlace
from tasks.journal import JournalFile
from tasks.planning import plan_now
from tasks.rollback import Rollback
from tasks.settings import Settings
from tests.tasks.databases import session
from tests.tasks.deploying import opening
from tests.tasks.pinning import do, files_in, release, rows_of

#: What rows of the first and of each later release refer to.
SITE = {"site": "img", "logo": "img/logo.svg"}


@dataclass
class Shelf:
    """Nodes, rows, and the journals of what was done to both."""

    lab: LabKubo
    content: IpfsContent
    database: Database
    settings: Settings
    directory: Path

    @property
    def rows(self) -> dict[str, str | None]:
        return rows_of(self.database)

    def change(self, name: str) -> ContentRelease:
        """Return a release of that name, in files of its own."""
        place = self.directory / name
        if not place.exists():
            files_in(place, index_html=os.urandom(50), img__logo_svg=os.urandom(3000), loose=os.urandom(10))
        return release(place, SITE, name=name)

    def left(self, change: ContentRelease, *states: DeploymentState, up_to: int | None = None) -> JournalFile:
        """Do a release, or its first steps, and leave its journal, which then went through these states."""
        opened = opening(
            NOBODY,
            component=change.component,
            target=change.target,
            content=self.content,
            database=self.database,
            users=(),
        )
        plan = plan_now(change, InPlace(), opened, self.settings)
        assert plan.steps
        steps = plan.steps[:up_to]
        intents = [Intent(number=s.number, title=s.title, undo=s.undo) for s in steps if s.undo]
        journal = JournalFile(self.settings.journal_dir, opened.deployment)
        entries: list[Entry] = [opened, Planned(plan=plan), *intents]
        journal.adopt(b"".join(line(entry) for entry in entries))
        for step in steps:
            assert isinstance(step.action, ContentAction)
            do(self.content, self.database, change, step.action, deployment=opened.deployment)
        moved(journal, *states)
        return journal

    def take_back(self, journal: JournalFile) -> JournalView:
        """Take a release back as whoever recovers it does, with no API."""
        return Rollback(journal, settings=self.settings, by="test").run("The test wants it back.")

    def refer(self, key: str, text: str | None) -> None:
        """Have a row refer to something, as a user would."""
        with session(self.database) as connection:
            connection.execute("UPDATE documents SET cid = %s WHERE name = %s", (text, key))

    def remove(self, key: str) -> None:
        """Remove a row, as a user would."""
        with session(self.database) as connection:
            connection.execute("DELETE FROM documents WHERE name = %s", (key,))

    def collect(self) -> None:
        """Collect garbage everywhere; each node that runs still holds what rows refer to."""
        for node in self.lab.nodes:
            self.lab.gc(node.name)
        lost = [
            (node.name, key)
            for node in self.lab.nodes
            for key, cid in self.rows.items()
            if cid and not self.lab.has(node.name, cid)
        ]
        assert lost == []


def moved(journal: JournalFile, *states: DeploymentState) -> None:
    for state in states:
        journal.append(Moved(state=state, reason="by hand", by="test", at=datetime.now(UTC)))


def plan_of(journal: JournalFile) -> Plan:
    plan = journal.read().plan
    assert plan
    return plan


def told(about: str, view: JournalView, words: Callable[[str], bool] = bool) -> bool:
    """Whether a note of that kind says so."""
    return any(getattr(e, "about", None) == about and words(getattr(e, "words", "")) for e in view.entries)
