"""A change of a vector index, step by step and back again, on a real PostgreSQL under load."""

from __future__ import annotations

import logging
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from lab.postgres import Postgres, programs
from rules.errors import (
    FencedError,
    InvalidRequestError,
    RevokedError,
    StepFailedError,
    UndoFailedError,
    VerdictFailedError,
    WorldMovedError,
)
from rules.vector_index import Hnsw, IndexGate, IvfFlat
from tasks import vector_index, vector_index_gate
from tasks.postgres import DatabaseError
from tests.tasks import vectors
from tests.tasks.vectors import (
    at,
    change,
    copy_of,
    observed,
    plan,
    promised,
    query,
    scanned,
    step,
    take_back,
    walk,
)

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Postgres(tmp_path_factory.mktemp("vectors"), settings=vectors.SETTINGS) as running:
        vectors.fill(running, "monthly")
        vectors.fill(running, "plain", partitioned=False)
        vectors.fill(running, "bare", index=None)
        yield running


@pytest.fixture(params=["monthly", "plain", "bare"])
def database(request, server):
    return copy_of(server, request.param)


@pytest.fixture
def monthly(server):
    return copy_of(server, "monthly")


def new_leaves(planned):
    return sorted(
        s.action.partition.index.split(".")[1] for s in planned.steps if s.action.action == "build_index"
    )


def test_a_good_index_comes_into_use_as_promised_and_the_old_one_is_dropped_at_the_end(database):
    before = observed(database)
    planned = plan(database, change())
    judged, verified = walk(database, planned)
    assert judged.new.recall > 0.95
    assert judged.new.is_used
    assert verified.new.is_used
    assert verified.new.index == "public.memories_e"
    after = observed(database)
    assert after.differences(promised(before, planned)) == ()
    leaves = sorted(
        f for f, facts in after.indexes.items() if facts.is_valid and "m='16'" in facts.definition
    )
    used = [leaf for leaf in leaves if "ONLY" not in after.indexes[leaf].definition]
    assert [f"public.{name}" for name in scanned(database)] == used
    for finish in planned.finish:
        vector_index.drop_old_index(database, finish, deployment="d1")
        vector_index.drop_old_index(database, finish, deployment="d1")
    assert sorted(observed(database).indexes) == leaves
    assert plan(database, change()).steps == ()


def test_each_prefix_of_the_steps_is_taken_back_to_the_very_state_before(database):
    before, scans = observed(database), scanned(database)
    planned = plan(database, change())
    for done in range(len(planned.steps) + 1):
        walk(database, planned, up_to=done)
        take_back(database, planned)
        take_back(database, planned)
        assert observed(database).differences(before) == (), f"after {done} steps"
        assert scanned(database) == scans


def test_each_step_can_be_repeated(database):
    before = observed(database)
    planned = plan(database, change())
    for one in planned.steps:
        vectors.do(database, one.action)
        if one.action.action != "judge_index":
            vectors.do(database, one.action)
    assert observed(database).differences(promised(before, planned)) == ()


def test_nobody_is_served_by_a_new_index_before_it_is_judged(monthly):
    old = scanned(monthly)
    # so thin an index is the cheapest of all to the planner
    planned = plan(monthly, change(how=Hnsw(m=2, ef_construction=4, ef_search=1)))
    for one in planned.steps[: at(planned, "judge_index")]:
        vectors.do(monthly, one.action)
        assert scanned(monthly) == old
    with pytest.raises(VerdictFailedError, match="its recall at 10 is 0"):
        vectors.do(monthly, step(planned, "judge_index").action)
    assert scanned(monthly) == old
    take_back(monthly, planned)


def test_a_prepared_query_of_another_session_changes_its_plan_with_the_swap_and_back(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, "swap_index"))
    with psycopg.connect(
        host="127.0.0.1",
        port=monthly.address.port,
        user="postgres",
        dbname=monthly.address.database,
        autocommit=True,
    ) as user:
        user.execute("SET plan_cache_mode = force_generic_plan")
        user.execute("PREPARE nearest (vector) AS " + vectors.NEAREST.format("$1"))

        def plan_now():
            call = f"EXPLAIN (FORMAT JSON) EXECUTE nearest ('{vectors.one_vector(monthly)}')"
            return sorted(vectors._indexes_in(user.execute(call).fetchall()[0][0][0]["Plan"]))

        old = plan_now()
        vectors.do(monthly, step(planned, "swap_index").action)
        assert plan_now() == new_leaves(planned)
        vectors.undo(monthly, step(planned, "swap_index").undo)
        assert plan_now() == old


