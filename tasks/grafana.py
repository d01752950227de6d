"""Grafana by its HTTP API: annotations and dashboards. It only ever shows: a caller may go on without it."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import httpx

from blocks.grafana import Grafana
from rules.errors import DeployError

_TRIES = 2
_PAUSE_S = 0.2
_MOST_WORDS = 200
#: Answers after which trying again may help.
_PASSING = frozenset({429, 500, 502, 503, 504})
_NOT_FOUND = httpx.codes.NOT_FOUND


class GrafanaError(DeployError):
    """Grafana did not do what was asked; no deployed system is touched by that."""


def annotate(
    grafana: Grafana, *, text: str, tags: Iterable[str], at: datetime, until: datetime | None = None
) -> None:
    """Mark a moment, or a span when there is an `until`, in Grafana's panels.

    Args:
        grafana: where.
        text: what happened; Grafana shows it as HTML.
        tags: by which dashboards ask for it.
        at: when, or when the span began; with a time zone.
        until: when the span ended.

    Raises:
        GrafanaError: it did not take it within `timeout_s`. When no answer came it may be there all the same.
    """
    annotation: dict[str, Any] = {"text": text, "tags": list(tags), "time": _milliseconds(at)}
    if until is not None:
        annotation["timeEnd"] = _milliseconds(until)
    if grafana.dashboard_uid:
        annotation["dashboardUID"] = grafana.dashboard_uid
    _answer(grafana, "POST", "/api/annotations", annotation)


def missing_dashboards(grafana: Grafana, uids: Iterable[str]) -> tuple[str, ...]:
    """Return those of `uids` that Grafana has no dashboard of, in their order.

    Raises:
        GrafanaError: it does not answer, or does not let us ask.
    """
    return tuple(
        uid for uid in uids if _ask(grafana, "GET", f"/api/dashboards/uid/{uid}").status_code == _NOT_FOUND
    )


def save_dashboard(grafana: Grafana, model: Mapping[str, Any]) -> str:
    """Save a dashboard, replacing the one of its uid, and return the path it is shown at.

    Raises:
        GrafanaError: Grafana refused it or does not answer.
    """
    # an id belongs to one Grafana, the uid to the dashboard
    body = {"dashboard": {**model, "id": None}, "overwrite": True, "message": "saved by sovereign-deploy"}
    return str(_answer(grafana, "POST", "/api/dashboards/db", body).get("url", ""))


def _answer(grafana: Grafana, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    response = _ask(grafana, method, path, body)
    if response.status_code == _NOT_FOUND:
        raise GrafanaError(_refusal(grafana, method, path, response))
    try:
        answer = response.json()
    except ValueError as error:
        raise GrafanaError(_refusal(grafana, method, path, response)) from error
    return answer if isinstance(answer, dict) else {}


def _ask(grafana: Grafana, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
    """Return a good answer, or 404; a passing failure is tried once more while there is time."""
    deadline, headers = time.monotonic() + grafana.timeout_s, _headers(grafana)
    failure, cause = "", None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        left_s = deadline - time.monotonic()
        if attempt and left_s <= 0:
            break
        try:
            response = _http().request(
                method, grafana.url.rstrip("/") + path, json=body, headers=headers, timeout=left_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure, cause = f"Grafana at {grafana.url} does not answer {method} {path}: {error!r}", error
        else:
            if response.is_success or response.status_code == _NOT_FOUND:
                return response
            failure, cause = _refusal(grafana, method, path, response), None
            if response.status_code not in _PASSING:
                break
    raise GrafanaError(f"{failure}. No deployed system was touched by this.") from cause


def _headers(grafana: Grafana) -> dict[str, str]:
    if grafana.token is None:
        return {}
    token = grafana.token.get_secret_value().strip()
    # the HTTP library would show it in its complaint
    if not re.fullmatch(r"[!-~]+", token):
        raise GrafanaError(
            "the token of the Sovereign Grafana block is empty or has characters that no token has: Grafana "
            "was not asked. Paste it anew."
        )
    return {"Authorization": f"Bearer {token}"}


def _refusal(grafana: Grafana, method: str, path: str, response: httpx.Response) -> str:
    advice = {
        401: ": check the token of the Sovereign Grafana block",
        403: ": give its service account the role Editor",
    }.get(response.status_code, "")
    said = " ".join(response.text[:_MOST_WORDS].split())
    return f"Grafana at {grafana.url} answered {method} {path} with {response.status_code} ({said}){advice}"


def _milliseconds(at: datetime) -> int:
    if at.tzinfo is None:
        raise GrafanaError(f"{at} has no time zone, so Grafana cannot be told when: nothing was sent")
    return round(at.timestamp() * 1000)


@functools.cache
def _http() -> httpx.Client:
    """Return one client for all calls; it asks Grafana itself, whatever proxy the environment names."""
    return httpx.Client(trust_env=False)
