"""One Kubo node with its RPC API on 127.0.0.1: `python -m lab.kubo_node --directory D …`.

The node is Kubo's own code; HTTP around it is ours, as the real one speaks it. `lab.kubo_checks` says
what that is.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import select
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lab.kubo_asked import Answer, Asked, CommandError, WrongRequestError
from lab.kubo_calls import GivenUpError
from lab.kubo_commands import VERSION, Commands
from lab.kubo_library import Library, LibraryError
from lab.kubo_settings import Settings
from lab.kubo_upload import Body, NoFileError, UploadError

_API = "/api/v0/"
_PIECE_BYTES = 256 * 1024
_DENIED = (
    "Kubo RPC Access Denied: Please provide a valid authorization token as defined in the "
    "API.Authorizations configuration.\n"
)
_HANG_POLL_S = 0.1


class Server(http.server.ThreadingHTTPServer):
    """The RPC API of one node.

    Args:
        port: where it listens on 127.0.0.1.
        commands: what it can do.
        settings: what the lab wants of it now.
        token: what requests must bear; empty: nothing.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, commands: Commands, settings: Settings, token: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.commands, self.settings, self.token = commands, settings, token


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    # headers and rows are small and sent apart: each would wait for the other side's acknowledgement
    disable_nagle_algorithm = True
    server: Server

    def version_string(self) -> str:
        """Say who answers."""
        return f"kubo/{VERSION}"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing: the log is for what the library says."""

    def do_GET(self) -> None:
        """Refuse: commands are posted."""
        self._text(405, "405 - Method Not Allowed\n")

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815 - the parent's names

    def do_POST(self) -> None:
        """Do a command."""
        while self.server.settings.read().hang:
            time.sleep(_HANG_POLL_S)
            if self._is_gone():
                self.close_connection = True
                return
        where = urllib.parse.urlsplit(self.path)
        command = self.server.commands.find(where.path.removeprefix(_API).rstrip("/"))
        if refusal := self._refusal():
            self._text(403, refusal)
        elif command is None or not where.path.startswith(_API):
            self._text(404, "404 page not found\n")
        else:
            body = Body(self.headers, self.rfile)
            options = urllib.parse.parse_qs(where.query, keep_blank_values=True)
            self._do(command, Asked(options, self.headers, body, self._is_gone))

    def _do(self, command: Callable[[Asked], Answer], asked: Asked) -> None:
        try:
            self._answer(command(asked))
        except (WrongRequestError, NoFileError) as error:
            self._text(400, f"{error}\n")
        except GivenUpError:
            self._error("context deadline exceeded")
        except (CommandError, UploadError, LibraryError, OSError, ValueError) as error:
            self._error(str(error))
        # a client that still sends would see its connection reset, and no answer
        with contextlib.suppress(UploadError, OSError):
            while asked.body.read(_PIECE_BYTES):
                pass

    def _refusal(self) -> str:
        is_browser = (self.headers.get("User-Agent") or "").startswith("Mozilla")
        if is_browser or self.headers.get("Origin") or self.headers.get("Referer"):
            return "403 - Forbidden\n"
        token = self.server.token
        return _DENIED if token and self.headers.get("Authorization") != f"Bearer {token}" else ""

    def _is_gone(self) -> bool:
        """Return whether who asked has closed the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _text(self, status: int, text: str) -> None:
        self.close_connection = True
        self._whole(status, text.encode(), "text/plain; charset=utf-8")

    def _error(self, message: str) -> None:
        said = json.dumps({"Message": message, "Code": 0, "Type": "error"})
        self._whole(500, f"{said}\n".encode(), "application/json")

    def _whole(self, status: int, content: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def _answer(self, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if answer.file else "application/json")
        self.send_header("X-Stream-Output" if answer.file else "X-Chunked-Output", "1")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Trailer", "X-Stream-Error")
        self.end_headers()
        try:
            for piece in _pieces(answer):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            trailer = f"X-Stream-Error: {answer.late_error}\r\n" if answer.late_error else ""
            self.wfile.write(f"0\r\n{trailer}\r\n".encode())
        except ConnectionError:
            self.close_connection = True
        finally:
            if answer.file:
                self.server.commands.remove(answer.file)


def _pieces(answer: Answer) -> Iterator[bytes]:
    """Yield what is sent, never an empty piece: that would be its end."""
    for row in answer.rows:
        yield json.dumps(row).encode() + b"\n"
    if answer.file is None:
        return
    left = answer.length
    with answer.file.open("rb") as file:
        file.seek(answer.offset)
        while piece := file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES)):
            left = None if left is None else left - len(piece)
            yield piece


def main() -> NoReturn:
    """Run a node until SIGTERM."""
    arguments = argparse.ArgumentParser(prog="python -m lab.kubo_node", description=__doc__)
    arguments.add_argument("--directory", type=Path, required=True, help="of the node")
    arguments.add_argument("--library", type=Path, required=True, help="Kubo's shared library")
    arguments.add_argument("--port", type=int, required=True, help="of its RPC API on 127.0.0.1")
    arguments.add_argument("--swarm-port", type=int, required=True, help="for other nodes, on 127.0.0.1")
    arguments.add_argument("--token-file", type=Path, help="what requests must bear; none: nothing")
    given = arguments.parse_args()
    settings = Settings(given.directory / "settings.json")
    library = Library(given.library, given.directory / "repository")
    library.create(given.swarm_port, is_cut_off=settings.read().cut_off)
    library.run()
    restarted = threading.Event()
    commands = Commands(library, settings, given.directory, restarted.set)
    token = given.token_file.read_text().strip() if given.token_file else ""
    server = Server(given.port, commands, settings, token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _wait_for_the_end(library, restarted)


def _wait_for_the_end(library: Library, restarted: threading.Event) -> NoReturn:
    def end(_number: int, _frame: FrameType | None) -> None:
        library.stop()
        # threads may hang in the library: nothing waits for them
        os._exit(0)

    while True:
        # a node that starts takes the signals for itself: they are taken back each time
        restarted.clear()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        restarted.wait()


if __name__ == "__main__":
    main()
