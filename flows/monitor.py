"""Watch a promoted deployment: scheduled runs that cover the monitoring time without a gap."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import flow, get_run_logger

from rules.cluster_loss import LossNotAcceptedError
from rules.entries import Monitored, Moved, Noted
from rules.errors import DeployError
from rules.journal import JournalView
from rules.message import Event
from rules.monitoring import MonitoringVerdict, MonitorTime, monitor_times
from rules.record import record_of
from tasks.aftermath import after_end, services_of, tell
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.known import journal_here
from tasks.monitor import Watched, watch_window
from tasks.monitoring import append_mirrored, cancel_monitoring
from tasks.prefect_api import PrefectApi
from tasks.proposal import propose_rollback
from tasks.recover import recover
from tasks.release_settle import is_armed_release
from tasks.services import Services
from tasks.settings import Settings

log = logging.getLogger(__name__)


class TakenBackByMonitoringError(DeployError):
    """What was promoted turned bad; the message says why, and whether it could be taken back."""


@flow(name="monitor")
def monitor(deployment: str, number: int) -> str:
    """Watch a promoted deployment through window `number`, and act by its environment's policy.

    Immediate: it is taken back at once. Delayed: a rollback is proposed, with its assessment, for a person to
    approve. The policy may say otherwise for each. A deployment that is no longer promoted ends its runs.

    Args:
        deployment: its id, as in the name of its artifacts.
        number: of the window, from 0.

    Returns:
        What was seen, in words.

    Raises:
        TakenBackByMonitoringError: it was taken back, or that was called for and refused; says which.
    """
    settings = Settings()
    with PrefectApi(settings) as api:
        journal = journal_here(deployment, api, settings)
        view = journal.read()
        window = _window(view, number)
        if window is None:
            cancel_monitoring(api, deployment)
            return f"{deployment} is {view.state}: there is nothing to watch."
        services = services_of(view, api)
        with journal.watched(patience_s=settings.takeover_patience_s):
            return _watch(journal, window, services, api=api, settings=settings)


def _window(view: JournalView, number: int) -> MonitorTime | None:
    promoted_at = view.moved_at("promoted")
    if view.state != "promoted" or promoted_at is None:
        return None
    windows = monitor_times(promoted_at, view.opened.environment.monitoring)
    return windows[number] if number < len(windows) else None


def _watch(
    journal: JournalFile, window: MonitorTime, services: Services, *, api: PrefectApi, settings: Settings
) -> str:
    policy = journal.read().opened.environment.monitoring

    def propose(verdict: MonitoringVerdict) -> None:
        _propose(journal, verdict, api=api, settings=settings)

    watched = watch_window(journal, services, until=window.end, propose=propose)
    if not watched.is_promoted:
        return f"{journal.deployment} is {journal.read().state}: its monitoring ends."
    append_mirrored(journal, [_entry(window, watched)], api=api, settings=settings)
    verdict = watched.verdict
    words = f"{verdict.action}: {'; '.join(verdict.reasons)}"
    get_run_logger().info("window %d of %s: %s", window.number + 1, journal.deployment, words)
    if verdict.action == "immediate" and policy.immediate == "automatic":
        _take_back(journal, verdict, services, api=api, settings=settings)
    elif verdict.action == "immediate":
        propose(verdict)
    elif verdict.action in ("fine", "warn") and _is_last(journal.read(), window):
        if is_armed_release(journal.read().opened.part_of, settings):
            return words  # a release's components are completed together, by `recover`
        _complete(journal, services, api=api, settings=settings)
    return words


def _entry(window: MonitorTime, watched: Watched) -> Monitored:
    return Monitored(
        number=window.number,
        since=watched.since,
        action=watched.verdict.action,
        reasons=(*watched.verdict.reasons, *watched.verdict.also),
        requests=watched.requests,
        errors=watched.errors,
        counters=watched.counters,
    )


def _is_last(view: JournalView, window: MonitorTime) -> bool:
    promoted_at = view.moved_at("promoted")
    if promoted_at is None:
        return False
    return window == monitor_times(promoted_at, view.opened.environment.monitoring)[-1]


def _take_back(
    journal: JournalFile,
    verdict: MonitoringVerdict,
    services: Services,
    *,
    api: PrefectApi,
    settings: Settings,
) -> None:
    """Take it back as a person would, and say so by failing this run."""
    reason = f"Monitoring: {'; '.join(verdict.reasons)}."
    try:
        after = recover(
            journal.deployment, cause=reason, by="monitor", settings=settings.immediate(), asker="person"
        )
    except LossNotAcceptedError:
        # more would be lost than may be without asking: a person decides, with the loss before their eyes
        _propose(journal, verdict, api=api, settings=settings, ask=True)
        raise TakenBackByMonitoringError(
            f"{journal.deployment} was not taken back: that would lose more than it may without asking. A "
            "rollback is proposed, with the loss, for a person to approve."
        ) from None
    except (DeployError, TimeoutError) as error:
        _call_people(
            journal, services, f"{reason} It was not taken back: {error}", api=api, settings=settings
        )
        raise TakenBackByMonitoringError(f"{journal.deployment} was not taken back: {error}") from error
    after_end(after, api=api, settings=settings, services=services)
    record = record_of(after)
    raise TakenBackByMonitoringError(f"{record.deployment} is {record.state}: {record.reason}")


def _call_people(
    journal: JournalFile, services: Services, words: str, *, api: PrefectApi, settings: Settings
) -> None:
    """Tell people that a rollback is called for and cannot be done: the next window tries again."""
    note = Noted(about="rollback_refused", words=words, by="monitor")
    view = append_mirrored(journal, [note], api=api, settings=settings)
    next_step = "See what stands in the way; then run roll-back, or deploy the release that is wanted."
    tell(view, services, Event.ROLLBACK_PROPOSED, reason=words, next_step=next_step)


def _propose(
    journal: JournalFile,
    verdict: MonitoringVerdict,
    *,
    api: PrefectApi,
    settings: Settings,
    ask: bool = False,
) -> None:
    """Have a delayed rollback wait for a person's word, or begin where the policy says so; once."""
    view = journal.read()
    policy, reason = view.opened.environment.monitoring, "; ".join(verdict.reasons)
    needs_approval = (policy.immediate if verdict.action == "immediate" else policy.delayed) == "proposal"
    is_new = propose_rollback(
        api, journal.deployment, reason=f"Monitoring: {reason}", approval=needs_approval or ask
    )
    if is_new:
        note = Noted(about="rollback_proposed", words=reason, by="monitor")
        append_mirrored(journal, [note], api=api, settings=settings)


def _complete(journal: JournalFile, services: Services, *, api: PrefectApi, settings: Settings) -> None:
    """End the monitoring: the deployment is completed."""
    reason = "It was watched to the end, and its undo is disarmed."
    entry = Moved(at=datetime.now(UTC), state="completed", reason=reason, by="monitor")
    view = append_mirrored(journal, [entry], api=api, settings=settings)
    after_end(view, api=api, settings=settings, services=services)
    finish_due(settings)
