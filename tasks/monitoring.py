"""Have Prefect watch a promoted deployment: one scheduled run for each window of the monitoring time."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from rules.entries import Entry, MonitoringScheduled, stamped
from rules.errors import ApiUnavailableError, BalancerError
from rules.fleet import Fleet
from rules.journal import JournalView
from rules.monitoring import monitor_times
from rules.traffic import Counts
from tasks import balancer
from tasks.journal import JournalFile, Mirror
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)
MONITOR = "monitor/monitor"
_GONE = frozenset({404})
_PAGE = 200
#: Requests under way together: 96 one after the other keep a busy server's caller waiting for long.
_AT_ONCE = 4
_TAG = "sovereign-monitor"


def schedule_monitoring(journal: JournalFile, api: PrefectApi, settings: Settings) -> bool:
    """Create the runs that watch a promoted deployment; return whether they are all there.

    Repeating it makes no second ones. What cannot be scheduled now, `recover` schedules within a minute.
    """
    view = journal.read()
    promoted_at = view.moved_at("promoted")
    if view.state != "promoted" or promoted_at is None or view.monitoring:
        return view.monitoring is not None
    windows = monitor_times(promoted_at, view.opened.environment.monitoring)
    try:
        response = api.request("GET", f"deployments/name/{MONITOR}", accept=_GONE)
        if response.status_code in _GONE:
            log.warning("%s is not watched: Prefect has no deployment %s", journal.deployment, MONITOR)
            return False
        create = partial(_create_run, api, response.json()["id"], journal.deployment)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for made in [pool.submit(create, number=number, at=start) for number, start, _ in windows]:
                made.result()
        until = windows[-1][2]
        entry = MonitoringScheduled(
            runs=len(windows), until=until, counters=live_counters(view, view.opened.fleet)
        )
        append_mirrored(journal, [entry], api=api, settings=settings)
    except ApiUnavailableError as error:
        log.warning("%s is not watched yet, the next recover sees to it: %s", journal.deployment, error)
        return False
    return True


def _create_run(api: PrefectApi, monitor_id: str, deployment: str, *, number: int, at: datetime) -> None:
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at.isoformat()}}
    run = {
        "state": state,
        "name": f"{deployment} {number + 1}",
        "parameters": {"deployment": deployment, "number": number},
        "idempotency_key": f"monitor-{deployment}-{number}",
        "tags": [_TAG, deployment],
    }
    api.request("POST", f"deployments/{monitor_id}/create_flow_run", run)


def cancel_monitoring(api: PrefectApi, deployment: str) -> int:
    """Remove the runs of a deployment's monitoring that have not begun; return how many those were.

    Raises:
        ApiUnavailableError: not all are removed; one that begins ends by itself.
    """
    removed = 0
    while runs := _waiting(api, deployment):
        for run_id in runs:
            api.request("DELETE", f"flow_runs/{run_id}", accept=_GONE)
        removed += len(runs)
    return removed


def _waiting(api: PrefectApi, deployment: str) -> list[str]:
    wanted = {
        "flow_runs": {
            "tags": {"all_": [_TAG, deployment]},
            "state": {"type": {"any_": ["SCHEDULED", "PENDING"]}},
        },
        "limit": _PAGE,
    }
    return [str(run["id"]) for run in api.request("POST", "flow_runs/filter", wanted).json()]


def append_mirrored(
    journal: JournalFile, entries: Iterable[Entry], *, api: PrefectApi | None, settings: Settings
) -> JournalView:
    """Append to the journal of a promoted deployment, unless it has ended meanwhile; return what it says.

    A mirror that does not take it is only logged: the next copy brings it.
    """
    with journal.exclusive(patience_s=settings.takeover_patience_s):
        if journal.read().is_terminal:
            return journal.read()
        for entry in entries:
            journal.append(stamped(entry, datetime.now(UTC)))
    view = journal.read()
    if api:
        try:
            mirror = Mirror(
                api, journal.deployment, flow_run_id=view.opened.flow_run_id, entries=view.entries
            )
            mirror.flush()
        except ApiUnavailableError as error:
            log.warning("the newest entries of %s are not mirrored: %s", journal.deployment, error)
    return view


def live_counters(view: JournalView, fleet: Fleet) -> Counts | None:
    """Return what the side that users are on has answered since the balancer began; None: nobody counts."""
    if fleet.route is None or view.plan is None or view.plan.after.traffic is None:
        return None
    try:
        return balancer.counts(fleet.route, view.plan.after.traffic.live)
    except BalancerError as error:
        log.warning("the answers of %s are not counted: %s", fleet.application, error)
        return None
