"""What follows for a promoted release from its components: it is completed, superseded, or taken back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from rules.cluster_loss import LossNotAcceptedError
from rules.entries import DeploymentState, Moved, Noted
from rules.errors import ApiUnavailableError
from rules.journal import JournalView
from rules.release_states import Decision, armed_s, decide, release_of
from tasks.again import newest_try
from tasks.journal import JournalFile
from tasks.monitoring import append_mirrored
from tasks.prefect_api import PrefectApi
from tasks.proposal import propose_rollback
from tasks.release import BY_RELEASE, component_views
from tasks.release_bake import cancel_after_bake
from tasks.settings import Settings

log = logging.getLogger(__name__)


def is_armed_release(deployment: str, settings: Settings) -> bool:
    """Return whether a release can still be taken back by this host: its components stay armed so long.

    One whose way back failed is taken up again, and by then its components must still be there to go back.
    """
    newest = newest_try(deployment, None, settings) if deployment else None
    view = newest.read() if newest else None
    return view is not None and (not view.is_terminal or view.state == "rollback_failed")


def follow(journal: JournalFile, api: PrefectApi | None, settings: Settings, *, by: str) -> JournalView:
    """Have a promoted release follow its components: all of them stay, or all are taken back.

    Where a way back would lose more than it may without asking, a rollback is proposed to a person.

    Raises:
        DeployError: it cannot be taken back now; nothing was changed.
    """
    # the two of them take each other's deployments back
    from tasks.recover import recover  # noqa: PLC0415

    why = _settle(journal, api, settings)
    if not why:
        return journal.read()
    try:
        return recover(journal.deployment, cause=why, by=by, settings=settings, asker="person")
    except LossNotAcceptedError as error:
        _propose(journal, f"{why} {error}", api=api, settings=settings)
        raise


def _propose(journal: JournalFile, reason: str, *, api: PrefectApi | None, settings: Settings) -> None:
    if api and propose_rollback(api, journal.deployment, reason=reason, approval=True):
        note = Noted(about="rollback_proposed", words=reason, by=BY_RELEASE)
        append_mirrored(journal, [note], api=api, settings=settings)


def _settle(journal: JournalFile, api: PrefectApi | None, settings: Settings) -> str:
    """Complete or supersede a promoted release where its components say so; return why to take it back."""
    view = journal.read()
    if view.state != "promoted" or release_of(view) is None:
        return ""
    parts = component_views(view, api, settings)
    decision = decide(
        {name: part.state for name, part in parts.items()}, is_over=_is_over(view, *parts.values())
    )
    match decision.what:
        case "take_back":
            return decision.why
        case "complete":
            _complete(journal, parts.values(), decision, api=api, settings=settings)
        case "supersede":
            _end(journal, "superseded", decision.why, api=api, settings=settings)
            _cancel(journal.deployment, api)
        case "keep":
            pass
    return ""


def _is_over(view: JournalView, *parts: JournalView) -> bool:
    """Whether the time is over in which the release and its components can be taken back."""
    promoted_at, policy = view.moved_at("promoted"), view.opened.environment.monitoring
    if promoted_at is None:
        return False
    waits = any(
        isinstance(entry, Noted) and entry.about == "rollback_proposed"
        for one in (view, *parts)
        for entry in one.entries
    )
    limit_s = armed_s(policy) + (policy.approval_timeout_s if waits else 0.0)
    return (datetime.now(UTC) - promoted_at).total_seconds() > limit_s


def _complete(
    journal: JournalFile,
    parts: Iterable[JournalView],
    decision: Decision,
    *,
    api: PrefectApi | None,
    settings: Settings,
) -> None:
    """End the release's time, its components' first: as long as one can be taken back, all can."""
    # what follows the end of a deployment is told by rooms that know how deployments are taken back
    from tasks.aftermath import after_end  # noqa: PLC0415

    for part in parts:
        if part.state == "promoted":
            own = JournalFile(settings.journal_dir, part.opened.deployment)
            after = _end(own, "completed", decision.why, api=api, settings=settings)
            after_end(after, api=api, settings=settings)
    _end(journal, "completed", decision.why, api=api, settings=settings)


def _end(
    journal: JournalFile, state: DeploymentState, why: str, *, api: PrefectApi | None, settings: Settings
) -> JournalView:
    entry = Moved(at=datetime.now(UTC), state=state, reason=why, by=BY_RELEASE)
    return append_mirrored(journal, [entry], api=api, settings=settings)


def _cancel(deployment: str, api: PrefectApi | None) -> None:
    if api is None:
        return
    try:
        cancel_after_bake(api, deployment)
    except ApiUnavailableError as error:
        log.warning("what waits for the bake of %s is still scheduled: %s", deployment, error)
