"""What is known of a deployment here: its journal on this disk, completed from the mirror."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rules.entries import Locked, parse
from rules.errors import ApiUnavailableError
from rules.journal import JournalView, view
from tasks.journal import JournalFile, NoJournalError, journals, mirrored_lines
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def api_if_any(settings: Settings) -> Iterator[PrefectApi | None]:
    """Give Prefect's API as a recovery needs it, which does not wait long; None where there is none."""
    try:
        api = PrefectApi(settings)
    except ApiUnavailableError:
        yield None
        return
    api.patience_s = settings.api_patience_undoing_s
    with api:
        yield api


def readable_journals(settings: Settings) -> Iterator[tuple[JournalFile, JournalView]]:
    """Yield every journal of this host with what it says; one that is damaged is no trouble to the others."""
    for journal in journals(settings.journal_dir):
        try:
            known = journal.read()
        except (ValueError, NoJournalError):
            log.exception("%s cannot be read: left out", journal.path)
            continue
        yield journal, known


def journal_here(deployment: str, api: PrefectApi | None, settings: Settings) -> JournalFile:
    """Return the deployment's journal, completed from its mirror when another host wrote (more of) it.

    Raises:
        NoJournalError: neither this host nor the mirror knows it.
    """
    journal = JournalFile(settings.journal_dir, deployment)
    here = journal.path.read_bytes() if journal.path.exists() else b""
    if here and (journal.read().is_terminal or journal.owner_lives()):
        return journal
    lines = _mirrored(api, deployment)
    if not here and not lines:
        raise NoJournalError(
            f"neither {settings.journal_dir} nor Prefect's API has a journal of {deployment}: it never got "
            "as far as changing anything"
        )
    if not here or (len(lines) > len(here) and lines.startswith(here)) or _was_taken_over(journal, lines):
        journal.adopt(lines)
    return journal


def _mirrored(api: PrefectApi | None, deployment: str) -> bytes:
    try:
        return mirrored_lines(api, deployment) if api else b""
    except ApiUnavailableError as error:
        log.warning("going by this host's journal of %s alone: %s", deployment, error)
        return b""


def _was_taken_over(journal: JournalFile, lines: bytes) -> bool:
    """Whether the mirror has a lock that this journal never had: another host went on with it.

    What only this journal has then counts no more: a step reported done, which its undo does not need.
    """
    if not lines:
        return False
    theirs = view(parse(lines))
    return theirs.token is not None and theirs.token not in _tokens(journal.read())


def _tokens(known: JournalView) -> set[str]:
    return {entry.token for entry in known.entries if isinstance(entry, Locked)}
