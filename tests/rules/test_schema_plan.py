"""Migrations become a plan with the way back that loses least, or are refused before anything is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.change import MigrationFolder, SchemaChange, Served
from rules.database import Database, DatabaseAddress, DatabaseServer, DatabaseState
from rules.database_plan import ApplyMigration, TakeSnapshot, VerifyDatabase, database_applied
from rules.database_undo import RestoreSnapshot, RevertMigration, database_undone
from rules.errors import InvalidRequestError
from rules.fleet import CommandService, FleetState
from rules.migration import (
    LintFinding,
    LockTaken,
    Migration,
    Migrations,
    Rehearsal,
    RehearsedMigration,
    RehearsedStatement,
    VersionTable,
)
from rules.plan import Plan
from rules.schema_plan import plan_schema, refuse_dangers, refuse_stranding

LOG = VersionTable(table="sovereign.schema_version", column="revision")
HEAD = VersionTable(table="public.alembic_version", column="version_num")
CHANGE = SchemaChange(
    database="memories", release="0002_b", migrations=MigrationFolder(path="/migrations", sha256="0" * 64)
)
ADDRESS = DatabaseAddress(database="memories")
SERVICE = CommandService(start=("true",), stop=("true",), status=("true",))
SERVER = DatabaseServer(service=SERVICE, cluster="/tank/pg/data", dataset="tank/pg")
WITHOUT = Database(name="memories", address=ADDRESS)
WITH_ZFS = Database(name="memories", address=ADDRESS, server=SERVER)
SLOW = RehearsedStatement(
    sql="ALTER TABLE t ALTER COLUMN i TYPE bigint",
    locks=(LockTaken(relation="public.t", mode="AccessExclusiveLock"),),
    rewrites=("public.t",),
    duration_s=2.5,
)


def migration(revision: str, *, down: tuple[str, ...] | None = ("SELECT 2",)) -> Migration:
    return Migration(
        revision=revision,
        title=revision,
        up=("SELECT 1",),
        down=down,
        record=("SELECT 3",),
        unrecord=("SELECT 4",),
    )


def rehearsed(
    revision: str, *, schema: bool | None = True, data: bool | None = True, statements=()
) -> RehearsedMigration:
    return RehearsedMigration(
        revision=revision,
        statements=statements,
        schema_sha256=f"after {revision}",
        restores_schema=schema,
        restores_data=data,
    )


def planned(
    *steps: tuple[Migration, RehearsedMigration],
    database: Database = WITHOUT,
    table: VersionTable = LOG,
    held: tuple[str, ...] = (),
    destroying: frozenset[str] = frozenset(),
) -> Plan:
    names = [one.revision for one, _ in steps]
    after = tuple(sorted({*held, *names})) if table is LOG else tuple(names[-1:])
    rehearsal = Rehearsal(
        where="schema_copy", schema_sha256="before", migrations=tuple(did for _, did in steps), took_s=1
    )
    return plan_schema(
        CHANGE,
        Migrations(version_table=table, sha256="0" * 64, pending=tuple(one for one, _ in steps), after=after),
        rehearsal if steps else None,
        database=database,
        before=DatabaseState(revisions={table.table: held}, schema_sha256="before"),
        fleet=FleetState(instances={}),
        destroying=destroying,
        deployment="memories-0002-b-1",
    )


def test_a_migration_with_a_proven_way_down_is_taken_back_by_it_and_loses_nothing():
    plan = planned((migration("0001_a"), rehearsed("0001_a")), (migration("0002_b"), rehearsed("0002_b")))
    assert [type(step.action) for step in plan.steps] == [ApplyMigration, ApplyMigration, VerifyDatabase]
    assert [step.number for step in plan.steps] == [0, 1, 2]
    assert all(isinstance(step.undo, RevertMigration) for step in plan.steps[:2])
    assert plan.notes == ()


def test_what_its_way_down_does_not_bring_back_leads_back_through_the_snapshot():
    plan = planned((migration("0001_a"), rehearsed("0001_a", data=False)), database=WITH_ZFS)
    snapshot, step, _ = plan.steps
    assert isinstance(snapshot.action, TakeSnapshot)
    assert isinstance(step.undo, RestoreSnapshot)
    assert step.undo.snapshot == snapshot.action.snapshot == "tank/pg@sovereign-memories-0002-b-1-schema"
    assert step.undo.max_loss_s == 300
    assert "300 s" in plan.notes[0]


@pytest.mark.parametrize(
    ("one", "did", "words"),
    [
        pytest.param(migration("0001_a", down=None), rehearsed("0001_a"), "no way down", id="no down"),
        pytest.param(migration("0001_a"), rehearsed("0001_a", schema=False), "the schema back", id="schema"),
        pytest.param(migration("0001_a"), rehearsed("0001_a", data=False), "the data back", id="data"),
    ],
)
def test_without_a_way_back_it_is_refused(one, did, words):
    with pytest.raises(InvalidRequestError, match=words):
        planned((one, did))


def test_on_a_copy_without_data_only_what_takes_nothing_away_is_believed():
    unseen = (migration("0001_a"), rehearsed("0001_a", data=None))
    assert isinstance(planned(unseen).steps[0].undo, RevertMigration)
    with pytest.raises(InvalidRequestError, match="cannot be tried without data"):
        planned(unseen, destroying=frozenset({"0001_a"}))


def test_a_rewrite_that_stops_readers_is_announced_with_its_time():
    plan = planned((migration("0001_a"), rehearsed("0001_a", statements=(SLOW,))))
    assert plan.interruptions == ("queries on public.t wait while it is worked on, 2.5 s on the copy",)


def test_a_lock_is_held_by_all_later_statements_of_its_transaction():
    quick = SLOW.model_copy(update={"duration_s": 0.003})
    long = RehearsedStatement(sql="UPDATE t SET i = 1", locks=(), rewrites=(), duration_s=60)
    plan = planned((migration("0001_a"), rehearsed("0001_a", statements=(quick, long))))
    assert plan.interruptions == ("queries on public.t wait while it is worked on, 60.0 s on the copy",)


def test_nothing_pending_is_nothing_to_do():
    assert planned(held=("0001_a",), database=WITH_ZFS).steps == ()


@given(count=st.integers(1, 6), table=st.sampled_from([LOG, HEAD]), held=st.booleans())
def test_any_prefix_taken_back_newest_first_is_the_state_before(count, table, held):
    names = [f"{number:04}_x" for number in range(1, count + 1)]
    plan = planned(
        *((migration(name), rehearsed(name)) for name in names),
        table=table,
        held=("0000_first",) if held else (),
    )
    assert plan.database
    for length in range(len(plan.steps) + 1):
        state = plan.database
        done = plan.steps[:length]
        for step in done:
            state = database_applied(state, step.action)
        for step in reversed(done):
            if step.undo:
                state = database_undone(database_undone(state, step.undo), step.undo)
        assert state == plan.database


def test_dangers_are_refused_unless_they_are_accepted_by_name():
    danger = LintFinding(rule="truncate", level="error", revision="0001_a", statement=0, message="empties t")
    with pytest.raises(InvalidRequestError, match=r"0001_a, statement 1: truncate: empties t"):
        refuse_dangers([danger], ())
    refuse_dangers([danger], ("truncate",))
    refuse_dangers([danger.model_copy(update={"level": "warning"})], ())


def test_an_application_that_a_side_does_not_serve_is_not_stranded():
    serves = [Served(application="web", before=("1.*",), after=("1.9.*", "2.*"))]
    refuse_stranding(serves, {"web": ("1.9.3",)}, back=False)
    refuse_stranding(serves, {"web": ("1.9.3",)}, back=True)
    with pytest.raises(InvalidRequestError, match=r"web runs 1\.8\.0, which the new schema"):
        refuse_stranding(serves, {"web": ("1.8.0",)}, back=False)
    with pytest.raises(InvalidRequestError, match=r"web runs 2\.0\.0, which the old schema .* back first"):
        refuse_stranding(serves, {"web": ("2.0.0",)}, back=True)
