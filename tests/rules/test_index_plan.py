"""Plans of index changes: names, steps, their way back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.change import IndexChange
from rules.database import DatabaseState, IndexFacts
from rules.database_plan import database_applied
from rules.database_undo import database_undone
from rules.errors import InvalidRequestError
from rules.index_build import MemoryFacts, build_memory, done_ratio
from rules.index_names import is_kept, is_leftover, without_leftovers
from rules.index_plan import FoundIndex, Leaf, TableCatalog, plan_index
from rules.index_verdict import percentile, recall, refusals
from rules.vector_index import Hnsw, IndexGate, IndexMeasured, IndexParts, IvfFlat, Measurement

MIB = 1024**2
FACTS = MemoryFacts(maintenance_work_mem_bytes=64 * MIB, max_workers=2, available_bytes=16 * 1024 * MIB)
COSINE = "e vector_cosine_ops"


def definition(table, *, m=8, only=False):
    where = f"ONLY {table}" if only else table
    return f"CREATE INDEX ON {where} USING hnsw ({COSINE}) WITH (m='{m}', ef_construction='64')"


def found(index, table, *, m=8, parent=None, valid=True, only=False):
    return FoundIndex(
        index=index,
        table=table,
        definition=definition(table, m=m, only=only),
        serves=COSINE,
        is_valid=valid,
        parent=parent,
    )


def leaf(table, **other):
    return Leaf(**{"table": table, "written": table, "rows": 1000, "size_bytes": 8192, **other})


def catalog(months=0, *, old=True, **other):
    """A table with so many monthly partitions (0: none) and, if it is to be `old`, an index on all of it."""
    table = "public.memories"
    leaves = tuple(leaf(f"{table}_{month}") for month in range(months)) or (leaf(table),)
    indexes = []
    if old:
        indexes.append(found("public.idx", table, only=bool(months)))
        if months:
            indexes += [found(f"{one.table}_idx", one.table, parent="public.idx") for one in leaves]
    fields = {
        "table": table,
        "written": table,
        "is_partitioned": bool(months),
        "leaves": leaves,
        "column_type": "vector(64)",
        "column_written": "e",
        "indexes": tuple(indexes),
        "taken": ("public.idx",) if old else (),
        "is_superuser": True,
        "memory": FACTS,
    }
    return TableCatalog(**{**fields, **other})


def state(of):
    indexes = {
        one.index: IndexFacts(
            table=one.table, definition=one.definition, is_valid=one.is_valid, parent=one.parent
        )
        for one in of.indexes
    }
    return DatabaseState(schema_sha256=None, indexes=indexes)


def change(**other):
    return IndexChange(
        **{
            "database": "main",
            "table": "public.memories",
            "column": "e",
            "index": "idx",
            "how": Hnsw(),
            **other,
        }
    )


def planned(of, wanted=None, before=None, *, seed=""):
    return plan_index(wanted or change(), of, before or state(of), seed=seed)


def actions(plan):
    return [step.action.action for step in plan.steps]


@given(st.integers(0, 5), st.booleans(), st.integers(0, 12))
def test_any_prefix_of_the_steps_is_taken_back_to_the_state_before(months, old, done):
    of = catalog(months, old=old)
    plan = planned(of)
    now = before = state(of)
    for step in plan.steps[:done]:
        now = database_applied(now, step.action)
    for step in reversed(plan.steps[:done]):
        now = database_undone(now, step.undo) if step.undo else now
    assert now.differences(before) == ()


def test_the_steps_come_in_the_order_that_keeps_users_served():
    assert actions(planned(catalog(2))) == [
        "build_index",
        "build_index",
        "attach_indexes",
        "judge_index",
        "swap_index",
        "verify_index",
    ]
    assert actions(planned(catalog(0))) == ["build_index", "judge_index", "swap_index", "verify_index"]
    assert [step.number for step in planned(catalog(2)).steps] == list(range(6))
    assert [bool(step.undo) for step in planned(catalog(2)).steps] == [True, True, True, False, True, False]


def test_what_comes_out_is_the_wanted_index_under_the_stable_name_and_the_old_one_hidden():
    for months in (0, 3):
        of = catalog(months)
        plan = planned(of)
        now = state(of)
        for step in plan.steps:
            now = database_applied(now, step.action)
        assert "m='16'" in now.indexes["public.idx"].definition
        (finish,) = plan.finish
        assert is_kept(finish.index)
        assert finish.is_partitioned == bool(months)
        hidden = {name for name, facts in now.indexes.items() if not facts.is_valid}
        assert hidden == ({one.index for one in of.indexes[1:]} if months else {finish.index})


def test_names_fit_are_the_same_each_time_and_never_meet():
    long = "public." + "m" * 60
    leaves = tuple(leaf(f"{long}_{n}") for n in range(9))
    of = catalog(1, old=False, leaves=leaves)
    wanted = change(index="i" * 63, column="c" * 63)
    first, second = planned(of, wanted), planned(of, wanted)
    assert first == second
    names = [step.action.partition.index for step in first.steps if step.action.action == "build_index"]
    names.append(first.steps[9].action.index)
    assert len(set(names)) == 10
    assert all(len(name.split(".")[1].encode()) <= 63 for name in names)
    other = planned(of.model_copy(update={"taken": tuple(names)}), wanted)
    assert not {step.action.partition.index for step in other.steps[:9]} & set(names)


def test_an_index_that_is_as_wanted_needs_no_steps():
    for months in (0, 2):
        plan = planned(catalog(months), change(how=Hnsw(m=8)))
        assert (plan.steps, plan.finish) == ((), ())
        assert "hnsw.ef_search = 40" in plan.notes[0]


def test_one_that_is_not_valid_or_missing_on_a_partition_is_built_anew_and_not_compared_with():
    of = catalog(2)
    for indexes in (
        of.indexes[:-1],
        (*of.indexes[:-1], of.indexes[-1].model_copy(update={"is_valid": False})),
    ):
        plan = planned(of.model_copy(update={"indexes": indexes}), change(how=Hnsw(m=8)))
        assert plan.steps[3].action.old is None
        assert plan.steps[4].action.hidden == ("public.memories_0_idx",)
        assert plan.steps[4].undo.shown == ("public.memories_0_idx",)
        assert any("not compared" in note for note in plan.notes)


def test_over_two_thousand_dimensions_become_halfvec_and_say_so():
    plan = planned(catalog(old=False, column_type="vector(3000)"))
    assert "(((e)::halfvec(3000)) halfvec_cosine_ops)" in plan.steps[0].action.definition
    assert any("order by ((e)::halfvec(3000)) <=> $1::halfvec(3000)" in note for note in plan.notes)
    native = planned(catalog(old=False, column_type="halfvec(3000)"))
    assert "(e halfvec_cosine_ops)" in native.steps[0].action.definition


@pytest.mark.parametrize(
    ("of", "wanted", "words"),
    [
        (catalog(column_type="vector(4001)"), change(), "4000 at most"),
        (catalog(column_type="vector"), change(), "dimensions declared"),
        (catalog(column_type="sparsevec(64)"), change(), "only columns of vector"),
        (catalog(column_type="bit(64)"), change(), "only columns of vector"),
        (catalog(column_type=None), change(), "no column e"),
        (catalog(2, is_nested=True), change(), "partitioned themselves"),
        (catalog(2, foreign=("public.far",)), change(), "another server"),
        (catalog(leaves=(leaf("public.memories", size_bytes=0),)), change(), "no rows"),
        (catalog(is_superuser=False), change(), "only a superuser"),
        (catalog(), change(index="other"), "serves the same queries"),
        (catalog(old=False, taken=("public.idx",)), change(), "another relation"),
        (catalog(), change(distance="l2"), "under another name"),
        (catalog(), change(how=IvfFlat(), distance="l1"), "no IVFFlat"),
        (
            catalog(indexes=(found("public.idx", "public.memories", parent="public.all"),)),
            change(),
            "part of public.all",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would_work(of, wanted, words):
    with pytest.raises(InvalidRequestError, match=words) as refused:
        planned(of, wanted)
    assert "Nothing was touched" in str(refused.value) or "no column" in words


def test_few_rows_for_many_lists_are_noted():
    assert any("lists, which are made" in note for note in planned(catalog(), change(how=IvfFlat())).notes)


def test_leftovers_are_recognised_by_name_and_only_while_they_belong_to_nothing():
    name = planned(catalog(old=False)).steps[0].action.partition.index
    assert is_leftover(name, parent=None)
    assert not is_leftover(name, parent="public.idx")
    assert not is_leftover("public.memories_idx", parent=None)
    left = found(name, "public.memories", m=16)
    of = catalog(indexes=(*catalog().indexes, left))
    assert left.index not in without_leftovers(state(of)).indexes
    taken_over = planned(of, before=without_leftovers(state(of)))
    assert taken_over.steps[0].action.partition.index == name
    beside = planned(of)
    assert beside.steps[0].action.partition.index != name
    assert name in {finish.index for finish in beside.finish}


def test_parts_of_an_unfinished_whole_are_leftovers_and_taken_over_with_it():
    of = catalog(2, old=False)
    attached = planned(of).steps[2].action
    left = (
        found(attached.index, of.table, m=16, only=True, valid=False),
        *(found(one.index, one.table, m=16, parent=attached.index) for one in attached.partitions),
    )
    of = of.model_copy(update={"indexes": left, "taken": tuple(one.index for one in left)})
    assert without_leftovers(state(of)).indexes == {}
    assert planned(of, before=without_leftovers(state(of))).steps[2].action == attached
    # where they have to be there again after a way back, the whole is dropped at the end, with its parts
    (finish,) = planned(of).finish
    assert (finish.index, finish.is_partitioned) == (attached.index, True)


@pytest.mark.parametrize("months", [0, 2])
def test_what_another_change_keeps_is_no_part_of_the_state_but_its_own_is(months):
    of = catalog(months)
    first = planned(of, seed="first")
    now = state(of)
    for step in first.steps:
        now = database_applied(now, step.action)
    own = {first.finish[0].index}
    assert without_leftovers(now, own=own) == now
    others = set(now.indexes) - set(without_leftovers(now).indexes)
    assert others == {*own, *(one.index for one in of.indexes if one.parent)}
    assert "public.idx" in without_leftovers(now).indexes


def test_two_deployments_never_keep_an_index_under_one_name():
    first, later = planned(catalog(), seed="first"), planned(catalog(), seed="later")
    assert first.finish[0].index != later.finish[0].index
    assert first == planned(catalog(), seed="first")
    # what is built has the same name, so that the later one takes over what the first has left
    assert first.steps[0] == later.steps[0]


def parts(how=None, dimensions=128, **other):
    return IndexParts(column="e", dimensions=dimensions, distance="l2", how=how or Hnsw(), **other)


@pytest.mark.parametrize(
    ("rows", "dimensions", "m", "fits_at_kib"),
    [(5000, 64, 8, 4300), (5000, 64, 32, 8332), (5000, 128, 16, 6316), (2000, 512, 16, 6316)],
)
def test_the_estimate_is_above_what_was_measured_but_not_twice_that(rows, dimensions, m, fits_at_kib):
    needed = build_memory(rows, parts(Hnsw(m=m), dimensions), FACTS).needed_bytes
    assert fits_at_kib * 1024 * 0.95 < needed < 2 * fits_at_kib * 1024


def test_memory_is_a_share_of_the_hosts_and_workers_need_it_all_to_fit():
    small = build_memory(1000, parts(), FACTS)
    assert (small.maintenance_work_mem_bytes, small.workers, small.fits) == (96 * MIB, 2, True)
    huge = build_memory(50_000_000, parts(), FACTS)
    assert huge.maintenance_work_mem_bytes == 4 * 1024 * MIB
    assert (huge.workers, huge.fits) == (0, False)
    unknown = build_memory(1_000_000, parts(), FACTS.model_copy(update={"available_bytes": None}))
    assert (unknown.maintenance_work_mem_bytes, unknown.workers) == (64 * MIB, 0)
    half = build_memory(1_000_000, parts(as_halfvec=True), FACTS)
    assert half.needed_bytes < build_memory(1_000_000, parts(), FACTS).needed_bytes


def test_many_lists_need_memory_for_their_bounds():
    assert build_memory(10**6, parts(IvfFlat(lists=1000)), FACTS).needed_bytes > 200 * MIB


def test_progress_grows_through_the_phases():
    ratios = [
        done_ratio("initializing", blocks_done=0, blocks_total=0),
        done_ratio("building index: loading tuples", blocks_done=1, blocks_total=10),
        done_ratio("building index: loading tuples", blocks_done=10, blocks_total=10),
        done_ratio("index validation: scanning table", blocks_done=3, blocks_total=10),
        done_ratio("waiting for old snapshots", blocks_done=0, blocks_total=0),
    ]
    assert ratios == sorted(ratios)
    assert done_ratio("something new", blocks_done=0, blocks_total=0) is None


def test_recall_counts_ties_and_what_is_nearer_than_the_truth():
    assert recall([1.0, 2.0, 2.0], [1.0, 2.0, 2.0]) == 1
    assert recall([1.0, 2.0], [2.0, 2.0]) == 1
    assert recall([1.0, 2.0], [1.0, 3.0]) == 0.5
    assert recall([1.0, 2.0], []) == 0
    assert recall([-5.0, -3.0], [-5.0, -2.9]) == 0.5


def test_percentiles_are_values_that_were_seen():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95
    assert percentile([7.0], 0.95) == 7


def measured(new=None, old=None):
    fields = {"index": "i", "recall": 0.99, "p50_s": 0.001, "p95_s": 0.002, "queries": 50, "is_used": True}
    return IndexMeasured(
        exact_p50_s=0.1,
        new=Measurement(**{**fields, **(new or {})}),
        old=Measurement(**{**fields, **old}) if old is not None else None,
    )


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [
        ({"recall": 0.94}, None, "recall at 10 is 0.940, below 0.95"),
        ({"queries": 4}, None, "only 4 queries"),
        ({"is_used": False}, None, "planner did not take it"),
        ({"p95_s": 0.02}, {"p95_s": 0.01}, "2.0 times the old one's 10.00 ms"),
        ({"p95_s": 0.6}, None, "above 500.00 ms"),
        ({}, {"is_used": False}, "nothing to compare with"),
    ],
)
def test_what_falls_short_is_said_with_its_figures(new, old, words):
    (said,) = refusals(measured(new, old), IndexGate(max_p95_s=0.5))
    assert words in said


def test_a_good_index_passes_and_a_millisecond_more_is_no_failure():
    assert refusals(measured(), IndexGate()) == ()
    assert refusals(measured({"p95_s": 0.0015}, {"p95_s": 0.0006}), IndexGate()) == ()
    assert "new i: recall 0.990" in measured().in_words
