"""Tell Prefect what became of runs whose process is gone: it would show them as running for ever."""

from __future__ import annotations

import logging

from rules.errors import ApiUnavailableError
from tasks.prefect_api import PrefectApi

log = logging.getLogger(__name__)
_OVER = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_GONE = frozenset({404})


def end_dead_run(api: PrefectApi, flow_run_id: str, message: str) -> None:
    """Set a dead run and its child runs to CRASHED, if they do not read as over yet."""
    try:
        for run_id in (flow_run_id, *_children(api, flow_run_id)):
            response = api.request("GET", f"flow_runs/{run_id}", accept=_GONE)
            if response.status_code in _GONE or response.json()["state_type"] in _OVER:
                continue
            state = {"type": "CRASHED", "name": "Crashed", "message": message}
            api.request("POST", f"flow_runs/{run_id}/set_state", {"state": state, "force": True})
    except ApiUnavailableError as error:
        log.warning("flow run %s still reads as running: %s", flow_run_id, error)


def _children(api: PrefectApi, flow_run_id: str) -> list[str]:
    wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}}
    return [str(run["id"]) for run in api.request("POST", "flow_runs/filter", wanted).json()]


def refuse_waiting_run(api: PrefectApi, flow_run_id: str, *, by: str, words: str) -> bool:
    """Answer "no" to a run that waits for approval; return whether it did wait.

    Raises:
        ApiUnavailableError: the API does not answer.
    """
    response = api.request("GET", f"flow_runs/{flow_run_id}", accept=_GONE)
    if response.status_code in _GONE or response.json()["state_type"] != "PAUSED":
        return False
    answer = {"approved": False, "by": by, "words": words}
    api.request("POST", f"flow_runs/{flow_run_id}/resume", {"run_input": answer})
    return True
