"""What Prefect's API may answer instead of what was asked for; each error says what to do next."""

from __future__ import annotations

from typing import Any, NoReturn

import httpx

from rules.errors import ApiUnavailableError, DeployError

#: Error statuses that are an answer to the caller: repeating the request would not change them.
ANSWERS = frozenset({400, 401, 403, 404, 409, 422})

_REFUSED = frozenset({400, 409, 422})
_LONGEST = 600


class BadRequestError(DeployError):
    """The request makes no sense as it stands; names the field and the reason. Nothing was started."""


class NotAllowedError(DeployError):
    """The API does not let us in, or not do this. Nothing was started."""


class UnknownError(DeployError):
    """There is nothing of that name or id; says what to register, or which id is not known."""


def raise_for(response: httpx.Response, *, what: str, if_unknown: str) -> NoReturn:
    """Raise what `response`, one of `ANSWERS`, means to the caller.

    Args:
        response: as the API gave it.
        what: was asked for, in words, such as "start deploy/deploy".
        if_unknown: what the caller should do when the API knows no such thing.

    Raises:
        BadRequestError, NotAllowedError, UnknownError: see each.
        ApiUnavailableError: it is none of these.
    """
    code = response.status_code
    if code in _REFUSED:
        raise BadRequestError(f"Prefect refuses to {what}: {said(response)} (HTTP {code}). Nothing was done.")
    if code == httpx.codes.UNAUTHORIZED:
        raise NotAllowedError(
            f"Prefect does not let this caller {what} (HTTP 401). Nothing was done. Set "
            "PREFECT_API_AUTH_STRING to the server's user:password, by a secret of your pipeline."
        )
    if code == httpx.codes.FORBIDDEN:
        raise NotAllowedError(
            f"Prefect does not let this caller {what}: {said(response)} (HTTP 403). Nothing was done. If it "
            "wants a CSRF token: protect the API by basic auth and TLS instead, see docs/api.md."
        )
    if code == httpx.codes.NOT_FOUND:
        raise UnknownError(if_unknown)
    raise ApiUnavailableError(f"Prefect's API did not {what}: HTTP {code}")


def said(response: httpx.Response) -> str:
    """Return the reason that an answer gives, without the values that were sent where it lists them apart."""
    try:
        body = response.json()
    except ValueError:
        return _short(response.text)
    if not isinstance(body, dict):
        return _short(str(body))
    listed = body.get("exception_detail")
    if isinstance(listed, list):
        return _short("; ".join(_field(one) for one in listed))
    return _short(str(body.get("detail") or body.get("exception_message") or body))


def _field(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error.get("loc", ()) if part != "body")
    return f"{where or 'the request'}: {error.get('msg', 'is wrong')}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
