"""The journal on disk and its mirror in Prefect's API.

One directory a deployment: `journal.jsonl` (append-only, fsynced), `alive` (locked by its process as long
as that lives), `step` (locked during each effect and each recovery), `lease_until` (wall clock).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rules.entries import Entry, Locked, Opened, line, parse
from rules.errors import DeployError
from rules.journal import JournalView, view
from rules.record import progress_page
from tasks.prefect_api import PrefectApi

_PAGE = 200
_KEPT_CHARACTERS = 500


class NoJournalError(DeployError):
    """There is no journal of that deployment here."""


class JournalFile:
    """One deployment's journal. Appending is durable when it returns."""

    def __init__(self, directory: Path, deployment: str) -> None:
        self.directory = directory / deployment
        self.deployment = deployment
        self.path = self.directory / "journal.jsonl"

    @contextmanager
    def begun(self, opened: Opened) -> Iterator[None]:
        """Begin the journal and show that this process lives, until it leaves or dies, however it dies.

        The directory appears only when both are in place: nobody ever sees a journal without an owner that
        has not had one.

        Raises:
            FileExistsError: this deployment was begun before.
        """
        if self.directory.exists():
            raise FileExistsError(f"{self.deployment} has a journal already: {self.directory}")
        with self._prepared() as hidden, (hidden / "alive").open("a+") as alive:
            _lock(alive.fileno(), 0)
            alive.write(json.dumps({"pid": os.getpid(), "started": _started(os.getpid())}))
            alive.flush()
            JournalFile(hidden.parent, hidden.name).append(opened)
            self._publish(hidden)
            yield

    def adopt(self, lines: bytes) -> None:
        """Put `lines`, read from the mirror, in place of what is here."""
        if self.directory.exists():
            _write_durably(self.directory / "adopted", lines)
            (self.directory / "adopted").replace(self.path)
            _fsync_directory(self.directory)
            return
        with self._prepared() as hidden:
            _write_durably(hidden / self.path.name, lines)
            self._publish(hidden)

    @contextmanager
    def _prepared(self) -> Iterator[Path]:
        hidden = self.directory.with_name(f".{self.deployment}.{os.getpid()}")
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        try:
            yield hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _publish(self, hidden: Path) -> None:
        _fsync_directory(hidden)
        hidden.rename(self.directory)
        _fsync_directory(self.directory.parent)

    def append(self, entry: Entry) -> None:
        """Write `entry`; it is on the disk when this returns."""
        self._cut_torn_line()
        with self.path.open("ab") as file:
            file.write(line(entry))
            file.flush()
            os.fsync(file.fileno())

    def _cut_torn_line(self) -> None:
        """Remove a last line that a crash left without its end: it would spoil the next one."""
        if not self.size_bytes:
            return
        with self.path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    @property
    def size_bytes(self) -> int:
        """How long the journal is: it grows when another process takes the deployment over."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> JournalView:
        """Return what the journal says.

        Raises:
            NoJournalError: nothing whole was written yet.
        """
        entries = parse(self.path.read_bytes()) if self.path.exists() else ()
        if not entries:
            raise NoJournalError(f"no journal of {self.deployment} in {self.directory.parent}")
        return view(entries)

    @contextmanager
    def exclusive(self, *, patience_s: float) -> Iterator[None]:
        """Hold the step lock: one effect or one recovery at a time on this host.

        Raises:
            TimeoutError: another process held it for all of `patience_s`.
        """
        with (self.directory / "step").open("a+") as file:
            _lock(file.fileno(), patience_s)
            yield

    @contextmanager
    def watched(self, *, patience_s: float) -> Iterator[None]:
        """Hold the lock of those who watch a promoted deployment: one at a time on this host.

        Raises:
            TimeoutError: another process held it for all of `patience_s`.
        """
        with (self.directory / "watched").open("a+") as file:
            _lock(file.fileno(), patience_s)
            yield

    def owner_lives(self) -> bool:
        """Whether the process that runs this deployment on this host still exists."""
        if not (self.directory / "alive").exists():
            return False
        with (self.directory / "alive").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def owner_pid(self) -> int | None:
        """Return the living owner's process id; None when that process is gone, even if its id was reused."""
        try:
            owner = json.loads((self.directory / "alive").read_text())
        except (OSError, ValueError):
            return None
        return owner["pid"] if _started(owner["pid"]) == owner["started"] else None

    def note_lease(self, until: float) -> None:
        """Keep the lease's end (seconds since the epoch) for a process that cannot ask the API."""
        (self.directory / "lease_until").write_text(repr(until))

    def lease_until(self) -> float:
        """Return when the lease ends at the latest (seconds since the epoch); 0 when none was taken."""
        try:
            return float((self.directory / "lease_until").read_text())
        except (OSError, ValueError):
            return 0.0


