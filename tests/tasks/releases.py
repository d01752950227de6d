"""Releases that tests leave by hand: the journals of one and of its components, in any states."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rules.entries import Done, Entry, Intent, Locked, Moved, Opened, Planned, line
from rules.fleet import NOBODY
from rules.journal import JournalView
from rules.plan import Plan
from rules.release import Release
from rules.release_plan import component_deployment, plan_release
from tasks.journal import JournalFile
from tasks.settings import Settings
from tests.rules.releases import application, component, whole
from tests.tasks.deploying import opening

#: What a deployment has gone through to be in a state.
_WAYS = {
    "running": (),
    "promoted": ("promoted",),
    "completed": ("promoted", "completed"),
    "superseded": ("promoted", "superseded"),
    "rolling_back": ("rolling_back",),
    "rolled_back": ("rolling_back", "rolled_back"),
    "rollback_failed": ("rolling_back", "rollback_failed"),
    "blocked": ("blocked",),
    "aborted": ("aborted",),
}
HOUR = timedelta(hours=1)


class Left:
    """A release of components without plans, so that their way back is only a matter of journals.

    Args:
        settings: where its journals are.
        states: component -> the state it is left in; "" is one that never began.
        state: the release's own.
        ago: how long ago it was promoted.
        fields: of the opening entries.
    """

    def __init__(
        self,
        settings: Settings,
        states: Mapping[str, str],
        *,
        state: str = "running",
        ago: timedelta = HOUR,
        release: Release | None = None,
        **fields: Any,
    ) -> None:
        self.settings, unique = settings, uuid.uuid4().hex[:8]
        self.ended_at = datetime.now(UTC) - ago
        #: Targets of its own: tests share a server.
        self.targets = {name: f"application-{name}-{unique}" for name in states}
        changes = {name: application(f"{name}-{unique}") for name in states}
        self.release = release or whole(*(component(name, change) for name, change in changes.items()))
        self.name = f"emily-2-0-{unique}"
        self.ids = {name: component_deployment(self.name, number, name) for number, name in enumerate(states)}
        self.opened = opening(
            NOBODY,
            deployment=self.name,
            target=f"release-emily-{unique}",
            component="release",
            holds=tuple(sorted(self.targets.values())),
            **fields,
        )
        self._leave(self.opened, state, *self._walked(plan_release(self.release, self.name)))
        for name, own in states.items():
            if own:
                self._leave(self.part(name, **fields), own)

    def part(self, name: str, **fields: Any) -> Opened:
        """Return how a component opens its deployment."""
        return opening(
            NOBODY,
            deployment=self.ids[name],
            target=self.targets[name],
            part_of=self.name,
            **fields,
        )

    def journal(self, name: str = "") -> JournalFile:
        """Return the journal of a component; of the release itself without a name."""
        return JournalFile(self.settings.journal_dir, self.ids[name] if name else self.name)

    def view(self, name: str = "") -> JournalView:
        return self.journal(name).read()

    def states(self) -> dict[str, str]:
        """Return the state of each component that has a journal."""
        return {name: self.view(name).state for name in self.ids if self.journal(name).path.exists()}

    def _walked(self, plan: Plan) -> list[Entry]:
        entries: list[Entry] = [Planned(plan=plan)]
        for step in plan.steps:
            assert step.undo
            entries += [
                Intent(number=step.number, title=step.title, undo=step.undo),
                Done(number=step.number),
            ]
        return entries

    def _leave(self, opened: Opened, state: str, *entries: Entry) -> None:
        moves = [
            Moved(state=one, reason="left by a test", by="test", at=self.ended_at) for one in _WAYS[state]
        ]
        locked = Locked(token=str(uuid.uuid4()))
        text = b"".join(line(entry) for entry in (opened, locked, *entries, *moves))
        JournalFile(self.settings.journal_dir, opened.deployment).adopt(text)