def test_rows_written_while_an_index_is_hidden_are_found_once_it_is_shown_again(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned)
    far = [99.0] * (vectors.DIMENSIONS - 1) + [-99.0]
    query(
        monthly,
        "INSERT INTO memories SELECT 10000 + g, '2026-02-03', %s FROM generate_series(1, 5) g",
        (str(far),),
    )
    take_back(monthly, planned)
    assert scanned(monthly) == ["memories_1_e_idx", "memories_2_e_idx"]
    found = query(monthly, vectors.NEAREST.format("%s"), (str(far),))
    assert {row[0] for row in found} >= set(range(10001, 10006))


def test_partitions_made_while_the_old_index_is_hidden_have_both_and_either_way_stays_open(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned)
    query(
        monthly,
        "CREATE TABLE memories_3 PARTITION OF memories FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
    )
    query(monthly, "INSERT INTO memories SELECT id, '2026-03-01', e FROM memories_1")
    hidden = [name for name, facts in observed(monthly).indexes.items() if not facts.is_valid]
    assert len(hidden) == 2  # making a partition shows none of them
    take_back(monthly, planned)
    state = observed(monthly)
    assert all(facts.is_valid and "m='8'" in facts.definition for facts in state.indexes.values())
    assert len(state.indexes) == 4
    assert len(scanned(monthly)) == 3


def test_a_partition_that_comes_in_the_middle_stops_the_change(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, "attach_indexes"))
    query(
        monthly,
        "CREATE TABLE memories_3 PARTITION OF memories FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
    )
    with pytest.raises(WorldMovedError, match=r"came: public.memories_3; went: none.*Deploy again"):
        vectors.do(monthly, step(planned, "attach_indexes").action)
    take_back(monthly, planned)
    walk(monthly, plan(monthly, change()))


def test_users_are_served_through_swap_way_back_and_drop(monthly, caplog, record_property):
    planned = plan(monthly, change())
    with vectors.Load(monthly) as load:
        walk(monthly, planned)
        take_back(monthly, planned)
        again = plan(monthly, change())
        walk(monthly, again)
        for finish in again.finish:
            vector_index.drop_old_index(monthly, finish, deployment="d1")
    assert load.errors == []
    assert load.writes > 50
    stall_s = max(load.reads_s)
    record_property("longest_read_stall_s", stall_s)
    log.warning("%s reads, the longest %.1f ms", len(load.reads_s), 1000 * stall_s)
    assert stall_s < 2


def test_other_sessions_plan_as_ever_while_an_index_is_judged(monthly):
    planned = plan(monthly, change(gate=IndexGate(queries=200, min_recall=0.9, max_latency_ratio=50)))
    walk(monthly, planned, up_to=at(planned, "judge_index"))
    old, seen = scanned(monthly), []
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(vectors.do, monthly, step(planned, "judge_index").action)
        while not judged.done():
            seen.append(scanned(monthly))
    assert judged.result().new.queries > 100
    assert len(seen) > 3
    assert all(one == old for one in seen)


def test_a_hidden_index_is_in_nobodys_way(monthly, server, tmp_path):
    planned = plan(monthly, change())
    walk(monthly, planned)
    reach = ("--host=127.0.0.1", f"--port={server.port}", "--username=postgres")
    name = monthly.address.database
    dump = [programs() / "pg_dump", *reach, "--schema-only", f"--file={tmp_path / 'dump'}", name]
    subprocess.run(dump, check=True, capture_output=True)
    assert "memories_1_e_idx" not in (tmp_path / "dump").read_text()
    check = [programs() / "pg_amcheck", *reach, "--install-missing", "--heapallindexed", name]
    subprocess.run(check, check=True, capture_output=True)
    query(monthly, "VACUUM ANALYZE memories")
    query(monthly, "REINDEX TABLE CONCURRENTLY memories_2")
    assert observed(monthly).indexes["public.memories_2_e_idx"].is_valid is False
    query(monthly, "DELETE FROM memories WHERE id < 100")
    query(monthly, "VACUUM memories")
    take_back(monthly, planned)
    assert len(query(monthly, vectors.NEAREST.format("%s"), (vectors.one_vector(monthly, 500),))) == 10


def test_what_writes_a_table_anew_shows_its_hidden_index_again(monthly):
    """A trap that cannot be closed: whoever relies on hiding has to know it."""
    walk(monthly, plan(monthly, change()))
    query(monthly, "VACUUM FULL memories_1")
    query(monthly, "REINDEX INDEX memories_2_e_idx")
    assert all(observed(monthly).indexes[f"public.memories_{n}_e_idx"].is_valid for n in (1, 2))


