"""Take a failed way back up again: as a deployment of its own, so that what has ended stays as it ended."""

from __future__ import annotations

from rules.continued import AGAIN
from rules.entries import Entry, Planned, line
from rules.journal import JournalView
from tasks.journal import JournalFile, NoJournalError
from tasks.known import journal_here
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings


def newest_try(deployment: str, api: PrefectApi | None, settings: Settings) -> JournalFile | None:
    """Return the journal of a deployment, or of the last that took its failed way back up; None: none."""
    journal: JournalFile | None = None
    while True:
        try:
            journal = journal_here(deployment, api, settings)
        except NoJournalError:
            return journal
        if journal.read().state != "rollback_failed":
            return journal
        deployment += AGAIN


def last_try(deployment: str, api: PrefectApi | None, settings: Settings) -> str:
    """Return the newest continuation of a deployment, begun now if all before have failed.

    Raises:
        NoJournalError: neither this host nor the mirror knows the deployment.
    """
    journal = journal_here(deployment, api, settings)
    if journal.read().state != "rollback_failed":
        return deployment
    again = f"{deployment}{AGAIN}"
    with journal.exclusive(patience_s=settings.takeover_patience_s):
        try:
            journal_here(again, api, settings)
        except NoJournalError:
            _begin_again(journal.read(), again, settings)
    return last_try(again, api, settings)


def _begin_again(failed: JournalView, again: str, settings: Settings) -> None:
    """Begin a journal that takes over what `failed` could not undo."""
    opened = failed.opened.model_copy(
        update={
            "deployment": again,
            "continues": failed.opened.deployment,
            "host": settings.host,
            "summary": f"take {failed.opened.deployment} back once more",
        }
    )
    plans = [entry for entry in failed.entries if isinstance(entry, Planned)]
    kept: list[Entry] = [opened, *plans, *reversed(failed.to_undo)]
    JournalFile(settings.journal_dir, again).adopt(b"".join(line(entry) for entry in kept))
