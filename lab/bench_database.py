"""What changing a database costs its users: figures for `make bench`, within a minute and a half.

1. How long each try for a lock holds readers up, while somebody else keeps the lock from us.
2. An HNSW index replaced under load: built beside and swapped in, as the product does it, and dropped first.
3. What is found, and how fast, by `hnsw.ef_search`.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from lab.database import LabDatabase
from lab.database_content import COLUMN, INDEX, TABLE
from lab.database_load import DatabaseLoad
from rules.change import IndexChange
from rules.database_plan import AttachIndexes, BuildIndex, JudgeIndex, SwapIndex, VerifyIndex
from rules.vector_index import Hnsw, IndexGate

_ROWS, _VECTORS, _DIMENSIONS = 200_000, 20_000, 128
_HELD_S = 3.0
_QUIET_S = 3.0
_LISTS = (10, 20, 40, 80, 160)
_ASKED = 40
_K = 10
_HNSW = Hnsw(m=16, ef_construction=64)
#: It is measured what the gate costs; on a machine that does all at once, it is not the one to judge speed.
_GATE = IndexGate(queries=20, max_latency_ratio=100.0)
_DEPLOYMENT = "bench"


@dataclass(frozen=True)
class Figure:
    """One row of the benchmark's table: what was measured, the figure in words, and its ratio to a base."""

    what: str
    figure: str
    ratio: str = ""


@dataclass(frozen=True)
class _Latency:
    p50_s: float
    longest_s: float

    @property
    def words(self) -> str:
        return f"reads p50 {self.p50_s * 1000:.1f} ms, longest {self.longest_s * 1000:.0f} ms"


def database_figures(cache: Path) -> list[Figure]:
    """Return what all of it costs, on a database of 200,000 rows and 20,000 vectors of 128 dimensions.

    Needs no Prefect server.

    Args:
        cache: where the filled database is kept from one time to the next.
    """
    with tempfile.TemporaryDirectory(prefix="lab-bench-database-") as name:
        lab = LabDatabase(
            Path(name) / "database", rows=_ROWS, vectors=_VECTORS, dimensions=_DIMENSIONS, cache=cache
        )
        with lab:
            return [
                *lock_figures(lab, Path(name) / "lock"),
                *recall_figures(lab),
                *index_figures(lab, Path(name)),
            ]


# --- locks -----------------------------------------------------------------------------------------


def lock_figures(lab: LabDatabase, directory: Path) -> list[Figure]:
    """Return how long tries for an exclusive lock waited, how long it was held, and how readers stalled.

    For three seconds another session keeps the lock from us, as a report that runs long would.
    """
    from tasks.postgres import in_short_tries  # noqa: PLC0415 - it brings Prefect, which takes seconds

    waited_s: list[float] = []

    def work(session: psycopg.Connection[tuple[Any, ...]]) -> float:
        began = time.perf_counter()
        try:
            session.execute("ALTER TABLE public.memories ADD COLUMN benched integer")
        finally:
            waited_s.append(time.perf_counter() - began)
        return time.perf_counter()

    with (
        DatabaseLoad(lab.database, directory) as load,
        psycopg.connect(lab.url) as other,
    ):
        other.execute("SELECT count(*) FROM public.memories WHERE id < 10")
        threading.Timer(_HELD_S, other.rollback).start()
        locked = in_short_tries(lab.database, work, deployment=_DEPLOYMENT, what="the benchmark's column")
        held_s = time.perf_counter() - locked
        figures = load.figures()
    lab.query("ALTER TABLE public.memories DROP COLUMN benched")
    *refused, last = waited_s
    longest_ms = max(refused, default=last) * 1000
    tries = f"{len(waited_s)} tries in {_HELD_S:g} s, the longest waited {longest_ms:.0f} ms"
    return [
        Figure("a lock that another session holds", tries),
        Figure("the lock once it is ours, until its commit", f"{held_s * 1000:.1f} ms"),
        Figure(
            "readers meanwhile",
            f"longest stall {figures.longest_stall_s * 1000:.0f} ms, {figures.failed} failed",
        ),
    ]


# --- building --------------------------------------------------------------------------------------


def index_figures(lab: LabDatabase, directory: Path) -> list[Figure]:
    """Return how long replacing the index takes, and what readers see meanwhile, for both ways."""
    took_quiet_s, quiet = _under_load(lab, directory / "quiet", lambda: time.sleep(_QUIET_S))
    beside_s, beside = _under_load(lab, directory / "beside", lambda: replace_beside(lab))
    first_s, first = _under_load(lab, directory / "first", lambda: replace_dropping_first(lab))
    return [
        Figure(f"index left alone for {took_quiet_s:.0f} s", quiet.words, "1"),
        Figure("built beside and swapped in", f"{beside_s:.1f} s; {beside.words}", _ratio(beside, quiet)),
        Figure("dropped first, then built", f"{first_s:.1f} s; {first.words}", _ratio(first, quiet)),
    ]