def test_an_index_with_a_mark_from_its_creation_is_used_at_once_when_it_is_shown_again(server):
    database = copy_of(server, "plain")
    # as after CREATE INDEX on a table with broken HOT chains: usable for transactions younger than this
    query(database, "UPDATE pg_index SET indcheckxmin = true WHERE indexrelid = 'memories_e'::regclass")
    old = scanned(database)
    planned = plan(database, change())
    walk(database, planned, up_to=at(planned, "swap_index"))
    with psycopg.connect(
        host="127.0.0.1", port=database.address.port, user="postgres", dbname=database.address.database
    ) as user:
        user.execute("INSERT INTO memories SELECT id, at, e FROM memories LIMIT 1")
        vectors.do(database, step(planned, "swap_index").action)
        vectors.undo(database, step(planned, "swap_index").undo)
        assert scanned(database) == old
        user.rollback()
    take_back(database, planned)


def test_the_swap_keeps_its_locks_from_nobody_who_reads_or_writes(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, "swap_index"))
    with psycopg.connect(
        host="127.0.0.1", port=monthly.address.port, user="postgres", dbname=monthly.address.database
    ) as user:  # in a transaction that has read and written, and stays open
        user.execute("INSERT INTO memories SELECT id, at, e FROM memories_1 LIMIT 1")
        user.execute(vectors.NEAREST.format("%s"), (vectors.one_vector(monthly),)).fetchall()
        vectors.do(monthly, step(planned, "swap_index").action)
        vectors.undo(monthly, step(planned, "swap_index").undo)
        user.rollback()


def test_a_reader_that_does_not_leave_keeps_a_partitioned_index_from_being_attached_and_is_named(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, "attach_indexes"))
    impatient = monthly.model_copy(update={"lock": monthly.lock.model_copy(update={"patience_s": 0.5})})
    with psycopg.connect(
        host="127.0.0.1",
        port=monthly.address.port,
        user="postgres",
        dbname=monthly.address.database,
        application_name="reader",
    ) as user:
        user.execute(vectors.NEAREST.format("%s"), (vectors.one_vector(monthly),)).fetchall()
        with pytest.raises(StepFailedError, match="reader"):
            vectors.do(impatient, step(planned, "attach_indexes").action)
    vectors.do(monthly, step(planned, "attach_indexes").action)  # goes on from what is there
    take_back(monthly, planned)


def test_what_has_the_name_of_an_index_of_ours_on_another_table_is_left_alone(monthly):
    planned = plan(monthly, change())
    undo = planned.steps[0].undo
    query(monthly, "CREATE TABLE other (e vector(3))")
    query(monthly, f"CREATE INDEX {undo.index.split('.')[1]} ON other USING hnsw (e vector_l2_ops)")
    with pytest.raises(UndoFailedError, match=r"is on public.other.*left alone"):
        vectors.undo(monthly, undo)


def test_one_that_was_fenced_off_attaches_nothing(monthly):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, "attach_indexes"))
    before = observed(monthly)
    action = step(planned, "attach_indexes").action

    def heed():
        raise FencedError("recovered by another process")

    with pytest.raises(FencedError):
        vector_index.attach_indexes(monthly, action, deployment="d1", heed=heed)
    assert observed(monthly) == before
    assert action.index not in before.indexes


@pytest.mark.parametrize("name", ["judge_index", "verify_index"])
def test_who_measures_can_be_stopped_between_queries_and_leaves_nothing(monthly, name):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, name))
    before, scans = observed(monthly), scanned(monthly)
    # by then it has asked without indexes and, to judge, has hidden those of others for itself
    remaining = iter(range(30))

    def heed():
        if next(remaining, None) is None:
            raise RevokedError("cancelled")

    measure = getattr(vector_index_gate, name)
    with pytest.raises(RevokedError, match="cancelled"):
        measure(monthly, step(planned, name).action, deployment="d1", heed=heed)
    assert (observed(monthly), scanned(monthly)) == (before, scans)
    assert measure(monthly, step(planned, name).action, deployment="d1").new.is_used


@pytest.mark.parametrize("name", ["judge_index", "verify_index"])
def test_a_query_of_a_gate_takes_no_longer_than_a_statement_may(monthly, name):
    planned = plan(monthly, change())
    walk(monthly, planned, up_to=at(planned, name))
    limited = monthly.model_copy(update={"statement_timeout_s": 0.3})
    with psycopg.connect(
        host="127.0.0.1", port=monthly.address.port, user="postgres", dbname=monthly.address.database
    ) as user:
        user.execute("LOCK TABLE memories")
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="due to statement timeout"):
            getattr(vector_index_gate, name)(limited, step(planned, name).action, deployment="d1")
    assert time.monotonic() - began < 5


