"""Watch a promoted deployment through one window, without a gap to the window before."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from rules.alerts import Alert
from rules.baseline import Comparison
from rules.environment import Monitoring
from rules.errors import BalancerError, CommandError
from rules.fleet import Instance
from rules.frozen import Count, Frozen
from rules.journal import JournalView
from rules.journal_errors import units_by_host
from rules.monitoring import Look, MonitoringVerdict, Watch, decide
from rules.nixos import NixosProbe
from rules.provider import ProviderError
from rules.traffic import Counts
from tasks import ray_cluster
from tasks.alertmanager import alerts_since
from tasks.application import running_release
from tasks.assessment import compared_now
from tasks.content_watch import content_health
from tasks.fleet import serving_now
from tasks.journal import JournalFile
from tasks.journald import errors_since
from tasks.monitoring import live_counters
from tasks.nixos_reading import silent_urls
from tasks.observed import database_answers
from tasks.services import Services

log = logging.getLogger(__name__)
_STATE = "monitoring.json"


class Known(Frozen):
    """What the looks so far add up to, kept beside the journal: a run goes on where one was killed."""

    watch: Watch = Watch()
    counters: Counts | None = None
    at: datetime


class Watched(Frozen):
    """What one run saw of its window."""

    since: datetime
    verdict: MonitoringVerdict
    requests: Count
    errors: Count
    counters: Counts | None
    is_promoted: bool


def watch_window(
    journal: JournalFile,
    services: Services,
    *,
    until: datetime,
    propose: Callable[[MonitoringVerdict], None],
) -> Watched:
    """Look every `probe_every_s` until the window is over, or something has to be done at once.

    The first look covers all answers since the last look of the run before, however long ago that was.

    Args:
        journal: of the deployment.
        services: of its environment.
        until: when this window ends; in the past for a run that begins late, which then looks once.
        propose: called once when a delayed rollback is called for; the watch goes on.
    """
    view = journal.read()
    policy = view.opened.environment.monitoring
    known = _known(journal, view)
    since, answered, proposed = known.at, Counts(), False
    while True:
        look, known = _look(known, view, services, policy=policy)
        _keep(journal, known)
        answered += look.counts
        verdict = decide(known.watch, policy)
        if verdict.action != "fine":
            log.warning("%s: %s, %s", journal.deployment, verdict.action, "; ".join(verdict.reasons))
        if verdict.action == "delayed" and not proposed:
            propose(verdict)
            proposed = True
        is_promoted = journal.read().state == "promoted"
        if verdict.action == "immediate" or not is_promoted or datetime.now(UTC) >= until:
            return Watched(
                since=since,
                verdict=verdict,
                requests=answered.requests,
                errors=answered.errors,
                counters=known.counters,
                is_promoted=is_promoted,
            )
        _sleep_until_next(known.at, until, policy)


def _sleep_until_next(looked_at: datetime, until: datetime, policy: Monitoring) -> None:
    now = datetime.now(UTC)
    next_s = policy.probe_every_s - (now - looked_at).total_seconds()
    time.sleep(max(0.0, min(next_s, (until - now).total_seconds())))


def _known(journal: JournalFile, view: JournalView) -> Known:
    """Return what the runs before have seen; from the journal's own entries on a host that has no more."""
    with contextlib.suppress(OSError, ValueError):
        return Known.model_validate_json((journal.directory / _STATE).read_bytes())
    newest = view.monitored[-1] if view.monitored else view.monitoring
    at = newest.at if newest else (view.moved_at("promoted") or view.opened.at)
    return Known(counters=newest.counters if newest else None, at=at)


def _keep(journal: JournalFile, known: Known) -> None:
    """Keep it for the next run. It need not survive a power cut: then the journal's entries serve."""
    new = journal.directory / f"{_STATE}.new"
    new.write_text(known.model_dump_json())
    new.replace(journal.directory / _STATE)


def _look(known: Known, view: JournalView, services: Services, *, policy: Monitoring) -> tuple[Look, Known]:
    """Look once at all there is; what cannot be asked is said in the look."""
    at = datetime.now(UTC)
    counters = live_counters(view, view.opened.fleet)
    new = Counts()
    if counters and known.counters:
        new = counters.since(known.counters)
    comparisons, provider_error = _comparisons(view, services)
    probes, unknown = _probes(view)
    held, short = content_health(view)
    look = Look(
        at=at,
        probes={**probes, **held},
        requests=new.requests,
        errors=min(new.errors, new.requests),
        comparisons=comparisons,
        alerts=_alerts(view, services),
        journal_errors=_journal_errors(view, known.at),
        provider_error=provider_error or unknown,
        short=short,
        is_counted=view.opened.fleet.route is not None,
    )
    watch = known.watch.after(look, policy)
    return look, Known(watch=watch, counters=counters or known.counters, at=at)


def _comparisons(view: JournalView, services: Services) -> tuple[tuple[Comparison, ...], str]:
    """Return how users and hosts are doing against the baseline, and why that could not be told.

    The error ratio of such a short window only warns here: it is judged by the balancer's counters, over
    all looks.
    """
    made = compared_now(view, services)
    away = [one.change for one in made if one.result == "provider_error"]
    declared = {metric.name for metric in view.opened.environment.metrics}
    judged = tuple(
        one if one.name in declared else one.model_copy(update={"rolls_back": False}) for one in made
    )
    return judged, away[0] if away else ""


def _probes(view: JournalView) -> tuple[dict[str, bool], str]:
    """Return who answers, and why that cannot be told of some."""
    database = view.opened.database
    found = {"database": database_answers(database, deployment=view.opened.deployment)} if database else {}
    try:
        serving = serving_now(view.opened.fleet)
    except (BalancerError, CommandError) as error:
        log.warning("who serves users is not known: %s", error)
        return found, ""
    cluster = view.opened.fleet.ray
    if cluster and not ray_cluster.healthy(cluster):
        # what nobody can be asked about is not down, and without the head nothing could be taken back
        return found, f"the head of the Ray cluster does not answer at {cluster.dashboard}"
    serving = (*serving, *_promised_nodes(view))
    return {**found, **{i.name: _is_well(i) for i in serving}}, ""


def _is_well(instance: Instance) -> bool:
    """Whether an instance answers its probe; a whole host also at the addresses declared for it."""
    is_there = running_release(instance) is not None
    if not isinstance(instance.probe, NixosProbe):
        return is_there
    return is_there and not silent_urls(instance.probe.urls)


def _promised_nodes(view: JournalView) -> tuple[Instance, ...]:
    """Return the nodes of a Ray cluster that are to run since this deployment."""
    if view.opened.fleet.ray is None or view.plan is None:
        return ()
    after = view.plan.after.instances
    return tuple(i for i in view.opened.fleet.instances if after[i.name].running is not None)


def _alerts(view: JournalView, services: Services) -> tuple[Alert, ...]:
    """Return the alerts since the rollout began: one from its last seconds is nobody else's to act upon."""
    if services.alertmanager is None or not view.intents:
        return ()
    try:
        return alerts_since(services.alertmanager, view.intents[0].at)
    except ProviderError as error:
        log.warning("Alertmanager does not answer: %s", error)
        return ()


def _journal_errors(view: JournalView, since: datetime) -> int:
    """Return how many errors the units concerned have logged since then, asking each host once."""
    found = 0
    opened = view.opened
    for host, units in units_by_host(opened.fleet.instances, opened.database_server).items():
        try:
            found += len(errors_since(host, units, since))
        except CommandError as error:
            log.warning("the log of %s cannot be read: %s", host.name, error)
    return found
