"""A database of its own for a test, and sessions beside ours."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from lab.ports import LOCALHOST
from lab.postgres import Postgres
from rules.database import Database, DatabaseAddress, LockPolicy
from tasks.postgres import application_name

#: Tries follow each other fast, and end soon.
QUICK = LockPolicy(first_ms=20, longest_ms=200, growth=2, pause_s=0.1, patience_s=20)


@contextmanager
def fresh_database(server: Postgres, *, lock: LockPolicy = QUICK) -> Iterator[Database]:
    """Yield a new database on `server`; it is dropped at the end, whoever is still connected."""
    name = f"t_{secrets.token_hex(6)}"
    server.create_database(name)
    try:
        yield Database(
            name="main",
            address=DatabaseAddress(host=LOCALHOST, port=server.port, database=name),
            lock=lock,
            statement_timeout_s=60,
        )
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def session(database: Database, *, autocommit: bool = True, name: str = "a-user") -> psycopg.Connection:
    """Connect as a user would."""
    address = database.address
    return psycopg.connect(
        host=address.host,
        port=address.port,
        user=address.user,
        dbname=address.database,
        autocommit=autocommit,
        application_name=name,
    )


def execute(database: Database, query: str) -> list[tuple[Any, ...]]:
    """Run `query` as a user would; return its rows."""
    with session(database) as connection:
        answer = connection.execute(query)
        return answer.fetchall() if answer.description else []


@contextmanager
def idle_in_transaction(database: Database, query: str) -> Iterator[psycopg.Connection]:
    """Yield a session that has run `query` and left its transaction open; it may be closed before the end."""
    connection = session(database, autocommit=False, name="forgotten-psql")
    try:
        connection.execute(query)
        yield connection
    finally:
        connection.close()


@dataclass
class Reads:
    """What a reader saw: how long each of its reads took, in seconds."""

    took_s: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def longest_s(self) -> float:
        return max(self.took_s)


@contextmanager
def reader(database: Database, query: str) -> Iterator[Reads]:
    """Read all the time, beside what happens in the block."""
    reads, over = Reads(), threading.Event()

    def read() -> None:
        try:
            with session(database, name="reader") as connection:
                while not over.wait(0.002):
                    began = time.monotonic()
                    connection.execute(query).fetchall()
                    reads.took_s.append(time.monotonic() - began)
        except psycopg.Error as error:
            reads.errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield reads
    finally:
        over.set()
        thread.join()


def impatient(database: Database, patience_s: float = 0.5) -> Database:
    """Return the database, whose changes give up soon."""
    lock = database.lock.model_copy(update={"patience_s": patience_s})
    return database.model_copy(update={"lock": lock})


def columns(database: Database) -> list[str]:
    """Return the columns of its table t."""
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return [name for (name,) in execute(database, query)]


def pids_of(database: Database, deployment: str) -> list[int]:
    """Return the sessions that a deployment has on the server."""
    seen = execute(database, "SELECT pid, application_name FROM pg_stat_activity")
    return [pid for pid, name in seen if name == application_name(deployment)]


def wait_until(condition: Callable[[], object], *, timeout_s: float = 20.0) -> float:
    """Wait for it; return how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s
        time.sleep(0.02)
    return time.monotonic() - began