def replace_beside(lab: LabDatabase) -> None:
    """Replace the index as a deployment does, gate included, without its journal."""
    from rules.index_plan import plan_index  # noqa: PLC0415
    from tasks.database import observe_database  # noqa: PLC0415 - it brings Prefect, which takes seconds
    from tasks.vector_catalog import read_catalog  # noqa: PLC0415
    from tasks.vector_index_removal import drop_old_index  # noqa: PLC0415

    database = lab.database
    change = IndexChange(
        database=database.name, table=TABLE, column=COLUMN, index=INDEX, how=_HNSW, gate=_GATE
    )
    before = observe_database(database, deployment=_DEPLOYMENT, indexes_of=TABLE)
    plan = plan_index(change, read_catalog(database, change, deployment=_DEPLOYMENT), before)
    for step in plan.steps:
        _perform(lab, step.action)
    for finish in plan.finish:
        drop_old_index(database, finish, deployment=_DEPLOYMENT)


def _perform(lab: LabDatabase, action: object) -> None:
    from tasks import vector_index, vector_index_build, vector_index_gate  # noqa: PLC0415 - see above

    match action:
        case BuildIndex():
            vector_index_build.build_index(lab.database, action, deployment=_DEPLOYMENT)
        case AttachIndexes():
            vector_index.attach_indexes(lab.database, action, deployment=_DEPLOYMENT)
        case JudgeIndex():
            vector_index_gate.judge_index(lab.database, action, deployment=_DEPLOYMENT)
        case SwapIndex():
            vector_index.swap_index(lab.database, action, deployment=_DEPLOYMENT)
        case VerifyIndex():
            vector_index_gate.verify_index(lab.database, action, deployment=_DEPLOYMENT)
        case _:
            raise TypeError(f"no step of an index: {action}")


def replace_dropping_first(lab: LabDatabase) -> None:
    """Replace the index as one would by hand: until the last partition is built, searches read everything."""
    index = sql.Identifier("public", INDEX)
    key = sql.SQL("USING hnsw ({} vector_cosine_ops) WITH (m = {}, ef_construction = {})").format(
        sql.Identifier(COLUMN), _HNSW.m, _HNSW.ef_construction
    )
    with psycopg.connect(lab.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP INDEX {}").format(index))
        for leaf in lab.content.partitions:
            create = sql.SQL("CREATE INDEX CONCURRENTLY {} ON public.{} {}")
            connection.execute(create.format(sql.Identifier(f"{leaf}_benched"), sql.Identifier(leaf), key))
        parent = sql.SQL("CREATE INDEX {} ON {} {}")  # takes the leaves' own, which are like it
        connection.execute(parent.format(sql.Identifier(INDEX), sql.Identifier(*TABLE.split(".")), key))


def _under_load(lab: LabDatabase, directory: Path, work: Callable[[], object]) -> tuple[float, _Latency]:
    """Return how long `work` took, and what searches of users took from its begin to its end."""
    with DatabaseLoad(lab.database, directory) as load:
        began_at, began = time.time(), time.perf_counter()
        work()
        took_s, ended_at = time.perf_counter() - began, time.time()
        events = load.events()
    seen = [e for e in events if e.what == "nearest" and began_at <= e.t <= ended_at]
    if failed := [e for e in seen if e.outcome != "done"]:
        raise RuntimeError(f"{len(failed)} of {len(seen)} reads failed, the first: {failed[0].words}")
    latencies = [event.took_s for event in seen]
    return took_s, _Latency(statistics.median(latencies), max(latencies))


def _ratio(one: _Latency, base: _Latency) -> str:
    return f"{one.p50_s / base.p50_s:.1f}"


# --- recall ----------------------------------------------------------------------------------------


def recall_figures(lab: LabDatabase) -> list[Figure]:
    """Return recall of the ten nearest against exact search, and latency, for some lengths of the list."""
    with psycopg.connect(lab.url, autocommit=True) as connection:
        rows = connection.execute(
            f"SELECT {COLUMN}::text FROM {TABLE} WHERE id % {_VECTORS // _ASKED} = 0"  # noqa: S608 - ours
        ).fetchall()
        vectors = [row[0] for row in rows]
        with _settings(connection, {"enable_indexscan": "off", "enable_bitmapscan": "off"}):
            exact, exact_s = _ask(connection, vectors)
        figures = [Figure("exact search", f"{exact_s * 1000:.1f} ms", "1")]
        for length in _LISTS:
            with _settings(connection, {"hnsw.ef_search": str(length), "enable_seqscan": "off"}):
                found, took_s = _ask(connection, vectors)
            recall = statistics.mean(len(a & b) / _K for a, b in zip(found, exact, strict=True))
            words = f"recall@{_K} {recall:.3f}, {took_s * 1000:.2f} ms"
            figures.append(Figure(f"hnsw.ef_search {length}", words, f"{took_s / exact_s:.2f}"))
    return figures


def _ask(connection: psycopg.Connection, vectors: Sequence[str]) -> tuple[list[set[int]], float]:
    """Return what is near each vector, and the median seconds of a search."""
    query = f"SELECT id FROM {TABLE} ORDER BY {COLUMN} <=> %s::vector LIMIT {_K}"  # noqa: S608 - ours
    found, taken = [], []
    for vector in vectors:
        began = time.perf_counter()
        # never prepared: a plan made without the index would go on being used with it
        rows = connection.execute(query, (vector,), prepare=False).fetchall()
        taken.append(time.perf_counter() - began)
        found.append({row[0] for row in rows})
    return found, statistics.median(taken)


@contextmanager
def _settings(connection: psycopg.Connection, settings: dict[str, str]) -> Iterator[None]:
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    yield
    connection.execute("RESET ALL")
