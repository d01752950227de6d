"""A real database with vectors, and a change of their index walked step by step, as a deployment does."""

from __future__ import annotations

import itertools
import random
import threading
import time

import psycopg
from psycopg import sql

from rules.change import IndexChange
from rules.database import Database, DatabaseAddress, DatabaseState, LockPolicy
from rules.database_plan import (
    AttachIndexes,
    BuildIndex,
    JudgeIndex,
    SwapIndex,
    VerifyDatabase,
    VerifyIndex,
    database_applied,
)
from rules.database_undo import RemoveIndex, RestoreIndexNames, database_undone
from rules.index_plan import plan_index
from rules.vector_index import Hnsw, IndexGate
from tasks import vector_index, vector_index_build, vector_index_gate
from tasks.database import _indexes, _same_each_time
from tasks.postgres import connection

DEPLOYMENT = "d1"
DIMENSIONS = 32
MONTHS = 2
ROWS = 800
#: Reading row by row is made dear to the planner, so that tables this small use their index.
SETTINGS = {"seq_page_cost": "40", "random_page_cost": "1"}
OLD = "CREATE INDEX memories_e ON {} USING hnsw (e vector_cosine_ops) WITH (m = 8, ef_construction = 32)"
_numbers = itertools.count()


def fill(server, name, *, rows=ROWS, dimensions=DIMENSIONS, partitioned=True, kind="vector", index=OLD):
    """Make a database with the table `memories`, of vectors around some centres, by month or not."""
    server.create_database(name)
    chance = random.Random(7)
    centres = [[chance.gauss(0, 1) for _ in range(dimensions)] for _ in range(30)]
    with psycopg.connect(server.url(name), autocommit=True) as session:
        session.execute("CREATE EXTENSION vector")
        by = " PARTITION BY RANGE (at)" if partitioned else ""
        session.execute(f"CREATE TABLE memories (id bigint, at date NOT NULL, e {kind}({dimensions})){by}")
        for month in range(1, MONTHS + 1) if partitioned else ():
            session.execute(
                f"CREATE TABLE memories_{month} PARTITION OF memories "
                f"FOR VALUES FROM ('2026-0{month}-01') TO ('2026-0{month + 1}-01')"
            )
        with session.cursor().copy("COPY memories FROM STDIN") as copy:
            for number in range(rows):
                centre = chance.choice(centres)
                vector = [round(x + 0.5 * chance.gauss(0, 1), 4) for x in centre]
                copy.write_row((number, f"2026-0{number % MONTHS + 1}-15", str(vector)))
        if index:
            session.execute(index.format("memories"))
        session.execute("VACUUM ANALYZE memories")


def copy_of(server, template):
    """Return a fresh copy of a filled database, as deployments reach it."""
    name = f"{template}_{next(_numbers)}"
    server.create_database(name, template=template)
    return Database(
        name="main",
        address=DatabaseAddress(host="127.0.0.1", port=server.port, database=name),
        lock=LockPolicy(pause_s=0.05, patience_s=10),
    )


def query(database, statement, values=None):
    with psycopg.connect(
        host="127.0.0.1",
        port=database.address.port,
        user="postgres",
        dbname=database.address.database,
        autocommit=True,
    ) as session:
        answer = session.execute(statement, values, prepare=False)
        return answer.fetchall() if answer.description else []


def change(**other):
    """A change to a good index, unless told otherwise."""
    fields = {
        "database": "main",
        "table": "public.memories",
        "column": "e",
        "index": "memories_e",
        "how": Hnsw(m=16, ef_construction=64, ef_search=80),
        "gate": IndexGate(queries=20, min_recall=0.9, max_latency_ratio=5),
    }
    return IndexChange(**{**fields, **other})


def observed(database):
    """The state of the table's indexes, as deployments observe it."""
    with (
        connection(database, deployment="look", autocommit=True, read_only=True) as session,
        _same_each_time(session),
    ):
        return DatabaseState(schema_sha256=None, indexes=_indexes(session, "public.memories"))


