"""One way to ask Prometheus and Alertmanager: what is no answer becomes a `ProviderError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from blocks.alertmanager import Alertmanager
from blocks.prometheus import Prometheus
from rules.provider import ProviderError, QueryRefusedError
from tasks.http_client import http

_SHOWN = 300
#: Prometheus answers 422 when it cannot execute a query and 400 when it cannot read it.
_REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)


def ask(
    provider: Prometheus | Alertmanager,
    method: str,
    path: str,
    *,
    params: Mapping[str, str | Sequence[str]] | None = None,
    body: object = None,
) -> Any:
    """Return the JSON that a request is answered with; None when the answer is empty.

    Raises:
        QueryRefusedError: it does not accept the question (400, 422); in its own words.
        ProviderError: no connection, too late, another status than 200, or no JSON.
    """
    answer = send(provider, method, path, params=params, body=body)
    if answer.status_code in _REFUSED:
        raise QueryRefusedError(f"{provider.url}/{path} refused: {_words(answer)}")
    if answer.status_code != httpx.codes.OK:
        raise ProviderError(f"{provider.url}/{path} answered {answer.status_code}: {_words(answer)}")
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError as error:
        raise ProviderError(f"{provider.url}/{path} answered no JSON: {answer.text[:_SHOWN]!r}") from error


def send(
    provider: Prometheus | Alertmanager,
    method: str,
    path: str,
    *,
    params: Mapping[str, str | Sequence[str]] | None = None,
    body: object = None,
) -> httpx.Response:
    """Return the answer to one request, whatever its status.

    Raises:
        ProviderError: there was none within the provider's timeout.
    """
    headers = {"Authorization": f"Bearer {provider.token.get_secret_value()}"} if provider.token else {}
    try:
        return http().request(
            method,
            f"{provider.url.rstrip('/')}/{path}",
            params=params,
            json=body,
            headers=headers,
            timeout=provider.timeout_s,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # the class says what the text of a timeout leaves out
        words = f"{type(error).__name__} {error}".strip()
        raise ProviderError(f"{provider.url} gave no answer: {words}") from error


def _words(answer: httpx.Response) -> str:
    """Return what a refusal says: Prometheus puts it in `error`, Alertmanager answers a JSON string."""
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    if isinstance(said, Mapping):
        said = said.get("error") or said.get("message") or said
    return str(said)[:_SHOWN].strip() or "(nothing)"
