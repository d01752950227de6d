"""Users of the lab's database, as a program of their own: see `lab.database_load`.

Each user has a connection of its own, and connects again when the server has gone down. What it was told, and
how long that took, goes into the book: a JSON line for each event.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import psycopg

from lab.database_content import COLUMN, TABLE

_RECONNECT_S = 0.05
_LOOK_S = 0.2
_CONNECT_TIMEOUT_S = 5
_KNOWN_VECTORS = 200
_JITTER = 0.1

Outcome = Literal["done", "failed", "refused", "unknown"]


@dataclass(frozen=True)
class Event:
    """What happened to one user at one time.

    Attributes:
        t: when it began, seconds since 1970.
        user: such as `reader-0`.
        what: `by_id` or `nearest` of readers, `commit` of writers.
        outcome: `refused`: nobody let the user in, or the server went down under it; `unknown`: it went down
            while it was asked to commit; `failed`: any error of a server that is there, or a wrong answer.
        took_s: seconds until the answer, or until it was clear that there is none.
        token: of a commit.
        words: what was wrong.
    """

    t: float
    user: str
    what: str
    outcome: Outcome
    took_s: float
    token: str = ""
    words: str = ""


class _WrongAnswerError(Exception):
    """The server answered, but not what it should have."""


@dataclass(frozen=True)
class _Known:
    """What is known to be in the database: ids from 1 to `ids`, vectors, and a month that has a partition."""

    ids: int
    vectors: tuple[str, ...]
    month: datetime

    @classmethod
    def read(cls, conninfo: str) -> _Known:
        with psycopg.connect(conninfo) as connection:
            ids = connection.execute("SELECT max(id) FROM public.memories WHERE kind <> 'load'").fetchone()
            vectors = connection.execute(
                f"SELECT {COLUMN}::text FROM {TABLE} ORDER BY id LIMIT {_KNOWN_VECTORS}"  # noqa: S608 - ours
            ).fetchall()
            month = connection.execute(
                f"SELECT date_trunc('month', max(occurred_at), 'UTC') FROM {TABLE}"  # noqa: S608
            ).fetchone()
        if not (ids and ids[0] and vectors and month):
            sys.exit("the database is empty")
        return cls(ids[0], tuple(row[0] for row in vectors), month[0])


class _User:
    """One user with a connection of its own; `act` is what it does again and again."""

    autocommit = True

    def __init__(self, name: str, conninfo: str, *, pause_s: float, tell: Callable[[Event], None]) -> None:
        self.name, self.conninfo, self.pause_s, self.tell = name, conninfo, pause_s, tell
        self.connection: psycopg.Connection | None = None
        self.server: datetime | None = None  # which one: when it was started
        self.what, self.token, self.is_committing = "", "", False

    def act(self, connection: psycopg.Connection) -> None:
        """Ask or write once."""
        raise NotImplementedError

    def run(self, stopping: threading.Event) -> None:
        """Act until told to stop; each time is told, however it ends."""
        while not stopping.is_set():
            at, began = time.time(), time.perf_counter()
            outcome, words = self._try()
            took_s = round(time.perf_counter() - began, 6)
            self.tell(Event(at, self.name, self.what, outcome, took_s, token=self.token, words=words))
            stopping.wait(_RECONNECT_S if outcome == "refused" else self.pause_s)
        if self.connection:
            self.connection.close()

    def _try(self) -> tuple[Outcome, str]:
        self.is_committing = False
        if not self.connection and (words := self._connect()):
            return "refused", words
        assert self.connection  # noqa: S101 - it is connected now
        try:
            self.act(self.connection)
        except (psycopg.Error, _WrongAnswerError) as error:
            return self._failure(self.connection, error)
        return "done", ""

    def _failure(self, connection: psycopg.Connection, error: Exception) -> tuple[Outcome, str]:
        words = f"{type(error).__name__}: {error}".strip()
        if not connection.broken:
            connection.rollback()  # of a writer; nothing is open otherwise
            return "failed", words
        connection.close()
        self.connection = None
        # one that goes down lets nobody in, or is another afterwards; else it has ended this session alone
        before = self.server
        went_down = bool(self._connect()) or self.server != before
        if self.is_committing:
            return "unknown", words
        return ("refused" if went_down else "failed"), words

    def _connect(self) -> str:
        """Connect, or say why not."""
        try:
            # nothing prepared: users behind a pooler have that neither
            self.connection = psycopg.connect(
                self.conninfo, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, prepare_threshold=None
            )
            found = self.connection.execute("SELECT pg_postmaster_start_time()").fetchone()
            self.server = found[0] if found else None
            self.connection.autocommit = self.autocommit
        except psycopg.OperationalError as error:
            self.connection = None
            return str(error).strip()
        return ""


class _Reader(_User):
    """Reads a memory by its id, and the ten episodes nearest to one, in turn."""

    def __init__(self, *arguments: Any, known: _Known, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.known = known
        self.turns = itertools.cycle((self._by_id, self._nearest))
        self.what = "by_id"

    def act(self, connection: psycopg.Connection) -> None:
        """Ask one question."""
        turn = next(self.turns)
        self.what = turn.__name__.removeprefix("_")
        turn(connection)

    def _by_id(self, connection: psycopg.Connection) -> None:
        wanted = random.randint(1, self.known.ids)
        found = connection.execute("SELECT content FROM public.memories WHERE id = %s", (wanted,)).fetchone()
        if not (found and found[0].startswith(f"memory {wanted} ")):
            raise _WrongAnswerError(f"memory {wanted} is {found}")

    def _nearest(self, connection: psycopg.Connection) -> None:
        query = f"SELECT id FROM {TABLE} ORDER BY {COLUMN} <=> %s::vector LIMIT 10"  # noqa: S608 - ours
        if not connection.execute(query, (random.choice(self.known.vectors),)).fetchall():
            raise _WrongAnswerError("no episode is near")


class _Writer(_User):
    """Adds a memory and an episode, under one token, in one transaction."""

    autocommit = False

    def __init__(self, *arguments: Any, known: _Known, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.known, self.run_id, self.numbers = known, uuid.uuid4().hex[:12], itertools.count()
        self.what = "commit"

    def act(self, connection: psycopg.Connection) -> None:
        """Commit one transaction."""
        self.token = f"{self.run_id}-{next(self.numbers)}"
        connection.execute("INSERT INTO public.memories (kind, content) VALUES ('load', %s)", (self.token,))
        place = json.loads(random.choice(self.known.vectors))
        vector = json.dumps([round(x + random.gauss(0, _JITTER), 4) for x in place])
        connection.execute(
            f"INSERT INTO {TABLE} (occurred_at, content, {COLUMN}) "  # noqa: S608 - ours
            "VALUES (%s + random() * interval '27 days', %s, %s::vector)",
            (self.known.month, self.token, vector),
        )
        self.is_committing = True
        connection.commit()


class _Book:
    """A file that all users write in, a line for each event."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def tell(self, event: Event) -> None:
        """Write an event down."""
        with self._lock:
            self._file.write(json.dumps(asdict(event)) + "\n")


