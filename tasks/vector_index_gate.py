"""Measure a vector index against exact search and the old one, and let it pass or not.

All of it happens in one transaction that is rolled back: what is shown and hidden in it, nobody else sees.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from rules.database import Database, QualifiedName
from rules.database_plan import JudgeIndex, VerifyIndex
from rules.errors import VerdictFailedError
from rules.frozen import Frozen, Seconds
from rules.index_verdict import percentile, recall, refusals
from rules.vector_index import IndexGate, IndexMeasured, IndexParts, Measurement
from tasks.index_visibility import hide, show
from tasks.postgres import Session, connection, quoted
from tasks.vector_catalog import at_home, attached
from tasks.vector_sample import query_vectors

log = logging.getLogger(__name__)
_ROUNDS = 3
#: Of rows in leaves that the planner rather reads one by one: as many may be, or this share of all.
_FEW_ROWS, _SMALL_SHARE = 10_000, 0.1
_EXACT = ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan", "jit")

_RIVALS = """
SELECT n.nspname || '.' || c.relname FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_am AS m ON m.oid = c.relam
WHERE m.amname IN ('hnsw', 'ivfflat') AND i.indisvalid AND c.relkind = 'i' AND i.indrelid IN (
    SELECT i.indrelid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY (%s)
)
"""
_KIND = """
SELECT t.typname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %s AND a.attname = %s AND NOT a.attisdropped
"""
_SIZE = """
SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY (%s)
"""
_ROWS = """
SELECT n.nspname || '.' || c.relname,
    CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE pg_relation_size(c.oid) / 50 END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY (%s)
"""


class _Asked(Frozen):
    """What all queries of a pass answered."""

    distances: tuple[tuple[float, ...], ...]
    took_s: tuple[Seconds, ...]


def judge_index(
    database: Database, action: JudgeIndex, *, deployment: str, heed: Callable[[], None] = lambda: None
) -> IndexMeasured:
    """Measure the new index, hidden so far, beside exact search and the old one; return it if it passes.

    The queries are vectors of the table itself, so that each finds its own row first: recall reads a little
    higher than for strangers, most of all for a small k.

    Args:
        database: which; a query may take as long as its `statement_timeout_s`.
        action: what is measured, and what it has to reach.
        deployment: for whom.
        heed: asked before each query; may raise to give up.

    Raises:
        VerdictFailedError: it does not pass, or could not be measured; the message has the figures.
        DatabaseError: a query took too long; or see `connection`.
    """
    heed()
    with _measuring(database, deployment) as session:
        gate = _Gate(session, action.table, action.parts, action.gate, heed=heed)
        exact = gate.exact()
        new_leaves = _leaves(session, action.new, action.new_leaves)
        old_leaves = _leaves(session, action.old, action.old_leaves) if action.old else ()
        new, old = [], []
        for _ in range(_ROUNDS):
            new.append(gate.alone(new_leaves, is_new=True))
            if action.old:
                old.append(gate.alone(old_leaves, is_new=False))
        measured = IndexMeasured(
            exact_p50_s=percentile(exact.took_s, 0.5) if exact.took_s else 0.0,
            new=gate.measurement(action.new, exact, new),
            old=gate.measurement(action.old, exact, old) if action.old else None,
            size_bytes=_size_bytes(session, new_leaves),
            old_size_bytes=_size_bytes(session, old_leaves) if action.old else None,
        )
    return _passed(measured, action.gate, what=action.new)


def verify_index(
    database: Database, action: VerifyIndex, *, deployment: str, heed: Callable[[], None] = lambda: None
) -> IndexMeasured:
    """Measure the index as users have it now: by the planner's own choice, with nothing hidden for it.

    `heed` and the limit of a query are those of `judge_index`.

    Raises:
        VerdictFailedError: the planner does not take it, or it does not pass any more.
        DatabaseError: a query took too long; or see `connection`.
    """
    heed()
    with _measuring(database, deployment) as session:
        gate = _Gate(session, action.table, action.parts, action.gate, heed=heed)
        exact = gate.exact()
        leaves = _leaves(session, action.index, action.leaves)
        asked = [gate.freely(leaves) for _ in range(_ROUNDS)]
        measured = IndexMeasured(
            exact_p50_s=percentile(exact.took_s, 0.5) if exact.took_s else 0.0,
            new=gate.measurement(action.index, exact, asked),
            size_bytes=_size_bytes(session, leaves),
        )
    return _passed(measured, action.gate, what=action.index)


def _passed(measured: IndexMeasured, gate: IndexGate, *, what: str) -> IndexMeasured:
    words = refusals(measured, gate)
    log.info("%s: %s; %s", what, measured.in_words, "; ".join(words) or "it passes")
    if words:
        raise VerdictFailedError(
            f"{what} does not pass: {'; '.join(words)}. Measured: {measured.in_words}. The index is taken "
            "back. Raise ef_construction, m or ef_search (probes, lists) for recall, lower them for speed."
        )
    return measured


@contextmanager
def _measuring(database: Database, deployment: str) -> Iterator[Session]:
    """One transaction that sees the same rows all along, and is rolled back."""
    limit_s = database.statement_timeout_s
    with connection(database, deployment=deployment, statement_timeout_s=limit_s) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        try:
            at_home(session)
            yield session
        finally:
            if not session.broken:
                session.rollback()


def _leaves(session: Session, index: QualifiedName, planned: Sequence[QualifiedName]) -> tuple[str, ...]:
    """Return an index's parts; those of partitions that came after the plan are among them."""
    now = [state.found.index for state in attached(session, index)]
    return tuple(sorted({*planned, *now}))


