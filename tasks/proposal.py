"""Propose a rollback: a run of `delayed-roll-back` that a person can see, read and answer."""

from __future__ import annotations

import logging

from tasks.prefect_api import PrefectApi

log = logging.getLogger(__name__)
DELAYED_ROLL_BACK = "delayed-roll-back/delayed-roll-back"
_GONE = frozenset({404})
_CREATED = 201


def propose_rollback(api: PrefectApi, deployment: str, *, reason: str, approval: bool) -> bool:
    """Create the run that takes `deployment` back, once; return whether it is new.

    Args:
        api: Prefect's.
        deployment: what is to be taken back.
        reason: why, for the record.
        approval: whether the run waits for a person.

    Raises:
        ApiUnavailableError: it could not be created.
    """
    response = api.request("GET", f"deployments/name/{DELAYED_ROLL_BACK}", accept=_GONE)
    if response.status_code in _GONE:
        log.error("a rollback of %s is called for, but Prefect has no %s", deployment, DELAYED_ROLL_BACK)
        return False
    run = {
        "name": f"proposal for {deployment}",
        "parameters": {"deployment": deployment, "reason": reason, "approval": approval},
        "idempotency_key": f"delayed-roll-back-{deployment}",
        "tags": ["sovereign", deployment],
    }
    path = f"deployments/{response.json()['id']}/create_flow_run"
    return api.request("POST", path, run).status_code == _CREATED
