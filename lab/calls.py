"""Start a deployment through Prefect's API, as any client would, and follow it to its end."""

from __future__ import annotations

import functools
import time
from typing import Any

import httpx

_OVER = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_TIMEOUT_S = 15.0


@functools.cache
def client() -> httpx.Client:
    """Return a client for all of the lab's questions: making one costs more than asking."""
    return httpx.Client(timeout=_TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0))


def start_run(api_url: str, deployment: str, parameters: dict[str, Any], *, key: str | None = None) -> str:
    """Start a flow run of a deployment, named `flow/deployment`, and return its id.

    Args:
        api_url: PREFECT_API_URL.
        deployment: such as `deploy/deploy`.
        parameters: of the flow.
        key: the same key starts one run only.

    Raises:
        httpx.HTTPStatusError: the request was refused; its answer says which parameter is wrong.
    """
    found = client().get(f"{api_url}/deployments/name/{deployment}").raise_for_status()
    url = f"{api_url}/deployments/{found.json()['id']}/create_flow_run"
    body = {"parameters": parameters, "idempotency_key": key}
    answer = client().post(url, json=body).raise_for_status()
    return str(answer.json()["id"])


def run_state(api_url: str, run_id: str) -> tuple[str, str]:
    """Return the type and the message of a flow run's state."""
    answer = client().get(f"{api_url}/flow_runs/{run_id}").raise_for_status()
    state = answer.json()["state"]
    return state["type"], state["message"] or ""


def is_over(state: str) -> bool:
    """Return whether a run in this state has ended."""
    return state in _OVER


def wait_for_run(api_url: str, run_id: str, *, timeout_s: float) -> tuple[str, str]:
    """Return the type and message of the state that a flow run ends in.

    Raises:
        TimeoutError: it does not end in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state, message = run_state(api_url, run_id)
        if is_over(state):
            return state, message
        time.sleep(0.2)
    raise TimeoutError(f"flow run {run_id} has not ended after {timeout_s:g} s")
