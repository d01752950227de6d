"""The HTTP API of a Ray cluster's head: one request, one list, and what is wrong with an answer.

What Ray leaves out of an answer is never taken for "there is none": a list that is cut or marked as partial
is an error, since a node is stopped on the strength of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from rules.errors import DeployError
from rules.ray_cluster import RayCluster, RayNodeProbe
from tasks.http_client import http

#: Whom to ask.
Head = RayCluster | RayNodeProbe
#: One entry of a list.
Row = dict[str, Any]
#: Field, `=` or `!=`, value.
Filter = tuple[str, str, str]

#: Both the most that the API answers and the most that it reads itself, unless Ray is set up otherwise.
_LIMIT = 10_000
_TIMEOUT_S = 30.0
_TRIES = 3
_PAUSE_S = 1.0
_SAID_CHARACTERS = 300
#: What a header can carry. An HTTP library that refuses more shows it in its error.
_TOKEN = re.compile(r"[!-~]+")


class RayClusterError(DeployError):
    """The cluster's head does not answer, refuses, or does not tell all.

    Args:
        message: what happened and what to do.
        status: of its HTTP answer; None: there was none, or it was fine and its content was not.
        may_pass: whether it may go better in a moment.
    """

    def __init__(self, message: str, *, status: int | None = None, may_pass: bool = False) -> None:
        super().__init__(message)
        self.status, self.may_pass = status, may_pass


def ask(cluster: Head, method: str, path: str, **request: Any) -> httpx.Response:
    """Return the head's answer to one request, which is not an error.

    What only reads is asked up to three times where the head is busy or just away; a probe asks once.

    Args:
        cluster: whom to ask; its token is read from the file at each request.
        method: such as GET.
        path: below the dashboard's address, without the first slash.
        request: passed on to httpx.

    Raises:
        RayClusterError: no answer, or an error; carries what the head said, and its status.
    """
    left = _TRIES if method == "GET" and isinstance(cluster, RayCluster) else 1
    while True:
        left -= 1
        try:
            return _ask_once(cluster, method, path, **request)
        except RayClusterError as error:
            if not left or not error.may_pass:
                raise
        time.sleep(_PAUSE_S)


def _ask_once(cluster: Head, method: str, path: str, **request: Any) -> httpx.Response:
    url = f"{cluster.dashboard.rstrip('/')}/{path}"
    timeout_s = cluster.timeout_s if isinstance(cluster, RayNodeProbe) else _TIMEOUT_S
    try:
        answer = http().request(method, url, headers=_headers(cluster), timeout=timeout_s, **request)
    except httpx.HTTPError as error:
        raise RayClusterError(
            f"The Ray head does not answer at {url}: {error!r}. Look whether `ray start --head` runs there, "
            "and whether this host reaches its dashboard.",
            may_pass=not isinstance(error, httpx.TimeoutException),
        ) from error
    if answer.is_success:
        return answer
    hint = "Its token is wrong or missing: see token_file. " if answer.status_code in (401, 403) else ""
    raise RayClusterError(
        f"The Ray head answered {answer.status_code} at {url}. {hint}{_said(answer)}",
        status=answer.status_code,
        may_pass=answer.is_server_error,
    )


def token(cluster: Head) -> str | None:
    """Return the cluster's token, read now; None: it needs none.

    Raises:
        RayClusterError: the file cannot be read, or holds no token; does not tell what it holds.
    """
    if cluster.token_file is None:
        return None
    try:
        secret = Path(cluster.token_file).read_text(errors="replace").strip()
    except OSError as error:
        raise RayClusterError(
            f"The Ray cluster's token cannot be read: {error}. Nothing was asked."
        ) from error
    if not _TOKEN.fullmatch(secret):
        raise RayClusterError(
            f"{cluster.token_file} holds no token: one word of ASCII letters, digits and signs is expected. "
            "Nothing was asked. Write the token of the head there, and nothing else."
        )
    return secret


def _headers(cluster: Head) -> dict[str, str]:
    secret = token(cluster)
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def listing(cluster: Head, kind: str, filters: list[Filter], *, whole: bool = True) -> list[Row]:
    """Return what the state API lists, in detail.

    Args:
        cluster: whom to ask.
        kind: nodes, actors or tasks.
        filters: all of them must hold.
        whole: a list that is cut or partial is an error.

    Raises:
        RayClusterError: no usable answer, or not all of it.
    """
    path = f"api/v0/{kind}"
    params: list[tuple[str, str]] = [("detail", "1"), ("limit", str(_LIMIT))]
    for key, predicate, value in filters:
        params += [("filter_keys", key), ("filter_predicates", predicate), ("filter_values", value)]
    answer = ask(cluster, "GET", path, params=params)
    try:
        body = answer.json()
        found = body["data"]["result"]
        rows: list[Row] = found["result"]
        doubts = _doubts(kind, found, len(rows)) if body["result"] else [body["msg"]]
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(cluster, path, answer.text) from error
    if not body["result"] or (whole and doubts) or found.get("warnings"):
        raise RayClusterError(
            f"The Ray head at {cluster.dashboard} does not tell all its {kind}: "
            f"{'; '.join(map(str, doubts))}. Nothing was done on the strength of it."
        )
    return rows


def _doubts(kind: str, found: Mapping[str, Any], listed: int) -> list[str]:
    doubts = [str(words) for words in (found["partial_failure_warning"], *(found["warnings"] or ())) if words]
    if listed < found["num_filtered"]:
        doubts.append(f"{listed:,} of {found['num_filtered']:,} listed")
    read, total = found["num_after_truncation"], found["total"]
    # only of actors `total` is all there are; of nodes it counts those that the filter leaves out once more,
    # of tasks those that Ray has forgotten, the oldest that ended first
    if (read < total) if kind == "actors" else (read >= _LIMIT):
        doubts.append(f"it looked at {read:,} only")
    return doubts


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["msg"])[:_SAID_CHARACTERS]
    except (ValueError, KeyError, TypeError):  # a traceback, whose end says it, or one line
        return " ".join(answer.text.split())[-_SAID_CHARACTERS:] or "It said nothing."


def unusable(cluster: Head, path: str, text: str) -> RayClusterError:
    """Return the error that says that this is no answer of a Ray head."""
    return RayClusterError(
        f"{cluster.dashboard} does not answer as a Ray head does at /{path}: {text[:300]!r}. Look whether "
        "the address is that of Ray's dashboard, and whether a proxy stands between."
    )
