"""HTTP/1.1 for the simulated SGLang: JSON and event streams by asyncio and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

_JSON = "application/json"


@dataclasses.dataclass(frozen=True)
class Call:
    """One request: its method, path without a query, headers in small letters, and body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """Return the body's JSON; an empty body is an empty object.

        Raises:
            ValueError: it is no JSON object.
        """
        content = json.loads(self.body or b"{}")
        if not isinstance(content, dict):
            raise ValueError("no JSON object")  # noqa: TRY004 - the caller minds what was sent, not its type
        return content


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status and a body, or a stream of pieces."""

    status: int = 200
    body: bytes = b""
    content_type: str = _JSON
    stream: AsyncIterator[bytes] | None = None

    @classmethod
    def json(cls, content: object, status: int = 200) -> Answer:
        """Return an answer of JSON."""
        return cls(status, json.dumps(content).encode())

    @classmethod
    def text(cls, content: str, status: int = 200) -> Answer:
        """Return an answer of plain text."""
        return cls(status, content.encode(), "text/plain; charset=utf-8")

    @classmethod
    def events(cls, stream: AsyncIterator[bytes]) -> Answer:
        """Return server-sent events."""
        return cls(200, b"", "text/event-stream; charset=utf-8", stream)

    def head(self) -> bytes:
        """Return the status line and the headers."""
        length = "Transfer-Encoding: chunked" if self.stream else f"Content-Length: {len(self.body)}"
        lines = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            length,
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


class HttpServer:
    """Gives each request to `respond`; connections are kept open until the client closes them."""

    def __init__(self, respond: Callable[[Call], Awaitable[Answer]]) -> None:
        self._respond = respond

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begin to listen.

        Raises:
            OSError: the port is in use.
        """
        return await asyncio.start_server(self._serve, host, port, backlog=512)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a client that leaves, or sends no HTTP, is no trouble of ours
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            keep_open = True
            while keep_open:
                call, keep_open = await _read(reader)
                await self._answer(call, writer)
        writer.close()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        answer = await self._respond(call)
        writer.write(answer.head() + answer.body)
        await writer.drain()
        if answer.stream:
            async with contextlib.aclosing(answer.stream) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> tuple[Call, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, version = (*request.split(" "), "", "", "")[:3]
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    keep_open = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Call(method, path.partition("?")[0], headers, body), keep_open
