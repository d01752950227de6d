"""A balancer with an HTTP API: which environment is live, and which percentage goes to the other one."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from rules.errors import BalancerError
from rules.http_balancer import ReportedStatus, SetCanary, SideCounts, Switch, calls, traffic_of
from rules.traffic import Counts, HttpBalancerAddress, Traffic
from tasks.http_client import http

_PAUSE_S = 0.1
_SAID_CHARACTERS = 300
_TOKEN = re.compile(r"[!-~]+")
_WHOLE = 100


class _UnansweredError(Exception):
    """No answer, or one that says to come again: asking once more may help."""


def ping(address: HttpBalancerAddress) -> str:
    """Return where it answers; it has no version.

    Raises:
        BalancerError: it does not answer, or not as its API does.
    """
    read_traffic(address)
    return address.url


def read_traffic(address: HttpBalancerAddress) -> Traffic:
    """Return the split that the balancer reports.

    Raises:
        BalancerError: it does not answer, or not as its API does.
    """
    answer = _ask(address, "GET", address.status_path)
    try:
        status = ReportedStatus(environment=answer["environment"], percentage=answer["percentage"])
        return traffic_of(status, address.sides)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise _foreign(address, address.status_path, f"{answer!r}: {error}") from error


def set_traffic(address: HttpBalancerAddress, traffic: Traffic) -> None:
    """Split the requests like this. Repeating it is harmless.

    A switch in the middle of a canary takes two calls, unless the API does both in one: see
    `rules.http_balancer.calls` for what users get in between.

    Raises:
        BalancerError: refused, or it reads otherwise afterwards; says which calls were made.
    """
    _refuse_unfit(address, traffic)
    made: list[str] = []
    now = read_traffic(address)
    for call in calls(now, traffic, switch_resets_canary=address.switch_resets_canary):
        _make(address, call, made)
    deadline = time.monotonic() + address.timeout_s
    while (now := read_traffic(address)) != traffic:
        if time.monotonic() >= deadline:
            raise BalancerError(
                f"{address.url} was set to {traffic!r} by {', '.join(made) or 'nothing'}, but reads {now!r}: "
                "it does not do what it says, or somebody else sets it too. It was left so."
            )
        time.sleep(_PAUSE_S)


def rehearse_switch(address: HttpBalancerAddress, splits: tuple[Traffic, ...]) -> None:
    """Make both calls with the values that are in force, which changes nothing for anybody.

    Such an API has no second route to try the splits on. This proves the address, the token and that both
    calls are taken.

    Raises:
        BalancerError: refused, or traffic reads otherwise afterwards; says so.
    """
    for split in splits:
        _refuse_unfit(address, split)
    before = read_traffic(address)
    if before.canary_basis_points:
        raise BalancerError(f"{address.url} is in the middle of a canary: {before!r}; nothing was called")
    made: list[str] = []
    _make(address, Switch(environment=before.live), made)
    _make(address, SetCanary(percentage=0), made)
    if (now := read_traffic(address)) != before:
        raise BalancerError(
            f"{address.url} had {before!r}; repeating just that by {', '.join(made)} made it {now!r}. It was "
            "left so: look at it, and set it by hand."
        )


def counts(address: HttpBalancerAddress, side: str) -> Counts | None:
    """Return what the side has answered since the balancer began to count; None: it does not count.

    Raises:
        BalancerError: it does not answer, or not with this side's counts.
    """
    counted = _counted(address, side)
    return counted.counts if counted else None


def mean_response_s(address: HttpBalancerAddress, side: str) -> float | None:
    """Return the side's mean response time; None: the balancer does not say.

    Raises:
        BalancerError: it does not answer, or not with this side's counts.
    """
    counted = _counted(address, side)
    return counted.mean_response_s if counted else None


def _counted(address: HttpBalancerAddress, side: str) -> SideCounts | None:
    if address.counts_path is None:
        return None
    answer = _ask(address, "GET", address.counts_path)
    try:
        known = {name: answer[side].get(name) for name in SideCounts.model_fields}
        return SideCounts.model_validate(known)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise _foreign(address, address.counts_path, f"{answer!r}: {error!r}") from error


def _make(address: HttpBalancerAddress, call: Switch | SetCanary, made: list[str]) -> None:
    path = address.switch_path if isinstance(call, Switch) else address.canary_path
    words = f"POST {path} {call.model_dump_json()}"
    try:
        _ask(address, "POST", path, call.model_dump())
    except BalancerError as error:
        before = f"{', '.join(made)} had been done before. " if made else "Nothing else was called. "
        raise BalancerError(f"{error} {before}Repeating it is harmless.") from error
    made.append(words)


def _ask(address: HttpBalancerAddress, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return the answer's JSON, patiently while the balancer restarts: each call names an absolute state.

    Raises:
        BalancerError: refused, or no answer within the address's `timeout_s`.
    """
    deadline = time.monotonic() + address.timeout_s
    while True:
        try:
            return _asked_once(address, method, path, body)
        except _UnansweredError as error:
            if time.monotonic() >= deadline:
                raise BalancerError(
                    f"{address.url} did not answer {method} {path}: {error}. "
                    f"{'Whether it has done it is not known.' if body else 'Nothing was changed.'} Look "
                    "whether it runs, and whether this host reaches it."
                ) from error
        time.sleep(_PAUSE_S)


