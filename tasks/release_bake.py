"""Components that wait for the bake of their release: runs that Prefect begins when its time is over."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from rules.entries import Noted
from rules.environment import Monitoring
from rules.errors import ApiUnavailableError
from rules.journal import JournalView
from rules.release import Component
from rules.release_states import armed_s, release_of
from tasks.journal import JournalFile
from tasks.monitoring import append_mirrored
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings

log = logging.getLogger(__name__)
DEPLOY = "deploy/deploy"
#: The note that says which runs are scheduled.
SCHEDULED = "after_bake"
_TAG = "sovereign-after-bake"
_GONE = frozenset({404})
#: `recover`, which ends the time of what is promoted, comes each minute; on a busy worker later.
_MARGIN_S = 600.0
#: One that comes after another is begun this much later, so that it finds that one promoted.
_APART_S = 3600.0


def bake_is_over(promoted_at: datetime, policy: Monitoring, *, number: int) -> datetime:
    """Return when component `number` (from 0) of those that wait for the bake is deployed."""
    return promoted_at + timedelta(seconds=armed_s(policy) + _MARGIN_S + number * _APART_S)


def schedule_after_bake(journal: JournalFile, api: PrefectApi, settings: Settings) -> bool:
    """Create the runs of what waits for the bake of a promoted release; return whether all are there.

    Each is a deployment of its own, with its own gate, which refuses as long as something may return that
    needs what it takes away. Repeating it makes no second ones; what cannot be scheduled now, `recover`
    schedules within a minute.
    """
    view = journal.read()
    release, promoted_at = release_of(view), view.moved_at("promoted")
    if release is None or not release.after_bake or promoted_at is None or _is_scheduled(view):
        return True
    policy = view.opened.environment.monitoring
    words = []
    try:
        response = api.request("GET", f"deployments/name/{DEPLOY}", accept=_GONE)
        if response.status_code in _GONE:
            log.error("what waits for %s is not scheduled: Prefect has no %s", journal.deployment, DEPLOY)
            return False
        for number, one in enumerate(release.after_bake):
            at = bake_is_over(promoted_at, policy, number=number)
            path = f"deployments/{response.json()['id']}/create_flow_run"
            run = api.request("POST", path, _run(view, one, at)).json()["id"]
            words.append(f"{one.name} is deployed at {at:%F %T} UTC by flow run {run}")
        note = Noted(about=SCHEDULED, words="; ".join(words))
        append_mirrored(journal, [note], api=api, settings=settings)
    except ApiUnavailableError as error:
        log.warning("what waits for %s is scheduled by the next recover: %s", journal.deployment, error)
        return False
    return True


def cancel_after_bake(api: PrefectApi, deployment: str) -> int:
    """Remove the runs that wait for the bake of a release; return how many those were.

    Raises:
        ApiUnavailableError: not all are removed.
    """
    wanted = {
        "tags": {"all_": [_TAG, deployment]},
        "state": {"type": {"any_": ["SCHEDULED", "PENDING"]}},
    }
    runs = api.request("POST", "flow_runs/filter", {"flow_runs": wanted}).json()
    for run in runs:
        api.request("DELETE", f"flow_runs/{run['id']}", accept=_GONE)
    return len(runs)


def _is_scheduled(view: JournalView) -> bool:
    return any(isinstance(entry, Noted) and entry.about == SCHEDULED for entry in view.entries)


def _run(view: JournalView, one: Component, at: datetime) -> dict[str, Any]:
    release = view.opened.deployment
    papers = one.papers.model_dump(mode="json")
    return {
        "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": at.isoformat()}},
        "name": f"{one.name} after {release}",
        "parameters": {
            "change": one.change.model_dump(mode="json"),
            "strategy": one.strategy.model_dump(mode="json"),
            "environment": view.opened.environment.name,
            **papers,
        },
        "idempotency_key": f"after-bake-{release}-{one.name}",
        "tags": [_TAG, release],
    }
