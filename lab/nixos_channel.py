"""What the lab's NixOS hosts are made from and served by: nixpkgs in small, a channel, and pages."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lab.part import Part
from lab.ports import LOCALHOST, free_port, give_back

_LAB = Path(__file__).resolve().parent
_FILES = {
    "nixos/default.nix": "nixos_entry.nix",
    "system.nix": "nixos_system.nix",
    "switch.sh": "nixos_switch.sh",
    "nixos-version.sh": "nixos_version.sh",
}

_Answer = Callable[[str], tuple[int, bytes] | None]


class Web(Part):
    """Answers GET on 127.0.0.1 in this process; stopped, nobody listens there.

    Args:
        answer: path -> status and content; None: not found.
    """

    def __init__(self, answer: _Answer) -> None:
        self.port = free_port()
        self._answer = answer
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Its address, without a last slash."""
        return f"http://{LOCALHOST}:{self.port}"

    def start(self) -> None:
        """Begin to listen; running already is fine."""
        if self._server is None:
            self._server = _Server((LOCALHOST, self.port), _handler(self._answer))
            threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="nixos", daemon=True
            ).start()

    def stop(self) -> None:
        """Listen no more; the port stays reserved until `close`."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Stop, and let others have the port."""
        self.stop()
        give_back(self.port)


def write_nixpkgs(directory: Path, version: str) -> Path:
    """Write what stands for nixpkgs at `version`, and return its directory."""
    place = directory / version
    if not place.exists():
        new = place.with_name(f"{version}.new")
        for name, file in _FILES.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_LAB / file, new / name)
        (new / "version").write_text(version)
        new.rename(place)
    return place


def packed(nixpkgs: Path) -> bytes:
    """Return a channel's `nixexprs.tar.xz`: always the same bytes for the same version."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=0) as archive:
        for path in sorted(nixpkgs.rglob("*")):
            entry = archive.gettarinfo(path, f"nixos-{nixpkgs.name}/{path.relative_to(nixpkgs)}")
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 1, 0, 0, "", ""
            entry.mode = 0o755 if path.is_dir() else 0o644
            if path.is_dir():
                archive.addfile(entry)
            else:
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
    return content.getvalue()


def _handler(answer: _Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_GET(self) -> None:
            """Answer; what the client has already is not sent again, as channels' servers do."""
            status, content = answer(self.path) or (404, b"not found\n")
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            if status == 200 and self.headers.get("If-None-Match") == tag:  # noqa: PLR2004 - HTTP's own
                status, content = 304, b""
            self.send_response(status)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