def plan(database, wanted, before=None):
    catalog = vector_index.read_catalog(database, wanted, deployment=DEPLOYMENT)
    return plan_index(wanted, catalog, before or observed(database))


def do(database, action, **other):
    """Do one step; return what it measured, if it did."""
    match action:
        case BuildIndex():
            return vector_index_build.build_index(
                database, action, deployment=DEPLOYMENT, poll_s=0.05, **other
            )
        case AttachIndexes():
            return vector_index.attach_indexes(database, action, deployment=DEPLOYMENT)
        case JudgeIndex():
            return vector_index_gate.judge_index(database, action, deployment=DEPLOYMENT)
        case SwapIndex():
            return vector_index.swap_index(database, action, deployment=DEPLOYMENT)
        case VerifyIndex():
            return vector_index_gate.verify_index(database, action, deployment=DEPLOYMENT)
        case VerifyDatabase():
            return None
    raise AssertionError(action)


def at(planned, action):
    """The number of the first step that does `action`."""
    return next(step.number for step in planned.steps if step.action.action == action)


def step(planned, action):
    return planned.steps[at(planned, action)]


def walk(database, planned, *, up_to=None):
    """Do the steps of a plan; return what the gates measured."""
    return [measured for one in planned.steps[:up_to] if (measured := do(database, one.action))]


def undo(database, back):
    match back:
        case RemoveIndex():
            vector_index.remove_index(database, back, deployment=DEPLOYMENT)
        case RestoreIndexNames():
            vector_index.restore_index_names(database, back, deployment=DEPLOYMENT)
        case _:
            raise AssertionError(back)


def take_back(database, planned):
    """Undo all steps of a plan, newest first, done or not."""
    for one in reversed(planned.steps):
        if one.undo:
            undo(database, one.undo)


def promised(before, planned):
    state = before
    for one in planned.steps:
        state = database_applied(state, one.action)
    return state


def undone(state, planned):
    for one in reversed(planned.steps):
        if one.undo:
            state = database_undone(state, one.undo)
    return state


NEAREST = "SELECT id FROM memories ORDER BY e <=> {} LIMIT 10"


def one_vector(database, number=5):
    return query(database, "SELECT e::text FROM memories WHERE id = %s", (number,))[0][0]


def scanned(database, session=None):
    """The indexes that another session's planner takes for the nearest rows."""
    explain = sql.SQL("EXPLAIN (FORMAT JSON) " + NEAREST).format(one_vector(database))
    plan = (session.execute(explain).fetchall() if session else query(database, explain))[0][0][0]["Plan"]
    return sorted(_indexes_in(plan))


def _indexes_in(node):
    if "Index Name" in node:
        yield node["Index Name"]
    for inner in node.get("Plans", ()):
        yield from _indexes_in(inner)


class Load(threading.Thread):
    """Reads and writes as users do, until told to stop: what failed, and how long each read took."""

    def __init__(self, database):
        super().__init__(daemon=True)
        self.database, self.vector = database, one_vector(database)
        self.over = threading.Event()
        self.errors, self.reads_s, self.writes = [], [], 0

    def run(self):
        read = sql.SQL(NEAREST).format(self.vector)
        write = "INSERT INTO memories SELECT id, at, e FROM memories_1 WHERE id = %s LIMIT 1"
        with psycopg.connect(
            host="127.0.0.1",
            port=self.database.address.port,
            user="postgres",
            dbname=self.database.address.database,
            autocommit=True,
        ) as session:
            while not self.over.wait(0.002):
                began = time.perf_counter()
                try:
                    if len(session.execute(read).fetchall()) != 10:
                        self.errors.append("not ten rows")
                    self.reads_s.append(time.perf_counter() - began)
                    session.execute(write, (2 * self.writes % ROWS,))
                    self.writes += 1
                except psycopg.Error as error:
                    self.errors.append(str(error))

    def __enter__(self):
        self.start()
        time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
