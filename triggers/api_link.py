"""The link to Prefect's API as a caller needs it: one request and what its answer means."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from rules.errors import ApiUnavailableError
from tasks.prefect_api import PrefectApi
from triggers.api_errors import ANSWERS, BadRequestError, raise_for
from triggers.api_progress import Started


class Link:
    """What a caller says to Prefect's API."""

    def __init__(self, api: PrefectApi) -> None:
        self.api = api

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        what: str,
        if_unknown: str = "",
    ) -> Any:
        """Return the JSON that answers a request; `what` and `if_unknown` are for the words of an error.

        Raises:
            BadRequestError, NotAllowedError, UnknownError, ApiUnavailableError: see each.
        """
        return _json_of(self._send(method, path, body, what=what, if_unknown=if_unknown), what=what)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, what: str, if_unknown: str
    ) -> httpx.Response:
        response = self.api.request(method, path, body, accept=ANSWERS)
        if not response.is_success:
            raise_for(response, what=what, if_unknown=if_unknown or f"Prefect has no {path}.")
        return response

    def create_run(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        key: str | None,
        run_name: str | None,
        tags: Iterable[str],
    ) -> Started:
        """Create a run of a Prefect deployment; see `DeployApi.start`."""
        unknown = (
            f"Prefect has no deployment {name!r}. Nothing was started. Register it, `prefect --no-prompt "
            "deploy --all` in a checkout, or correct the name."
        )
        found = self.ask("GET", f"deployments/name/{name}", what=f"find {name}", if_unknown=unknown)
        body = {
            "parameters": dict(parameters),
            "idempotency_key": key or str(uuid.uuid4()),
            "tags": list(tags),
            **({"name": run_name} if run_name else {}),
        }
        path = f"deployments/{found['id']}/create_flow_run"
        response = self._send("POST", path, body, what=f"start {name}", if_unknown=unknown)
        run = _json_of(response, what=f"start {name}")
        # with a key of our own an old run is that of our own request, whose answer was lost
        is_new = key is None or response.status_code == httpx.codes.CREATED
        if not is_new:
            _refuse_other_parameters(run, {**found["parameters"], **parameters}, key=key)
        return Started(flow_run_id=run["id"], is_new=is_new)

    def resume(self, flow_run_id: str, answer: Mapping[str, Any]) -> None:
        """Answer a run that waits for input.

        Raises:
            BadRequestError: the answer was not taken; says why.
            UnknownError: Prefect has no such run.
        """
        path, unknown = f"flow_runs/{flow_run_id}", _no_run(flow_run_id)
        # an answer to a run that does not exist gets HTTP 500
        self.ask("GET", path, what="read the flow run", if_unknown=unknown)
        body = {"run_input": answer}
        said = self.ask("POST", f"{path}/resume", body, what="take the answer", if_unknown=unknown)
        if said["status"] != "ACCEPT":  # which Prefect says with HTTP 200
            raise BadRequestError(
                f"The answer was not taken: {_reason(said)}. Flow run {flow_run_id} is as it was."
            )

    def cancel(self, flow_run_id: str) -> None:
        """Cancel a run.

        Raises:
            BadRequestError: it cannot be cancelled; says why.
            UnknownError: Prefect has no such run.
        """
        path, cancelling = f"flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLING"}}
        said = self.ask("POST", path, cancelling, what="cancel the run", if_unknown=_no_run(flow_run_id))
        # of a run that has no process yet Prefect refuses CANCELLING, and makes it CANCELLED
        if (said.get("state") or {}).get("type") not in {"CANCELLING", "CANCELLED"}:
            raise BadRequestError(
                f"Flow run {flow_run_id} is not cancelled: {_reason(said)}. It is as it was."
            )


def _no_run(flow_run_id: str) -> str:
    return f"Prefect has no flow run {flow_run_id}. Nothing was done."


def _reason(said: Mapping[str, Any]) -> str:
    """Return why Prefect did not do what it was asked."""
    return str((said.get("details") or {}).get("reason") or said["status"])[:600].rstrip(".")


def _json_of(response: httpx.Response, *, what: str) -> Any:
    try:
        return response.json()
    except ValueError as error:  # Prefect's own pages, or those of a proxy
        raise ApiUnavailableError(
            f"What answered was asked to {what}, and gave no JSON: it is not Prefect's API. "
            "PREFECT_API_URL is the server's address and ends in /api."
        ) from error


def _refuse_other_parameters(
    run: Mapping[str, Any], parameters: Mapping[str, Any], *, key: str | None
) -> None:
    """Refuse a key that belongs to another request: Prefect returns that one's run and says nothing."""
    then, now = run["parameters"], json.loads(json.dumps(parameters))
    # also what was sent then and is not now: a dry run's key starts no deployment
    other = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if other:
        raise BadRequestError(
            f"The idempotency key {key!r} was used before, for flow run {run['id']} with another "
            f"{', '.join(sorted(other))}. Nothing was started. Use a new key for a new request."
        )
