"""What tests of a component's deployments share: a host with its settings, and the journals that it keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.environment import Environment
from rules.entries import Moved, Noted, stamped
from rules.environment import Monitoring
from rules.journal import JournalView
from tasks.journal import journals

#: One run a day: what is tested is the way there and back.
_SELDOM = Monitoring(every_s=86_400, for_s=86_400)


def become_host(monkeypatch: pytest.MonkeyPatch, journal_dir: Path, *, environment: str) -> None:
    """Let this process deploy as a host with its own journals, to an environment of this name."""
    monkeypatch.setenv("SOVEREIGN_JOURNAL_DIR", str(journal_dir))
    monkeypatch.setenv("SOVEREIGN_HOST", "here")
    monkeypatch.setenv("SOVEREIGN_BASELINE_S", "0.3")
    Environment(monitoring=_SELDOM, backup_keep_s=0.001).save(environment, overwrite=True)


def views_of(journal_dir: Path) -> list[JournalView]:
    """Return all journals of a host, oldest first."""
    found = [journal.read() for journal in journals(journal_dir)]
    return sorted(found, key=lambda view: view.opened.at)


def notes_of(view: JournalView, about: str) -> list[str]:
    """Return what was noted of a kind, oldest first."""
    return [e.words for e in view.entries if isinstance(e, Noted) and e.about == about]


def complete(journal_dir: Path) -> None:
    """Let the time be over in which the newest deployment could be taken back."""
    newest = max(journals(journal_dir), key=lambda journal: journal.read().opened.at)
    moved = Moved(state="completed", reason="its time is over", by="test")
    newest.append(stamped(moved, datetime.now(UTC)))