def journals(directory: Path) -> tuple[JournalFile, ...]:
    """Return every deployment's journal in `directory`, newest last."""
    if not directory.exists():
        return ()
    # a name that begins with a dot is a journal that was never begun
    found = [path for path in directory.glob("[!.]*") if (path / "journal.jsonl").exists()]
    found.sort(key=lambda path: path.stat().st_ctime)
    return tuple(JournalFile(directory, path.name) for path in found)


class Mirror:
    """The journal's copy in Prefect's API: one artifact version a flush, all under the deployment's key."""

    def __init__(
        self, api: PrefectApi, deployment: str, *, flow_run_id: str | None, entries: Iterable[Entry] = ()
    ) -> None:
        self._api, self._deployment, self._flow_run_id = api, deployment, flow_run_id
        self._all: list[Entry] = []
        self._copied = 0
        self._token = ""
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Queue an entry for the next flush."""
        self._all.append(entry)
        if isinstance(entry, Locked):
            self._token = entry.token

    def withdraw(self) -> None:
        """Take back the newest queued entry: it did not become part of the journal."""
        self._all.pop()

    def flush(self) -> None:
        """Copy what is queued.

        Raises:
            ApiUnavailableError: the API did not take it; it stays queued.
        """
        waiting = self._all[self._copied :]
        if not waiting:
            return
        artifact = {
            "key": mirror_key(self._deployment),
            "type": "markdown",
            "description": f"Journal of {self._deployment}",
            "data": progress_page(self._deployment, self._all),
            "metadata_": {"first": str(self._copied), "token": self._token, **_pieces(waiting)},
            "flow_run_id": self._flow_run_id,
        }
        self._api.request("POST", "artifacts/", artifact)
        self._copied = len(self._all)


def mirror_key(deployment: str) -> str:
    """Return the artifact key of a deployment's journal."""
    return f"journal-{deployment}"


def mirrored_lines(api: PrefectApi, deployment: str) -> bytes:
    """Return the journal as its mirror has it, up to the first gap; empty when there is none.

    A later copy replaces what an earlier one had from the same line on: so a recovery that sends the whole
    journal again also corrects an entry whose writer never learnt that it had arrived. A copy whose token
    was replaced before it came is that of a process which was given up: it does not count.
    """
    copies = sorted(_mirrored_copies(api, deployment), key=lambda copy: _time(copy["created"]))
    lines: list[str] = []
    token, replaced = "", set[str]()
    for metadata in (copy["metadata_"] for copy in copies):
        if metadata["token"] in replaced:
            continue
        if metadata["token"] != token:
            replaced.add(token)
            token = metadata["token"]
        first = int(metadata["first"])
        if first <= len(lines):
            lines[first:] = _lines(metadata)
    return "".join(lines).encode()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _pieces(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the entries' lines as metadata: of each value the server keeps 500 characters and no more."""
    text = b"".join(line(entry) for entry in entries).decode()
    starts = range(0, len(text), _KEPT_CHARACTERS)
    return {f"lines-{n:05}": text[at : at + _KEPT_CHARACTERS] for n, at in enumerate(starts)}


def _lines(metadata: Mapping[str, str]) -> list[str]:
    """Return the lines that `_pieces` has cut, each with its end."""
    text = "".join(metadata[key] for key in sorted(metadata) if key.startswith("lines-"))
    # not splitlines(): a title may hold other characters that it takes for the end of a line
    return [f"{cut}\n" for cut in text.split("\n")[:-1]]


def _mirrored_copies(api: PrefectApi, deployment: str) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        wanted = {"artifacts": {"key": {"any_": [mirror_key(deployment)]}}, "sort": "ID_DESC"}
        page = api.request("POST", "artifacts/filter", {**wanted, "limit": _PAGE, "offset": offset}).json()
        yield from page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def _lock(descriptor: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError("another process holds the lock") from None
            time.sleep(0.02)
        else:
            return


def _started(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks since boot; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
