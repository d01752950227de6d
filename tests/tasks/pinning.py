"""What tests of content in IPFS share: a node that says what it is told to, real nodes, rows, a release."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from lab.kubo import LabKubo
from lab.kubo_install import why_not
from lab.ports import LOCALHOST, free_port, give_back
from rules.content_actions import (
    AddContent,
    ContentAction,
    PinContent,
    SetReferences,
    VerifyContent,
    VerifyReferences,
)
from rules.content_change import ContentFiles, ContentRelease
from rules.database import Database
from rules.fleet import FleetState
from rules.ipfs import ContentReferences, IpfsContent, IpfsNode
from tasks import kubo
from tasks.content_files import content_digest, read_files
from tasks.content_references import set_references, verify_references
from tasks.ipfs_content import add_content, pin_content, verify_content
from tests.tasks.databases import execute, session

V0 = "QmRLUf2cuYkWHpoYSyfJjcjjWLZDfXpZSqAg65CowHG5Tm"
OTHER_V0 = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
V1 = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"

# --- a node that says what it is told to ------------------------------------------------------------


@dataclass
class Talk:
    """One request as it arrived, and the connection that it is answered on."""

    connection: socket.socket
    method: str
    command: str
    params: list[tuple[str, str]]
    headers: dict[str, str]
    rest: bytes
    body: bytes = b""
    is_whole: bool = False

    def read(self) -> bytes:
        """Return the next bytes of the request; none: it has ended or broken off."""
        piece, self.rest = self.rest or self.connection.recv(1 << 16), b""
        return piece

    def read_body(self) -> bytes:
        """Read the body, which comes in chunks, to its end if it has one."""
        came = b""
        if "transfer-encoding" not in self.headers:
            return came
        while not came.endswith(b"\r\n0\r\n\r\n") and came != b"0\r\n\r\n":
            piece = self.read()
            if not piece:
                break
            came += piece
        self.is_whole = came.endswith(b"0\r\n\r\n")
        while came:
            size, _, came = came.partition(b"\r\n")
            length = int(size or b"0", 16)
            self.body += came[:length]
            came = came[length + 2 :]
            if not length:
                break
        return self.body

    def answer(self, *rows: object, status: str = "200 OK", trailer: str = "") -> None:
        """Answer in chunks, as Kubo does; a `trailer` comes last."""
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
        head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Stream-Error\r\n\r\n".encode()
        chunk = f"{len(text):x}\r\n".encode() + text + b"\r\n" if text else b""
        late = f"X-Stream-Error: {trailer}\r\n".encode() if trailer else b""
        self.connection.sendall(head + chunk + b"0\r\n" + late + b"\r\n")


@dataclass
class ToldNode:
    """A node whose answers a test makes: `script` is called with each request."""

    script: Callable[[Talk], None]
    node: IpfsNode
    seen: list[Talk] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    @property
    def commands(self) -> list[str]:
        return [talk.command for talk in self.seen]


def answering(*rows: object, **how: str) -> Callable[[Talk], None]:
    """Return a script that reads the request to its end and answers each one so."""

    def script(talk: Talk) -> None:
        talk.read_body()
        talk.answer(*rows, **how)

    return script


@contextmanager
def told_node(
    script: Callable[[Talk], None],
    *,
    token_file: Path | None = None,
    tls: ssl.SSLContext | None = None,
    buffer_bytes: int | None = None,
) -> Iterator[ToldNode]:
    """Open such a node; one request a connection."""
    port = free_port()
    scheme, name = ("https", "localhost") if tls else ("http", LOCALHOST)
    api = f"{scheme}://{name}:{port}"
    told = ToldNode(script, IpfsNode(name="one", api=api, token_file=token_file and str(token_file)))
    server = socket.create_server((LOCALHOST, port), backlog=20)
    if buffer_bytes:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            opened.append(connection)
            threads.append(threading.Thread(target=_serve, args=(told, connection, tls)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield told
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        give_back(port)
    assert not told.failed, told.failed


def _serve(told: ToldNode, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
    try:
        with tls.wrap_socket(connection, server_side=True) if tls else connection as stream:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = stream.recv(1 << 16)
                if not piece:
                    return
                head += piece
            talk = _talk(stream, *head.split(b"\r\n\r\n", 1))
            told.seen.append(talk)
            told.script(talk)
    except OSError:
        pass  # who asked has left
    except BaseException as error:  # noqa: BLE001 - told when the node is closed
        told.failed.append(error)


def _talk(stream: socket.socket, head: bytes, rest: bytes) -> Talk:
    first, *lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    command = parts.path.removeprefix("/api/v0/")
    return Talk(stream, method, command, parse_qsl(parts.query), headers, rest)


# --- real nodes, rows, a release --------------------------------------------------------------------


def lab_nodes(directory: Path, **how: bool) -> LabKubo:
    """Return two real nodes, not started; skip the test where there is no Kubo."""
    if words := why_not():
        pytest.skip(words)
    return LabKubo(directory, **how)


def as_new(lab: LabKubo) -> None:
    """Undo what a test did to the nodes, and have them forget what they pinned.

    They still hold it, as collecting takes seconds: what a node is to lack must be new to it.
    """
    for node in lab.nodes:
        lab.mend(node.name)
        for cid in lab.pins(node.name):
            kubo.unpin(node, cid)


REFERENCES = ContentReferences(table="public.documents", key="name", cid="cid")


def fill(database, rows: dict[str, str | None]) -> None:
    """Make the table that refers to content, with these rows."""
    with session(database) as connection:
        connection.execute("CREATE TABLE documents (name text PRIMARY KEY, cid text)")
        for row in rows.items():
            connection.execute("INSERT INTO documents VALUES (%s, %s)", row)


def rows_of(database) -> dict[str, str | None]:
    return dict(execute(database, "SELECT name, cid FROM documents"))


def content_on(lab: LabKubo, **how) -> IpfsContent:
    return IpfsContent(
        **{"name": "papers", "nodes": lab.nodes, "references": REFERENCES, "pin_s": 20, "fetch_s": 20, **how}
    )


def release(source: Path, references: dict[str, str], name: str = "1") -> ContentRelease:
    digest = content_digest(str(source), read_files(str(source)))
    artefact = ContentFiles(path=str(source), sha256=digest)
    return ContentRelease(content="papers", release=name, artefact=artefact, references=references)


def files_in(directory: Path, **files: bytes) -> Path:
    """Write files, whose names have __ for a slash and _ for a dot."""
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def do(
    content: IpfsContent,
    database: Database,
    change: ContentRelease,
    action: ContentAction,
    *,
    deployment: str,
    heed: Callable[[], None] = lambda: None,
) -> None:
    """Do one action of a plan."""
    match action:
        case AddContent():
            add_content(content, change, action, heed=heed)
        case PinContent():
            pin_content(content, action, heed=heed)
        case VerifyContent():
            verify_content(content, action, heed=heed)
        case SetReferences():
            set_references(database, content.references, action, deployment=deployment, heed=heed)
        case VerifyReferences():
            verify_references(content, database, action, deployment=deployment, heed=heed)


#: Nobody is watched.
NOBODY = FleetState(instances={})
