"""Load on the lab's database: readers and writers in a process of their own, each act of theirs in a book.

Each reader asks, waits for the answer, pauses, and asks again, on a connection that it keeps. Each writer
inserts a memory and an episode in one transaction, under a token that is never given twice: ids are, after
the database was taken back.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from lab import processes
from lab.database_users import Event
from lab.part import Part
from rules.database import Database, DatabaseAddress

_READY_TIMEOUT_S = 30.0
_MOST = 0.99


@dataclass(frozen=True)
class LoadFigures:
    """What users saw so far.

    Attributes:
        reads: answered as they should be.
        failed: reads and commits that failed though the server was there.
        refused: tries while it was not, of readers and writers.
        longest_stall_s: the longest that a read took, of those that were answered or failed.
        longest_interruption_s: the longest that a user was refused, until the next answer.
        p50_s: half of the reads took no longer.
        p99_s: 99 of a hundred took no longer.
        commits: that the server has confirmed.
        unknown: commits that it may have done, but did not live to confirm.
    """

    reads: int
    failed: int
    refused: int
    longest_stall_s: float
    longest_interruption_s: float
    p50_s: float
    p99_s: float
    commits: int
    unknown: int


class DatabaseLoad(Part):
    """Readers and writers of a `LabDatabase`'s tables, as long as the `with` block lasts.

    They end with the process that started them, and after `max_duration_s`.

    Args:
        database: whom they ask; its declared value or just its address.
        directory: their book and log.
        readers: each with a connection of its own.
        writers: likewise.
        read_pause_s: of each reader, between an answer and its next question.
        write_pause_s: of each writer, between two transactions.
        max_duration_s: they end by themselves after this.
    """

    def __init__(
        self,
        database: Database | DatabaseAddress,
        directory: Path,
        *,
        readers: int = 2,
        writers: int = 1,
        read_pause_s: float = 0.005,
        write_pause_s: float = 0.02,
        max_duration_s: float = 600.0,
    ) -> None:
        self.address = database.address if isinstance(database, Database) else database
        self.directory, self.readers, self.writers = directory.absolute(), readers, writers
        self.pauses_s, self.max_duration_s = (read_pause_s, write_pause_s), max_duration_s
        self.book = self.directory / "book.jsonl"
        self.process: processes.Process | None = None

    def start(self) -> None:
        """Start the users and wait until each of them has been served.

        Raises:
            LabError: they are not; carries what their log says.
        """
        arguments = {
            "--database": connection_string(self.address),
            "--readers": self.readers,
            "--writers": self.writers,
            "--read-pause": self.pauses_s[0],
            "--write-pause": self.pauses_s[1],
            "--max-duration": self.max_duration_s,
            "--parent": os.getpid(),
            "--book": self.book,
        }
        self.process = processes.start(
            "database load",
            (
                sys.executable,
                "-m",
                "lab.database_users",
                *(str(w) for pair in arguments.items() for w in pair),
            ),
            log=self.directory / "load.log",
            env=processes.clean_environment(self.directory, {}),
        )
        wanted = {"commit"} if self.writers else set()
        wanted |= {"by_id", "nearest"} if self.readers else set()
        processes.wait_until(
            lambda: wanted <= {event.what for event in self.events() if event.outcome == "done"},
            timeout_s=_READY_TIMEOUT_S,
            what="the first answers",
            process=self.process,
        )

    def stop(self) -> None:
        """Ask nothing more, and wait for the answers that are due."""
        if self.process:
            self.process.stop(timeout_s=_READY_TIMEOUT_S)
            self.process = None

    def events(self) -> tuple[Event, ...]:
        """Return all that has happened so far, in the order in which it ended."""
        try:
            text = self.book.read_text()
        except FileNotFoundError:
            return ()
        return tuple(Event(**json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines())

    def committed(self) -> tuple[Event, ...]:
        """Return the commits that the server has confirmed so far, the first one first."""
        return tuple(e for e in self.events() if e.what == "commit" and e.outcome == "done")

    def lost(self) -> tuple[Event, ...]:
        """Return the confirmed commits of which the database knows nothing now."""
        committed = self.committed()  # before the look: what is committed meanwhile is not missed
        with psycopg.connect(connection_string(self.address)) as connection:
            rows = connection.execute("SELECT content FROM public.memories WHERE kind = 'load'").fetchall()
        kept = {row[0] for row in rows}
        return tuple(event for event in committed if event.token not in kept)

    def figures(self) -> LoadFigures:
        """Add up what users saw so far.

        Raises:
            LabError: no read has been answered yet.
        """
        events = self.events()
        reads = [e for e in events if e.what != "commit"]
        if not (latencies := sorted(e.took_s for e in reads if e.outcome == "done")):
            raise processes.LabError("no read has been answered yet")
        return LoadFigures(
            reads=len(latencies),
            failed=sum(e.outcome == "failed" for e in events),
            refused=sum(e.outcome == "refused" for e in events),
            longest_stall_s=max(e.took_s for e in reads if e.outcome != "refused"),
            longest_interruption_s=max(_interruptions_s(events), default=0.0),
            p50_s=latencies[len(latencies) // 2],
            p99_s=latencies[int(_MOST * len(latencies))],
            commits=sum(e.what == "commit" and e.outcome == "done" for e in events),
            unknown=sum(e.outcome == "unknown" for e in events),
        )


def connection_string(address: DatabaseAddress) -> str:
    """Return how libpq reaches a database: no secret is in it."""
    known = {"passfile": address.passfile} if address.passfile else {}
    return make_conninfo(
        host=address.host, port=address.port, user=address.user, dbname=address.database, **known
    )


def _interruptions_s(events: tuple[Event, ...]) -> Iterator[float]:
    """Yield for each user and each time how long it was refused, until the next answer, or until now."""
    since: dict[str, float] = {}
    for event in events:
        if event.outcome in ("refused", "unknown"):
            since.setdefault(event.user, event.t)
        elif event.outcome == "done" and event.user in since:
            yield event.t + event.took_s - since.pop(event.user)
    yield from (time.time() - began for began in since.values())
