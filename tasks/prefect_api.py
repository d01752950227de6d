"""Prefect's API as the journal needs it: short requests with a deadline of their own.

Prefect's own client is bound to a run and repeats for over a minute; a deployment must know within
seconds that it is cut off, and a recovery must work with no run at all.
"""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx
from prefect.settings import get_current_settings
from prefect.settings.models.api import APISettings

from rules.errors import ApiUnavailableError
from tasks.settings import Settings

_REPEATABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


class PrefectApi:
    """A connection to the API that Prefect's own settings name."""

    def __init__(self, settings: Settings) -> None:
        api = get_current_settings().api
        if not api.url:
            raise ApiUnavailableError(
                "PREFECT_API_URL is not set: deployments need a Prefect server, because their lock and the "
                "copy of their journal live there. Nothing was changed. Set it and start again."
            )
        self.patience_s = settings.api_patience_s
        self._impatience_s = settings.api_patience_undoing_s
        # a proxy of the environment counts (trust_env), as it does for Prefect's own client beside this one
        self._http = httpx.Client(
            base_url=f"{api.url.rstrip('/')}/",
            timeout=settings.api_timeout_s,
            headers=_authorization(api),
            verify=_trusted(api),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Give up sooner than usual: for what is worth less than the time it may cost."""
        patience_s, self.patience_s = self.patience_s, self._impatience_s
        try:
            yield
        finally:
            self.patience_s = patience_s

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        accept: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """Send one request, repeated while the API is busy or away, for `patience_s` at most.

        Args:
            method: the HTTP method.
            path: below the API's URL, without a leading slash.
            body: sent as JSON.
            accept: error statuses that are an answer to the caller, such as 404.

        Raises:
            ApiUnavailableError: no usable answer in time; carries the last one in words.
        """
        deadline = time.monotonic() + self.patience_s
        pause_s = 0.1
        while True:
            try:
                response = self._http.request(method, path, json=body)
            except httpx.HTTPError as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if response.is_success or response.status_code in accept:
                    return response
                last = f"HTTP {response.status_code}: {response.text[:300]}"
                if response.status_code not in _REPEATABLE:
                    break
            if time.monotonic() + pause_s > deadline:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
        raise ApiUnavailableError(f"Prefect's API did not take {method} {path}: {last}")


def _authorization(api: APISettings) -> dict[str, str]:
    """Return what lets us in, made as Prefect's own client makes it: a string without a colon works too."""
    if api.auth_string:
        token = base64.b64encode(api.auth_string.get_secret_value().encode()).decode()
        return {"Authorization": f"Basic {token}"}
    return {"Authorization": f"Bearer {api.key.get_secret_value()}"} if api.key else {}


def _trusted(api: APISettings) -> ssl.SSLContext | bool:
    """Return whose certificates count: a private authority's where PREFECT_API_SSL_CERT_FILE names one."""
    if not (api.url or "").startswith("https") or api.tls_insecure_skip_verify:
        return False
    return ssl.create_default_context(cafile=api.ssl_cert_file) if api.ssl_cert_file else True


def server_time(response: httpx.Response) -> datetime:
    """Return the server's clock, to the second: leases are judged by it, never by two hosts' clocks."""
    return parsedate_to_datetime(response.headers["date"])