def test_an_index_that_was_not_valid_before_is_not_shown_on_the_way_back(server):
    database = copy_of(server, "plain")
    query(database, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memories_e'::regclass")
    before = observed(database)
    planned = plan(database, change())
    judged, _ = walk(database, planned)
    assert judged.old is None
    take_back(database, planned)
    assert observed(database).differences(before) == ()


def test_an_ivfflat_index_takes_the_place_of_a_graph(server):
    database = copy_of(server, "plain")
    wanted = change(how=IvfFlat(lists=20, probes=10))
    judged, _ = walk(database, plan(database, wanted))
    assert judged.new.recall > 0.9
    assert judged.old.is_used
    assert plan(database, wanted).steps == ()


def test_the_default_operator_class_is_no_difference(server):
    database = copy_of(server, "bare")
    wanted = change(how=IvfFlat(lists=10, probes=10), distance="l2")
    before = observed(database)
    planned = plan(database, wanted)
    walk(database, planned)
    assert observed(database).differences(promised(before, planned)) == ()
    assert plan(database, wanted).steps == ()


@pytest.mark.parametrize(("kind", "dimensions"), [("vector", 2_500), ("halfvec", 40)])
def test_half_precision_is_indexed_and_judged_by_full_distances(server, kind, dimensions):
    name = f"{kind}_{dimensions}"
    vectors.fill(server, name, rows=200, dimensions=dimensions, kind=kind, partitioned=False, index=None)
    database = copy_of(server, name)
    before = observed(database)
    planned = plan(database, change(how=Hnsw(m=8, ef_construction=32)))
    judged, _ = walk(database, planned)
    assert judged.new.recall > 0.95
    after = observed(database)
    assert after.differences(promised(before, planned)) == ()
    assert "halfvec_cosine_ops" in after.indexes["public.memories_e"].definition
    assert any("::halfvec(2500)" in note for note in planned.notes) == (kind == "vector")


def test_what_cannot_be_done_is_refused_with_what_would_work(server):
    database = copy_of(server, "plain")
    for wanted, words in (
        (change(table="public.nothing"), "no table public.nothing"),
        (change(column="missing"), "no column missing"),
        (change(column="id"), "is a bigint"),
        (change(distance="l2"), "vector_cosine_ops, and this change is on e vector_l2_ops"),
        (change(index="other"), "memories_e serves the same queries"),
        (change(index="memories"), "another relation"),
        (change(index="other", distance="l1", how=IvfFlat()), "no IVFFlat index"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            plan(database, wanted)
    query(database, "DELETE FROM memories")
    query(database, "VACUUM memories")
    with pytest.raises(InvalidRequestError, match="no rows"):
        plan(database, change())
    query(database, "DROP EXTENSION vector CASCADE")
    with pytest.raises(InvalidRequestError, match="no extension vector"):
        plan(database, change())


def test_an_ordinary_user_is_refused_before_anything_is_touched(monthly):
    query(monthly, "DROP ROLE IF EXISTS ordinary")
    query(monthly, "CREATE ROLE ordinary LOGIN")
    address = monthly.address.model_copy(update={"user": "ordinary"})
    with pytest.raises(InvalidRequestError, match="only a superuser can hide"):
        plan(monthly.model_copy(update={"address": address}), change(), before=observed(monthly))


def test_leftovers_are_taken_over_or_left_for_the_end(monthly):
    from rules.index_plan import without_leftovers  # noqa: PLC0415

    first = plan(monthly, change())
    walk(monthly, first, up_to=1)
    built = first.steps[0].action.partition.index
    assert plan(monthly, change(), before=without_leftovers(observed(monthly))).steps == first.steps
    before = observed(monthly)
    second = plan(monthly, change())
    assert built not in {f"public.{name}" for name in new_leaves(second)}
    assert built in {finish.index for finish in second.finish}
    walk(monthly, second)
    take_back(monthly, second)
    assert observed(monthly).differences(before) == ()


def test_a_second_change_keeps_its_old_index_beside_that_of_the_first(monthly):
    first = plan(monthly, change())
    walk(monthly, first)
    middle = observed(monthly)
    second = plan(monthly, change(how=Hnsw(m=8, ef_construction=32, ef_search=80)))
    walk(monthly, second)
    assert len({finish.index for finish in (*first.finish, *second.finish)}) == 2
    take_back(monthly, second)
    assert observed(monthly).differences(middle) == ()


def test_the_gate_fails_slow_indexes_with_figures(server):
    # enough rows that reading them all is slower by more than the grace of one call
    vectors.fill(server, "many", rows=5_000, dimensions=128, partitioned=False)
    database = copy_of(server, "many")
    gate = IndexGate(queries=20, min_recall=0.5, max_latency_ratio=1.2)
    slow = plan(database, change(how=IvfFlat(lists=1, probes=1), gate=gate))
    walk(database, slow, up_to=1)
    with pytest.raises(VerdictFailedError, match=r"times the old one's .* ms, and 1.2 times is allowed"):
        vectors.do(database, slow.steps[1].action)
    take_back(database, slow)