def _size_bytes(session: Session, indexes: Sequence[QualifiedName]) -> int:
    row = session.execute(_SIZE, (list(indexes),)).fetchone()
    return int(row[0]) if row else 0


class _Gate:
    """The queries of one gate, and what asks them in a session."""

    def __init__(
        self,
        session: Session,
        table: QualifiedName,
        parts: IndexParts,
        gate: IndexGate,
        *,
        heed: Callable[[], None],
    ) -> None:
        self.session, self.table, self.parts, self.gate, self.heed = session, table, parts, gate, heed
        self.vectors = query_vectors(session, table, parts, count=gate.queries)

    def exact(self) -> _Asked:
        """Ask without any index.

        Raises:
            VerdictFailedError: the planner took one nevertheless.
        """
        with self.session.transaction(force_rollback=True):
            self._set(dict.fromkeys(_EXACT, "off"))
            query = self._query(indexed=False)
            if indexes := [scan for scan in self._scans(query) if scan[1]]:
                raise VerdictFailedError(f"exact search is not to be had: the planner takes {indexes}")
            return self._ask(query)

    def alone(self, leaves: Sequence[QualifiedName], *, is_new: bool) -> tuple[_Asked, bool]:
        """Ask with these indexes and no others; return also whether each leaf is read through its own.

        Of a new one it also counts whether the planner would take it by its own choice.
        """
        with self.session.transaction(force_rollback=True):
            others = {row[0] for row in self.session.execute(_RIVALS, (list(leaves),)).fetchall()}
            hide(self.session, others - set(leaves), for_all=False)
            show(self.session, leaves, for_all=False)
            self._set(self.parts.query_settings)
            query = self._query(indexed=True)
            is_used = not is_new or self._is_taken(query, leaves)
            self._set({"enable_seqscan": "off"})  # also on leaves so small that reading them all is cheaper
            scans = self._scans(query)
            is_used = is_used and bool(scans) and all(index in leaves for _, index in scans)
            return self._ask(query), is_used

    def freely(self, leaves: Sequence[QualifiedName]) -> tuple[_Asked, bool]:
        """Ask as users do; return also whether the planner takes these indexes."""
        with self.session.transaction(force_rollback=True):
            self._set(self.parts.query_settings)
            query = self._query(indexed=True)
            return self._ask(query), self._is_taken(query, leaves)

    def measurement(self, index: str, exact: _Asked, passes: Sequence[tuple[_Asked, bool]]) -> Measurement:
        """Return what an index did: its recall, and each query's best time, which is least of chance."""
        best_s = [min(times) for times in zip(*(asked.took_s for asked, _ in passes), strict=True)]
        recalls = [
            recall(true, found)
            for true, found in zip(exact.distances, passes[0][0].distances, strict=True)
            if true
        ]
        return Measurement(
            index=index,
            recall=sum(recalls) / len(recalls) if recalls else 0.0,
            p50_s=percentile(best_s, 0.5) if best_s else 0.0,
            p95_s=percentile(best_s, 0.95) if best_s else 0.0,
            queries=len(recalls),
            is_used=all(is_used for _, is_used in passes),
        )

    def _query(self, *, indexed: bool) -> sql.Composed:
        column = sql.Identifier(self.parts.column)
        row = self.session.execute(_KIND, (self.table, self.parts.column)).fetchone()
        if row is None:
            raise VerdictFailedError(f"{self.table}.{self.parts.column} is gone: nothing can be measured")
        kind = sql.Identifier(row[0])
        key: sql.Composable = column
        if self.parts.as_halfvec and indexed:
            key = sql.SQL("({}::halfvec({}))").format(column, sql.Literal(self.parts.dimensions))
        return sql.SQL(
            "SELECT {column} {operator} %(vector)s::{kind} FROM {table} {where} "
            "ORDER BY {key} {operator} %(vector)s::{key_kind} LIMIT %(k)s"
        ).format(
            column=column,
            operator=sql.SQL(self.parts.operator),
            kind=kind,
            table=quoted(self.table),
            where=sql.SQL("") if indexed else sql.SQL("WHERE {} IS NOT NULL").format(column),
            key=key,
            key_kind=sql.Identifier("halfvec") if self.parts.as_halfvec and indexed else kind,
        )

    def _ask(self, query: sql.Composed) -> _Asked:
        distances, took_s = [], []
        for vector in self.vectors:
            self.heed()
            began = time.perf_counter()
            rows = self.session.execute(query, self._values(vector), prepare=False).fetchall()
            took_s.append(time.perf_counter() - began)
            distances.append(tuple(d for (d,) in rows if d is not None and not math.isnan(d)))
        return _Asked(distances=tuple(distances), took_s=tuple(took_s))

    def _values(self, vector: str) -> dict[str, Any]:
        return {"vector": vector, "k": self.gate.k}

    def _scans(self, query: sql.Composed) -> list[tuple[str, str | None]]:
        """Return which tables the planner reads, and through which index."""
        if not self.vectors:
            return []
        explain = sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) ") + query
        row = self.session.execute(explain, self._values(self.vectors[0]), prepare=False).fetchone()
        return list(_scans_of(row[0][0]["Plan"])) if row else []

    def _is_taken(self, query: sql.Composed, leaves: Sequence[QualifiedName]) -> bool:
        """Return whether the planner takes these indexes by its own choice, but for some small leaves."""
        scans = self._scans(query)
        other = [index for _, index in scans if index and index not in leaves]
        plain = [table for table, index in scans if index is None]
        tables = [table for table, _ in scans]
        rows: dict[str, int] = dict(self.session.execute(_ROWS, (tables,)).fetchall())
        skipped = sum(rows.get(table, 0) for table in plain)
        is_taken = not other and skipped <= max(_FEW_ROWS, _SMALL_SHARE * sum(rows.values()))
        log.info("the planner takes %s%s", scans, "" if is_taken else ": not what is to serve")
        return is_taken

    def _set(self, settings: Mapping[str, object]) -> None:
        for name, value in settings.items():
            self.session.execute("SELECT set_config(%s, %s, true)", (name, str(value)))


def _scans_of(node: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    if "Relation Name" in node:
        schema, index = node["Schema"], node.get("Index Name")
        yield f"{schema}.{node['Relation Name']}", f"{schema}.{index}" if index else None
    for inner in node.get("Plans", ()):
        yield from _scans_of(inner)