def _use(given: argparse.Namespace, file: TextIO) -> None:
    """Let all users act, until SIGTERM, the longest duration, or the end of who started us."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    known, book = _Known.read(given.database), _Book(file)
    users: list[_User] = [
        _Reader(f"reader-{n}", given.database, pause_s=given.read_pause, tell=book.tell, known=known)
        for n in range(given.readers)
    ]
    users += [
        _Writer(f"writer-{n}", given.database, pause_s=given.write_pause, tell=book.tell, known=known)
        for n in range(given.writers)
    ]
    threads = [threading.Thread(target=user.run, args=(stopping,)) for user in users]
    for thread in threads:
        thread.start()
    ends_at = time.monotonic() + given.max_duration
    while not stopping.wait(_LOOK_S):
        if time.monotonic() > ends_at or os.getppid() != given.parent:
            stopping.set()
    for thread in threads:
        thread.join()


def main() -> None:
    """Read and write as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m lab.database_users", description="Read and write.")
    parser.add_argument("--database", required=True, help="how libpq reaches it, without a password")
    parser.add_argument("--readers", type=int, required=True)
    parser.add_argument("--writers", type=int, required=True)
    parser.add_argument("--read-pause", type=float, required=True, help="seconds")
    parser.add_argument("--write-pause", type=float, required=True, help="seconds")
    parser.add_argument("--max-duration", type=float, required=True, help="seconds")
    parser.add_argument("--parent", type=int, required=True, help="process that started it")
    parser.add_argument("--book", type=Path, required=True, help="JSON lines are appended")
    given = parser.parse_args()
    with given.book.open("a", buffering=1) as file:
        _use(given, file)


if __name__ == "__main__":
    main()
