"""Who keeps a session of PostgreSQL from its locks: named while it waits, because afterwards nobody knows."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from rules.frozen import Frozen

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.025
_TELL_AFTER_S = 10.0
_QUERY_LETTERS = 80
# Counted are waits while readers may queue: for a table's lock, or for anything while one is held that
# readers wait for. Waits for rows alone stop nobody who reads.
_LOOK = """
SELECT DISTINCT
    waiting.wait_event = 'relation' OR EXISTS (
        SELECT FROM pg_locks AS held
        WHERE held.pid = waiting.pid AND held.granted AND held.mode = 'AccessExclusiveLock'
        AND held.locktype = 'relation'
    ),
    blocking.pid, other.application_name, other.backend_type, other.usename::text, other.state,
    extract(epoch FROM clock_timestamp() - other.xact_start)::float8, left(other.query, 1000)
FROM pg_stat_get_activity(%(pid)s) AS waiting
CROSS JOIN unnest(pg_blocking_pids(%(pid)s)) AS blocking (pid)
LEFT JOIN pg_stat_activity AS other ON other.pid = blocking.pid
WHERE waiting.wait_event_type = 'Lock'
"""
_HOLDERS = """
SELECT
    other.pid, other.application_name, other.backend_type, other.usename::text, other.state,
    extract(epoch FROM clock_timestamp() - other.xact_start)::float8, left(other.query, 1000)
FROM pg_locks AS held JOIN pg_stat_activity AS other ON other.pid = held.pid
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1 AND held.database = (
    SELECT oid FROM pg_database WHERE datname = current_database()
) AND (held.classid::bigint << 32) | held.objid::bigint = %s
"""


class Blocker(Frozen):
    """A session that holds what another one waits for."""

    pid: int
    application: str
    user: str
    state: str
    transaction_age_s: float | None
    query: str

    def describe(self) -> str:
        """Return it in words."""
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        age = self.transaction_age_s
        since = "" if age is None else f", in a transaction that is {age:.1f} s old"
        query = f": {self.query}" if self.query else ""
        return f"pid {self.pid} ({self.application} of {self.user}, {self.state}{since}{query})"


class LockWatch:
    """What is seen of one session's waits for locks, by another one.

    Attributes:
        blockers: those it last waited for.
        has_cancelled: its waits added up to more than allowed, and its statement was cancelled.
    """

    def __init__(self, observer: psycopg.Connection[Any], pid: int, *, longest_s: float, what: str) -> None:
        self.blockers: tuple[Blocker, ...] = ()
        self.has_cancelled = False
        self._observer, self._pid, self._longest_s, self._what = observer, pid, longest_s, what
        self._same_s, self._has_told = 0.0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lock-watch", daemon=True)

    def _watch(self) -> None:
        try:
            self._look_again_and_again()
        except psycopg.Error as error:
            log.warning("nobody sees who blocks %s from here on: %s", self._what, error)

    def _look_again_and_again(self) -> None:
        queued_s, before = 0.0, time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            rows = self._observer.execute(_LOOK, {"pid": self._pid}).fetchall()
            now = time.monotonic()
            self._note(tuple(_blocker(row[1:]) for row in rows), now - before)
            # lock_timeout counts each wait anew, but who waits behind this session waits for them all
            queued_s += now - before if any(row[0] for row in rows) else 0.0
            if queued_s > self._longest_s and not self.has_cancelled:
                self.has_cancelled = True
                self._observer.execute("SELECT pg_cancel_backend(%s)", (self._pid,))
            before = now

    def _note(self, blockers: tuple[Blocker, ...], passed_s: float) -> None:
        """Remember who blocks, and tell once of those who do for long."""
        same = blockers and {one.pid for one in blockers} == {one.pid for one in self.blockers}
        self._same_s = self._same_s + passed_s if same else 0.0
        self.blockers = blockers or self.blockers
        if self._same_s > _TELL_AFTER_S and not self._has_told:
            log.warning("%s has waited %g s for %s", self._what, _TELL_AFTER_S, in_words(blockers))
        self._has_told = self._same_s > _TELL_AFTER_S

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more; after this the observing connection is free again."""
        self._over.set()
        self._thread.join()


@contextmanager
def lock_watch(
    observer: psycopg.Connection[Any], pid: int, *, longest_s: float, what: str
) -> Iterator[LockWatch]:
    """Watch the session `pid` through `observer`, which nobody else uses meanwhile.

    A statement of it is cancelled once its waits that readers may queue behind add up to `longest_s`.
    """
    watch = LockWatch(observer, pid, longest_s=longest_s, what=what)
    watch.start()
    try:
        yield watch
    finally:
        watch.end()


def advisory_holders(observer: psycopg.Connection[Any], key: int) -> tuple[Blocker, ...]:
    """Return who holds the advisory lock `key` of this database."""
    return tuple(_blocker(row) for row in observer.execute(_HOLDERS, (key,)).fetchall())


def in_words(blockers: tuple[Blocker, ...]) -> str:
    """Return who blocks, in words."""
    return "; ".join(blocker.describe() for blocker in blockers) or "somebody who had left when looked for"


def _blocker(row: tuple[Any, ...]) -> Blocker:
    pid, application, backend, user, state, age_s, query = row
    return Blocker(
        pid=pid,
        application=application or backend or "unknown",
        user=user or "the server",
        state=state or "its state not ours to see",
        transaction_age_s=age_s,
        query=without_values(query or ""),
    )


def without_values(query: str, *, letters: int = _QUERY_LETTERS) -> str:
    """Return at most so many letters of a query, up to its first quoted value: that may be a secret."""
    words = re.split(r"'|\$(?!\d)", query, maxsplit=1)
    shown = " ".join(words[0].split())
    return shown[:letters] + ("…" if len(words) > 1 or len(shown) > letters else "")
