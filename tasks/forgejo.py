"""Forgejo's API: reads of reviews and checks, and issues for incidents.

Reads are repeated while the forge is busy or away; what writes is sent once, because an issue that was opened
twice is worse than one that a person opens.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from blocks.forgejo import Forgejo
from rules.errors import DeployError
from rules.evidence.forgejo import CombinedStatus, CommitStatus, Review

_TRIES = 3
_PAUSE_S = 0.2
_PAGE = 50
_MOST_PAGES = 100
_REPEATABLE = frozenset({408, 429, 502, 503, 504})

Model = TypeVar("Model", bound=BaseModel)


class ForgejoError(DeployError):
    """The forge refused a request, does not answer, or answers what its API does not promise."""


class _Answer(NamedTuple):
    data: Any  # JSON, checked where it is used; None: an empty body
    total: int | None  # of all pages, where the forge says so


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class _Head(_Part):
    sha: str


class _Pull(_Part):
    head: _Head


class _User(_Part):
    login: str


class _Issue(_Part):
    number: int
    html_url: str


class _Review(_Part):
    id: int
    user: _User | None = None  # none: a team that was asked
    state: str
    commit_id: str = ""
    official: bool = False
    stale: bool = False
    dismissed: bool = False
    submitted_at: str | None = None


class _Check(_Part):
    context: str
    status: str


class _Combined(_Part):
    sha: str = ""
    state: str = ""
    total_count: int = 0
    statuses: list[_Check] | None = None


def pull_head(forgejo: Forgejo, number: int) -> str:
    """Return the full id of the commit that a pull request's branch is at.

    Raises:
        ForgejoError: it could not be read.
    """
    return _checked(_Pull, _request(forgejo, "GET", f"pulls/{number}").data).head.sha


def pull_reviews(forgejo: Forgejo, number: int) -> tuple[Review, ...]:
    """Return all reviews of a pull request, those of teams left out.

    Raises:
        ForgejoError: they could not be read.
    """
    reviews = []
    for page in _pages(forgejo, f"pulls/{number}/reviews"):
        rows = page if isinstance(page, list) else [page]
        reviews += [_review(_checked(_Review, row)) for row in rows]
    return tuple(review for review in reviews if review.user)


def commit_status(forgejo: Forgejo, commit: str) -> CombinedStatus:
    """Return what all checks of a commit say together, read over all pages.

    The forge may combine the checks of one page only: it is a success when each page says so.

    Raises:
        ForgejoError: it could not be read.
    """
    path = f"commits/{quote(commit, safe='')}/status"
    full = [_checked(_Combined, page) for page in _pages(forgejo, path)]
    if not full:
        return CombinedStatus()
    state = next((page.state for page in full if page.state != "success"), "success")
    checks = [CommitStatus(context=c.context, status=c.status) for page in full for c in page.statuses or ()]
    return CombinedStatus(sha=full[0].sha, state=state, total_count=len(checks), statuses=tuple(checks))


def open_issue(forgejo: Forgejo, title: str, body: str) -> tuple[int, str]:
    """Open an issue; return its number and the address of its page.

    Raises:
        ForgejoError: it was refused, or the answer was lost; the words say which.
    """
    answer = _request(forgejo, "POST", "issues", {"title": title[:255], "body": body})
    issue = _checked(_Issue, answer.data)
    return issue.number, issue.html_url


def comment(forgejo: Forgejo, number: int, body: str) -> None:
    """Write a comment below an issue.

    Raises:
        ForgejoError: it was refused, or the answer was lost.
    """
    _request(forgejo, "POST", f"issues/{number}/comments", {"body": body})


def close_issue(forgejo: Forgejo, number: int) -> None:
    """Close an issue; closed already is fine.

    Raises:
        ForgejoError: it was refused, or the answer was lost.
    """
    _request(forgejo, "PATCH", f"issues/{number}", {"state": "closed"})


def _review(row: _Review) -> Review:
    fields = row.model_dump(exclude={"user", "submitted_at"})
    when = {"submitted_at": row.submitted_at} if row.submitted_at else {}
    return _checked(Review, {**fields, **when, "user": row.user.login if row.user else ""})


def _pages(forgejo: Forgejo, path: str) -> Iterator[Any]:
    """Yield the answers page by page: a list, or a map with the list `statuses`."""
    seen, last = 0, None
    for number in range(1, _MOST_PAGES + 1):
        answer = _request(forgejo, "GET", f"{path}?page={number}&limit={_PAGE}")
        rows = answer.data.get("statuses") if isinstance(answer.data, dict) else answer.data
        # the same rows again: a forge that knows no pages here
        if not isinstance(rows, list) or not rows or rows == last:
            return
        yield answer.data
        seen, last = seen + len(rows), rows
        if answer.total is not None and seen >= answer.total:
            return
    raise ForgejoError(f"{forgejo.url} has more than {_MOST_PAGES} pages of {path}; nothing was changed.")


def _request(forgejo: Forgejo, method: str, path: str, body: Mapping[str, str] | None = None) -> _Answer:
    """Send one request; a read is sent up to three times.

    Raises:
        ForgejoError: there was no good answer.
    """
    for attempt in range(1, (_TRIES if method == "GET" else 1) + 1):
        if attempt > 1:
            time.sleep(_PAUSE_S * attempt)
        try:
            answer = _send(forgejo, method, path, body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said, left = f"did not answer ({type(error).__name__}: {error})", _left(method)
            continue
        if answer.is_success:
            return _read(forgejo, method, path, answer=answer)
        said, left = f"answered {answer.status_code} ({_message(answer)})", _left(method, answer)
        if answer.status_code not in _REPEATABLE:
            break
    raise ForgejoError(
        f"{forgejo.url} {_without_token(forgejo, said)} to {method} {path} of {forgejo.owner}/"
        f"{forgejo.repository}. {left} Look at the block's url, owner, repository and the scopes of its "
        "token, and at the forge itself."
    )


def _send(forgejo: Forgejo, method: str, path: str, body: Mapping[str, str] | None) -> httpx.Response:
    headers = {"Accept": "application/json"}
    if forgejo.token:
        headers["Authorization"] = f"token {forgejo.token.get_secret_value()}"
    url = f"{forgejo.api_url}/{path}"
    return _http().request(method, url, json=body, headers=headers, timeout=forgejo.timeout_s)


def _read(forgejo: Forgejo, method: str, path: str, *, answer: httpx.Response) -> _Answer:
    total = answer.headers.get("X-Total-Count", "")
    try:
        # a commit without checks has been answered with no body at all
        data = answer.json() if answer.content.strip() else None
    except ValueError as error:
        raise ForgejoError(
            f"{forgejo.url} answered {method} {path} with no JSON; is it the address of a Forgejo? "
            f"{_left(method)}"
        ) from error
    return _Answer(data, int(total) if total.isdigit() else None)


def _left(method: str, answer: httpx.Response | None = None) -> str:
    """Say in which state a failed request left the forge."""
    if method == "GET" or (answer is not None and answer.is_client_error):
        return "Nothing was changed."
    return "Whether it was done all the same is not known."


def _without_token(forgejo: Forgejo, text: str) -> str:
    token = forgejo.token.get_secret_value() if forgejo.token else ""
    return text.replace(token, "***") if token else text


def _message(answer: httpx.Response) -> str:
    """Return what the forge says about an error, shortened."""
    try:
        said = answer.json().get("message") or answer.reason_phrase
    except (ValueError, AttributeError):
        said = answer.reason_phrase
    return str(said)[:300]


def _checked(model: type[Model], data: object) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ForgejoError(
            f"the forge's answer is not what its API promises: {error.error_count()} fields of "
            f"{model.__name__.strip('_')} are missing or of another kind. Look at the forge's version."
        ) from error


@functools.cache
def _http() -> httpx.Client:
    """Return one client for all forges, since making one costs more than asking.

    It follows no redirect, which would carry the token elsewhere, and heeds no proxy of the environment.
    """
    return httpx.Client(trust_env=False, follow_redirects=False)
