"""One way to ask an SGLang server: what is no answer becomes a `ModelServerError`; its key is in a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from pydantic import Field

from rules.errors import DeployError
from rules.frozen import AbsolutePath, Frozen, PositiveSeconds
from tasks.http_client import http

_SHOWN = 400
_TIMEOUT_S = 10.0
_KEY_MODES = (0o600, 0o400)
_UNAUTHORIZED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


class ModelServerError(DeployError):
    """A model server refused, or gave no answer.

    Attributes:
        url: what was asked.
        status: of the answer; None: there was none.
        words: the server's own, or why there was no answer.
    """

    def __init__(self, url: str, status: int | None, words: str, *, advice: str) -> None:
        self.url, self.status, self.words = url, status, words.strip()[:_SHOWN] or "(nothing)"
        answered = "gave no answer" if status is None else f"answered {status}"
        super().__init__(f"{url} {answered}: {self.words}. {advice}")


class ModelServerGoneError(ModelServerError):
    """Nothing listens, or the server ended while it was asked."""


class ModelServer(Frozen):
    """Where a server is asked, and the file with the key that its admin routes want."""

    url: str = Field(description="without a slash at its end")
    admin_key_file: AbsolutePath | None = None
    timeout_s: PositiveSeconds = _TIMEOUT_S


def send(
    server: ModelServer,
    method: str,
    path: str,
    *,
    body: object = None,
    admin: bool = False,
    timeout_s: float | None = None,
) -> httpx.Response:
    """Return the answer to one request, whatever its status.

    Args:
        server: whom to ask.
        method: of HTTP.
        path: from its root.
        body: sent as JSON; None: nothing.
        admin: whether this route may want the operator's key, which is then read from its file.
        timeout_s: how long each part of the answer may take; None: as long as any of this server.

    Raises:
        ModelServerError: there was none, or the key's file cannot be used.
    """
    url = f"{server.url}{path}"
    # sent where it is wanted and nowhere else
    key = _admin_key(url, server.admin_key_file) if admin and server.admin_key_file else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with reached(url):
        return http().request(method, url, json=body, headers=headers, timeout=timeout_s or server.timeout_s)


def json_of(answer: httpx.Response) -> Any:
    """Return the JSON of a good answer.

    Raises:
        ModelServerError: it is another answer, or no JSON.
    """
    if not answer.is_success:
        refuse(answer)
    try:
        return answer.json()
    except ValueError as error:
        raise ModelServerError(
            str(answer.url), answer.status_code, answer.text, advice="Is this an SGLang server?"
        ) from error


def refuse(answer: httpx.Response) -> NoReturn:
    """Raise what the server answered as an error, with what to do about it.

    Raises:
        ModelServerError: always.
    """
    advice = "See the server's log."
    if answer.status_code in _UNAUTHORIZED:
        advice = (
            "It wants a key: name the file with its admin key in the model's block (admin_key_file). A "
            "server that wants one for ordinary requests too cannot be probed: use --admin-api-key alone."
        )
    raise ModelServerError(str(answer.url), answer.status_code, answer.text, advice=advice)


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Turn what httpx raises into our own words."""
    try:
        yield
    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        words = f"{type(error).__name__} {error}"
        raise ModelServerGoneError(url, None, words, advice="Is its service running? See its log.") from error
    except httpx.HTTPError as error:
        # the class says what the text of a timeout leaves out
        words = f"{type(error).__name__} {error}"
        raise ModelServerError(url, None, words, advice="It is too busy, or hangs. See its log.") from error


@contextmanager
def understood(url: str, said: object) -> Iterator[None]:
    """Turn an answer of another form into an error that shows it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelServerError(
            url, httpx.codes.OK, str(said), advice="This is not what SGLang 0.5 answers: check its version."
        ) from error


def admin_key_fault(server: ModelServer) -> str | None:
    """Say why the key for a server's admin routes cannot be sent; None: it can, or none is declared."""
    try:
        if server.admin_key_file:
            _admin_key(server.url, server.admin_key_file)
    except ModelServerError as error:
        return str(error)
    return None


def _admin_key(url: str, path: str) -> str:
    """Return the key in the file at `path`, which its owner alone may read."""
    try:
        found = Path(path).stat()
        key = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelServerError(
            url,
            None,
            f"was not asked, because the key file {path} cannot be read: {error}",
            advice="Mend it.",
        ) from error
    mode = stat.S_IMODE(found.st_mode)
    if (
        mode not in _KEY_MODES
        or found.st_uid != os.geteuid()
        or not (key.isascii() and key.isprintable() and key)
    ):
        raise ModelServerError(
            url,
            None,
            f"was not asked: the key file {path} has mode {mode:04o} and belongs to user {found.st_uid}",
            advice=f"It must hold one line of ASCII, belong to user {os.geteuid()}, have mode 0600 or 0400.",
        )
    return key
