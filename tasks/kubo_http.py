"""One request to a Kubo node's RPC API: sent and answered at once, watched, with errors in our words.

A node answers `add` while it is still being sent to: row by row, and once nobody takes the rows it stops
reading. httpx reads only when it has sent everything, so both would wait for ever. Here whatever comes while
sending is taken and kept until httpx asks for it.
"""

from __future__ import annotations

import functools
import os
import re
import select
import socket
import ssl
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from rules.errors import DeployError
from rules.ipfs import IpfsNode

_CONNECT_S = 5.0
_TICK_S = 0.2
_HEED_S = 1.0
_PIECE_BYTES = 1 << 16
_TAIL_BYTES = 4096
_SAID_CHARACTERS = 300
_TOKEN = re.compile(r"[!-~]+")
# a node that refuses need not be sent the rest
_REFUSED = re.compile(rb"HTTP/1\.[01] [345]")
# after the last piece of the body, where httpx does not look
_LATE_ERROR = re.compile(rb"\r\n0\r\n(?:[^\r\n]+\r\n)*?X-Stream-Error: *([^\r\n]*)\r\n", re.IGNORECASE)

#: What may be given several times, such as `arg`.
Params = Sequence[tuple[str, str]]


class KuboError(DeployError):
    """A node refuses, fails, or does not answer as Kubo does.

    Args:
        message: what happened and what to do.
        said: the node's own words; empty: none.
    """

    def __init__(self, message: str, *, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class KuboUnreachableError(KuboError):
    """A node does not answer, stops in the middle of its answer, or takes too long."""


class Exchange:
    """One request and its answer, how long it may take, and who may stop it.

    Args:
        node: who is asked.
        command: such as pin/add.
        limit_s: for all of it, or with `by_progress` for each wait in which no byte moves.
        by_progress: see `limit_s`.
        heed: called each second; may raise to give up, and the connection is then closed.
    """

    def __init__(
        self,
        node: IpfsNode,
        command: str,
        *,
        limit_s: float,
        by_progress: bool = False,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        self.node, self.command = node, command
        self.is_broken = False
        self._limit_s, self._by_progress, self._heed = limit_s, by_progress, heed
        self._moved_at = self._heeded_at = time.monotonic()
        self._tail = b""

    @property
    def late_error(self) -> str:
        """What the node said after its answer had begun well, so that the status is 200; empty: nothing."""
        found = _LATE_ERROR.search(self._tail)
        return found[1].decode(errors="replace").strip()[:_SAID_CHARACTERS] if found else ""

    def attend(self, *, has_moved: bool) -> None:
        """Take note that something moved, or not.

        Raises:
            KuboUnreachableError: it takes too long.
            DeployError: whatever `heed` raises.
        """
        now = time.monotonic()
        if has_moved and self._by_progress:
            self._moved_at = now
        if now - self._moved_at > self._limit_s:
            kind = "moved nothing in" if self._by_progress else "did not end"
            raise KuboUnreachableError(
                f"{self.node.name} at {self.node.api} {kind} {self.command} within {self._limit_s:g} s. Look "
                "whether the node hangs, and at its log."
            )
        if now - self._heeded_at >= _HEED_S:
            self._heeded_at = now
            self._heed()

    def note(self, piece: bytes) -> None:
        """Remember the end of what came."""
        self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    @contextmanager
    def answer(
        self,
        params: Params = (),
        *,
        content: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """Send the request; yield its answer, which is no error as far as one can see yet.

        Args:
            params: of the command.
            content: the request's body; sent as it is made.
            headers: beside those that each request has.

        Raises:
            KuboError: the node refuses, or what answers is no Kubo node.
            KuboUnreachableError: no answer, or not all of it.
        """
        node = self.node
        url = f"{node.api.rstrip('/')}/api/v0/{self.command}"
        sent = {"Accept-Encoding": "identity", **_authorization(node), **(headers or {})}
        timeout = httpx.Timeout(None, connect=_CONNECT_S)  # all else is `attend`'s
        try:
            with (
                httpx.Client(transport=_transport(self), trust_env=False, timeout=timeout) as client,
                client.stream("POST", url, params=list(params), content=content, headers=sent) as answer,
            ):
                if not answer.is_success:
                    answer.read()
                    raise _refusal(self, answer)
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            late = f" It said: {self.late_error}." if self.late_error else ""
            raise KuboUnreachableError(
                f"{node.name} does not answer {self.command} at {node.api}, or not to its end: {error!r}."
                f"{late} Look whether `ipfs daemon` runs there, and whether this host reaches its RPC API.",
                said=self.late_error,
            ) from error

    def foreign(self, text: str) -> KuboError:
        """Return the error that says that this is no answer of a Kubo node."""
        return KuboError(
            f"{self.node.name} at {self.node.api} does not answer {self.command} as Kubo does: "
            f"{text[:_SAID_CHARACTERS]!r}. Look whether the address is that of Kubo's RPC API (port 5001), "
            "not of its gateway, and whether a proxy stands between."
        )


def _refusal(exchange: Exchange, answer: httpx.Response) -> KuboError:
    node, command = exchange.node, exchange.command
    try:
        said = str(answer.json()["Message"])
    except (ValueError, KeyError, TypeError):
        said = " ".join(answer.text.split())
    said = said[:_SAID_CHARACTERS]
    match answer.status_code:
        case 500 | 400:
            return KuboError(f"{node.name} at {node.api} failed at {command}: {said}.", said=said)
        case 401 | 403:
            hint = "Look at token_file, and at API.Authorizations in the node's configuration"
        case 404 | 405:
            hint = "Look whether the address is that of Kubo's RPC API (port 5001), not of its gateway"
        case _:
            hint = "Look whether a proxy stands between"
    return KuboError(
        f"{node.name} at {node.api} answered {command} with {answer.status_code} ({said}). {hint}.", said=said
    )


def _authorization(node: IpfsNode) -> dict[str, str]:
    if node.token_file is None:
        return {}
    path = Path(node.token_file)
    try:
        state, secret = path.stat(), path.read_text(errors="replace").strip()
    except OSError as error:
        raise KuboError(f"{node.name}'s token cannot be read: {error}. Nothing was asked.") from error
    if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
        raise KuboError(
            f"{path} can be read by others than its owner, or is not ours: its token is not used. Nothing "
            "was asked. Run chmod 600 on it, as the user that deploys."
        )
    # an HTTP library that refuses more shows it in its error
    if not _TOKEN.fullmatch(secret):
        raise KuboError(
            f"{path} holds no token: one word of ASCII letters, digits and signs is expected. Nothing was "
            "asked. Write the node's token there, and nothing else."
        )
    return {"Authorization": f"Bearer {secret}"}


# --- sent and answered at once ---------------------------------------------------------------------


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return what is needed for https, since making it costs more than asking; it heeds SSL_CERT_FILE."""
    return httpx.create_ssl_context()


def _transport(exchange: Exchange) -> httpx.HTTPTransport:
    limits = httpx.Limits(max_keepalive_connections=0)
    transport = httpx.HTTPTransport(verify=_tls(), trust_env=False, limits=limits)
    pool: Any = transport._pool  # noqa: SLF001 - httpx offers no other way to a connection's socket
    pool._network_backend = _Backend(pool._network_backend, exchange)  # noqa: SLF001
    return transport


class _Backend:
    """What opens connections, with ours laid over them."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner, self._exchange = inner, exchange

    def connect_tcp(self, *arguments: Any, **named: Any) -> _Stream:
        return _Stream(self._inner.connect_tcp(*arguments, **named), self._exchange)


class _Stream:
    """A connection that reads while it writes, and asks now and then whether it should still wait."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner, self._exchange = inner, exchange
        self._socket: socket.socket = inner.get_extra_info("socket")
        self._early: deque[bytes] = deque()
        self._has_ended = False

    def start_tls(self, *arguments: Any, **named: Any) -> _Stream:
        return _Stream(self._inner.start_tls(*arguments, **named), self._exchange)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        self._inner.close()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - see Exchange
        """Return what came next; nothing at its end, and where the connection was lost."""
        while not self._early and not self._has_ended:
            has_moved = self._receive(max_bytes)
            self._exchange.attend(has_moved=has_moved)
            if not has_moved:
                self._wait(select.POLLIN)
        return self._early.popleft() if self._early else b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - see Exchange
        """Send it all; where the connection is lost, nothing: the node may have answered before."""
        left = memoryview(buffer)
        while left and not self._exchange.is_broken:
            received, sent = self._receive(_PIECE_BYTES), self._send(left[:_PIECE_BYTES])
            left = left[sent:]
            self._exchange.attend(has_moved=received or sent > 0)
            if not received and not sent:
                self._wait(select.POLLOUT if self._has_ended else select.POLLIN | select.POLLOUT)

    def _receive(self, max_bytes: int) -> bool:
        """Take what is there; return whether there was something."""
        if self._has_ended:
            return False
        self._socket.setblocking(False)  # noqa: FBT003 - its only argument
        try:
            piece = self._socket.recv(max_bytes)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            piece = b""
        self._has_ended = not piece
        if piece:
            self._exchange.is_broken |= bool(not self._early and _REFUSED.match(piece))
            self._early.append(piece)
            self._exchange.note(piece)
        return bool(piece)

    def _send(self, piece: memoryview) -> int:
        self._socket.setblocking(False)  # noqa: FBT003 - its only argument
        try:
            return self._socket.send(piece)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self._exchange.is_broken = True
            return 0

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        poll.poll(_TICK_S * 1000)
