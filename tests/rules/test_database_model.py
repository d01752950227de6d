"""A database's model: any part of any plan, taken back newest first, is the state before."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from rules.database import DatabaseState, IndexFacts, TableDigest
from rules.database_plan import (
    ApplyMigration,
    AttachIndexes,
    BuildIndex,
    DatabaseAction,
    SwapIndex,
    TakeSnapshot,
    VerifyDatabase,
    database_applied,
)
from rules.database_undo import (
    DatabaseUndo,
    RemoveIndex,
    RestoreIndexNames,
    RestoreSnapshot,
    RevertMigration,
    database_undone,
)
from rules.migration import Migration, VersionTable
from rules.undo import AnyUndoStep
from rules.vector_index import Hnsw, IndexParts, IvfFlat, Partition, Rename

UNDO = TypeAdapter[DatabaseUndo](AnyUndoStep)
ACTION = TypeAdapter[DatabaseAction](Annotated[DatabaseAction, Field(discriminator="action")])
TABLES = (
    VersionTable(table="public.alembic_version", column="version_num"),
    VersionTable(table="sovereign.schema_version", column="revision"),
)
STABLE = "public.memories_e"

Step = tuple[DatabaseAction, DatabaseUndo | None]
sha256 = st.sampled_from([f"{digit}" * 64 for digit in "abcdef"])
parts = st.builds(
    IndexParts,
    column=st.just("e"),
    dimensions=st.sampled_from([3, 1536]),
    as_halfvec=st.booleans(),
    distance=st.sampled_from(["l2", "cosine"]),
    how=st.sampled_from([Hnsw(), Hnsw(m=8, ef_construction=200), IvfFlat(lists=10)]),
)
digests = st.builds(
    TableDigest,
    rows=st.integers(0, 3),
    checksum=st.sampled_from(["0", "17", "-4"]),
    columns=st.just(("id",)),
    watermark=st.sampled_from([None, "3"]),
)


# --- plans, drawn by chance ------------------------------------------------------------------------


def leaves(count: int) -> tuple[str, ...]:
    """Return the tables an index is built on; a table without partitions is its own leaf."""
    return tuple(f"public.memories_{number}" for number in range(count)) or ("public.memories",)


@st.composite
def indexes(draw, partitions: int) -> dict[str, IndexFacts]:
    """The index to be replaced, valid here and there or not there at all, and others beside it."""
    found = {
        "public.memories_pkey": IndexFacts(
            table="public.memories", definition="CREATE UNIQUE INDEX …", is_valid=True
        )
    }
    if not draw(st.booleans()):
        return found
    valid = [draw(st.booleans()) for _ in leaves(partitions)]
    if partitions:
        for table, is_valid in zip(leaves(partitions), valid, strict=True):
            found[f"{table}_old"] = IndexFacts(
                table=table, definition=f"old on {table}", is_valid=is_valid, parent=STABLE
            )
    found[STABLE] = IndexFacts(table="public.memories", definition="old", is_valid=all(valid))
    return found


@st.composite
def index_change(draw, state: DatabaseState, *, partitions: int, number: int) -> list[Step]:
    """Build on each leaf, attach, swap: as an index change does."""
    made, new = draw(parts), f"public.new_{number}"
    built = [
        Partition(table=table, index=f"{table}_new_{number}" if partitions else new)
        for table in leaves(partitions)
    ]
    steps: list[Step] = [
        (
            BuildIndex(partition=one, parts=made, definition=f"new {number} on {one.table}"),
            RemoveIndex(index=one.index, table=one.table),
        )
        for one in built
    ]
    if partitions:
        attach = AttachIndexes(
            table="public.memories",
            index=new,
            partitions=tuple(built),
            parts=made,
            definition=f"new {number}",
        )
        steps.append((attach, RemoveIndex(index=new, table="public.memories", is_partitioned=True)))
    return [*steps, swap(state, new, number=number)]


def swap(state: DatabaseState, new: str, *, number: int) -> Step:
    stable, short, kept = STABLE.split(".")[1], new.split(".")[1], f"kept_{number}"
    renames = [Rename(schema_name="public", old=short, new=stable)]
    back = [Rename(schema_name="public", old=stable, new=short)]
    hidden: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    if STABLE in state.indexes:
        renames.insert(0, Rename(schema_name="public", old=stable, new=kept))
        back.append(Rename(schema_name="public", old=kept, new=stable))
        # only what was valid may be shown again: a half-built index would answer wrongly
        old = {name: f for name, f in state.indexes.items() if STABLE in (name, f.parent) and f.is_valid}
        hidden = tuple(f"public.{kept}" if name == STABLE else name for name in old)
        shown = tuple(old)
    return (
        SwapIndex(renames=tuple(renames), hidden=hidden),
        RestoreIndexNames(renames=tuple(back), shown=shown),
    )


@st.composite
def migration(draw, state: DatabaseState, *, number: int) -> list[Step]:
    """A migration with a way down, or with a snapshot before it."""
    table = draw(st.sampled_from(TABLES))
    held = state.revisions.get(table.table, ())
    made = Migration(
        revision=f"r{number}",
        title="a change",
        up=("ALTER TABLE notes ADD COLUMN more text",),
        down=draw(st.sampled_from([None, ("ALTER TABLE notes DROP COLUMN more",)])),
        record=(),
        unrecord=(),
    )
    after = draw(st.sampled_from([(made.revision,), tuple(sorted({*held, made.revision}))]))
    apply = ApplyMigration(
        migration=made, version_table=table, revisions=after, schema_sha256=draw(st.none() | sha256)
    )
    back = {
        "migration": made,
        "version_table": table,
        "revisions": held,
        "schema_sha256": state.schema_sha256,
    }
    if made.down:
        return [(apply, RevertMigration(**back))]
    dataset, snapshot = "tank/database", f"tank/database@sovereign-{number}"
    return [
        (TakeSnapshot(dataset=dataset, snapshot=snapshot), None),
        (apply, RestoreSnapshot(**back, dataset=dataset, snapshot=snapshot, max_loss_s=300)),
    ]


@st.composite
def plans(draw) -> tuple[DatabaseState, list[Step]]:
    """A state and a few changes of it, one after the other."""
    partitions = draw(st.integers(0, 3))
    before = DatabaseState(
        revisions=draw(
            st.dictionaries(st.sampled_from([t.table for t in TABLES]), st.sampled_from([(), ("r",)]))
        ),
        schema_sha256=draw(st.none() | sha256),
        tables=draw(st.dictionaries(st.sampled_from(["public.notes", "public.fixed"]), digests)),
        indexes=draw(indexes(partitions)),
    )
    steps: list[Step] = []
    now = before
    for number in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            change = draw(index_change(now, partitions=partitions, number=number))
        else:
            change = draw(migration(now, number=number))
        steps += [*change, (VerifyDatabase(), None)]
        now = after(now, change)
    return before, steps


def after(state: DatabaseState, steps: list[Step]) -> DatabaseState:
    for action, _ in steps:
        state = database_applied(state, action)
    return state


def taken_back(state: DatabaseState, steps: list[Step], *, times: int = 1) -> DatabaseState:
    for _, undo in reversed(steps):
        for _ in range(times if undo else 0):
            state = database_undone(state, undo)
    return state


# --- the way back ----------------------------------------------------------------------------------


@given(plans(), st.data())
def test_any_part_of_a_plan_taken_back_newest_first_is_the_state_before(plan, data):
    before, steps = plan
    done = steps[: data.draw(st.integers(0, len(steps)))]
    back = taken_back(after(before, done), done)
    assert back.differences(before) == ()
    assert before.differences(back) == ()
    assert back.indexes == before.indexes


@given(plans(), st.data())
def test_taking_back_twice_and_what_never_happened_is_the_same(plan, data):
    before, steps = plan
    intended = steps[: data.draw(st.integers(1, len(steps)))]
    for reached in (after(before, intended[:-1]), after(before, intended)):
        assert taken_back(reached, intended, times=2).differences(before) == ()
        again = taken_back(taken_back(reached, intended), intended)
        assert again.differences(before) == ()
        assert again.indexes == before.indexes


@given(plans())
def test_each_step_survives_json_and_means_the_same(plan):
    now, steps = plan
    for action, undo in steps:
        assert ACTION.validate_json(ACTION.dump_json(action)) == action
        now = database_applied(now, action)
        assert DatabaseState.model_validate_json(now.model_dump_json()) == now
        if undo:
            read = UNDO.validate_json(UNDO.dump_json(undo))
            assert read == undo
            assert database_undone(now, read) == database_undone(now, undo)
            assert read.describe()


@given(plans())
def test_what_changes_the_state_has_a_way_back(plan):
    now, steps = plan
    for action, undo in steps:
        then = database_applied(now, action)
        assert undo is not None or then == now
        now = then


@given(plans())
def test_content_is_left_alone_by_every_step(plan):
    before, steps = plan
    reached = after(before, steps)
    assert reached.tables == before.tables
    assert taken_back(reached, steps).tables == before.tables


@given(plans())
def test_after_a_swap_the_stable_name_is_the_new_index(plan):
    now, steps = plan
    for action, _ in steps:
        now = database_applied(now, action)
        if isinstance(action, SwapIndex):
            attached = [f for f in now.indexes.values() if f.parent == STABLE]
            assert all(f.is_valid for f in (now.indexes[STABLE], *attached))
            assert not any(now.indexes[name].is_valid for name in action.hidden)
            assert {f"public.{rename.old}" for rename in action.renames} & set(now.indexes) <= {STABLE}


# --- differences -----------------------------------------------------------------------------------

FACTS = IndexFacts(table="public.t", definition="CREATE INDEX ON public.t …", is_valid=True)
DIGEST = TableDigest(rows=3, checksum="17", columns=("id",), watermark="3")
STATE = DatabaseState(
    revisions={"public.alembic_version": ("a1",)},
    schema_sha256="a" * 64,
    tables={"public.t": DIGEST},
    indexes={"public.t_e": FACTS},
)


@given(plans())
def test_a_state_differs_from_itself_in_nothing(plan):
    state, steps = plan
    assert after(state, steps).differences(after(state, steps)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"revisions": {}}, "public.alembic_version holds nothing, not a1"),
        (
            {"revisions": {**STATE.revisions, "sovereign.schema_version": ("1", "2")}},
            "sovereign.schema_version holds 1, 2, not nothing",
        ),
        ({"schema_sha256": "b" * 64}, "the schema is not the expected one (pg_dump --schema-only differs)"),
        ({"tables": {}}, "public.t is gone"),
        (
            {"tables": {"public.t": DIGEST.model_copy(update={"rows": 2})}},
            "public.t has 2 of the rows that count, not 3",
        ),
        (
            {"tables": {"public.t": DIGEST.model_copy(update={"checksum": "18"})}},
            "public.t has the same number of rows, but not the same content",
        ),
        (
            {"tables": {"public.t": DIGEST.model_copy(update={"checksum": "column id is gone"})}},
            "public.t: column id is gone",
        ),
        ({"indexes": {}}, "index public.t_e is gone"),
        ({"indexes": {"public.t_e": FACTS, "public.u": FACTS}}, "index public.u should not be there"),
        (
            {"indexes": {"public.t_e": FACTS.model_copy(update={"is_valid": False})}},
            "index public.t_e is not valid",
        ),
        (
            {"indexes": {"public.t_e": FACTS.model_copy(update={"definition": "other"})}},
            "index public.t_e is other, not CREATE INDEX ON public.t …",
        ),
        (
            {"indexes": {"public.t_e": FACTS.model_copy(update={"parent": "public.p"})}},
            "index public.t_e is attached to public.p, not to nothing",
        ),
        ({"faults": ("btree index x: ERROR",)}, "btree index x: ERROR"),
    ],
)
def test_each_difference_is_said(change, words):
    assert STATE.model_copy(update=change).differences(STATE) == (words,)


def test_what_is_not_known_or_not_asked_for_is_no_difference():
    assert STATE.model_copy(update={"schema_sha256": None}).differences(STATE) == ()
    assert STATE.differences(STATE.model_copy(update={"schema_sha256": None})) == ()
    assert STATE.differences(STATE.model_copy(update={"tables": {}})) == ()
    emptied = STATE.model_copy(update={"revisions": {"public.alembic_version": ()}})
    assert emptied.differences(STATE.model_copy(update={"revisions": {}})) == ()
    assert STATE.model_copy(update={"queries": {"q": 1.0}}).differences(STATE) == ()