def _asked_once(address: HttpBalancerAddress, method: str, path: str, body: dict[str, Any] | None) -> Any:
    url, headers = f"{address.url.rstrip('/')}{path}", _authorization(address)
    try:
        answer = http().request(method, url, json=body, headers=headers, timeout=address.timeout_s)
    except httpx.HTTPError as error:
        raise _UnansweredError(repr(error)) from error
    text = _without_token(answer.text, headers)
    said = " ".join(text.split())[:_SAID_CHARACTERS]
    if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise _UnansweredError(f"{answer.status_code} {said}")
    if not answer.is_success:
        hint = "token_file" if answer.status_code in (401, 403) else "the address and its paths"
        raise BalancerError(
            f"{address.url} refused {method} {path} with {answer.status_code}: {said or '(no reason)'}. Look "
            f"at {hint}."
        )
    if body is not None:
        return None  # what it says to a call is its own; what it does is read back
    try:
        return json.loads(text)
    except ValueError as error:
        raise _foreign(address, path, said) from error


def _without_token(text: str, headers: dict[str, str]) -> str:
    """Return an answer without our token: an API, or a proxy before it, may show the request it refuses."""
    token = headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(token, "***") if token else text


def _authorization(address: HttpBalancerAddress) -> dict[str, str]:
    if address.token_file is None:
        return {}
    path = Path(address.token_file)
    try:
        state, secret = path.stat(), path.read_text(errors="replace").strip()
    except OSError as error:
        raise BalancerError(
            f"the token of {address.url} cannot be read: {error}. Nothing was asked of it."
        ) from error
    if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
        raise BalancerError(
            f"{path} can be read by others than its owner, or is not ours: its token is not used. Nothing "
            f"was asked of {address.url}. Run chmod 600 on it, as the user that deploys."
        )
    # an HTTP library that refuses more shows it in its error
    if not _TOKEN.fullmatch(secret):
        raise BalancerError(
            f"{path} holds no token: one word of ASCII letters, digits and signs is expected. Nothing was "
            f"asked of {address.url}."
        )
    return {"Authorization": f"Bearer {secret}"}


def _refuse_unfit(address: HttpBalancerAddress, traffic: Traffic) -> None:
    if unknown := sorted({traffic.live, traffic.candidate} - set(address.sides)):
        raise BalancerError(
            f"{address.url} has no environment {unknown}, so traffic was left as it was; it has "
            f"{list(address.sides)}"
        )
    if traffic.canary_basis_points % _WHOLE:
        raise BalancerError(
            f"{address.url} takes whole percentages, not {traffic.canary_basis_points / _WHOLE:g}; traffic "
            "was left as it was"
        )


def _foreign(address: HttpBalancerAddress, path: str, said: str) -> BalancerError:
    return BalancerError(
        f"{address.url} does not answer {path} as a balancer's API does: {said[:_SAID_CHARACTERS]}. Nothing "
        "was changed by this question. Look at the address, its paths and the names of its two environments."
    )
