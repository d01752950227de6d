"""What an index change keeps for its way back comes and goes beside later changes, and disturbs none."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from lab.postgres import Postgres, programs
from rules.entries import Moved, Planned, line
from rules.fleet import NOBODY, FleetState
from rules.index_plan import plan_index, without_leftovers
from rules.journal import view
from rules.plan import Plan
from rules.strategy import InPlace
from rules.vector_index import Hnsw
from tasks import vector_index
from tasks.finish import finish_due
from tasks.journal import JournalFile
from tasks.observed import differences_from_before, differences_from_promised
from tests.tasks import vectors
from tests.tasks.databases import idle_in_transaction, wait_until
from tests.tasks.deploying import opening, settings_in
from tests.tasks.vectors import change, copy_of, query, take_back, walk

TABLE = "public.memories"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Postgres(tmp_path_factory.mktemp("vectors"), settings=vectors.SETTINGS) as running:
        vectors.fill(running, "monthly")
        vectors.fill(running, "plain", partitioned=False)
        yield running


@pytest.fixture(params=["monthly", "plain"])
def database(request, server):
    return reachable(copy_of(server, request.param))


@pytest.fixture
def plain(server):
    return reachable(copy_of(server, "plain"))


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


def reachable(database):
    return database.model_copy(update={"programs": str(programs()), "check_corruption": False})


def planned(database, m, *, seed):
    """The plan of a change, as the deployment `seed` makes it."""
    wanted = change(how=Hnsw(m=m, ef_construction=96, ef_search=80))
    before = without_leftovers(vectors.observed(database))
    catalog = vector_index.read_catalog(database, wanted, deployment=seed)
    made = plan_index(wanted, catalog, before, seed=seed)
    return Plan(
        change=wanted,
        strategy=InPlace(),
        before=FleetState(instances={}),
        database=before,
        steps=made.steps,
        finish=made.finish,
    )


def opened(database, deployment, *, target="database-main"):
    return opening(NOBODY, deployment=deployment, target=target, database=database)


def before_and_promised(database, plan):
    """What differs from the state before the change, and from the promised one."""
    begun = opened(database, "looked-at")
    known = view((begun, Planned(plan=plan)))
    return differences_from_before(known, plan), differences_from_promised(begun, plan, touched=set())


def journal(settings, database, plan, *states, deployment, target="database-main"):
    """Write the journal of a deployment that went through these states."""
    written = JournalFile(settings.journal_dir, deployment)
    written.adopt(line(opened(database, deployment, target=target)) + line(Planned(plan=plan)))
    for state in states:
        written.append(Moved(state=state, reason="by hand", by="test", at=datetime.now(UTC)))
    return written


def kept(plan):
    (old,) = plan.finish
    return old.index


def is_there(database, index):
    return query(database, "SELECT to_regclass(%s) IS NOT NULL", (index,)) == [(True,)]


def test_a_later_change_neither_misses_nor_minds_what_an_earlier_one_keeps(database):
    first = planned(database, 16, seed="first")
    walk(database, first)
    second = planned(database, 24, seed="second")
    assert not [name for name in second.database.indexes if "_kept" in name]
    walk(database, second)
    assert before_and_promised(database, second)[1] == ()

    (old,) = first.finish
    vector_index.drop_old_index(database, old, deployment="first")
    assert before_and_promised(database, second)[1] == ()
    take_back(database, second)
    assert before_and_promised(database, second)[0] == ()


def test_what_the_change_itself_keeps_is_missed(database):
    plan = planned(database, 16, seed="first")
    walk(database, plan)
    (old,) = plan.finish
    vector_index.drop_old_index(database, old, deployment="first")
    said = before_and_promised(database, plan)[1]
    assert f"index {old.index} is gone" in said
    assert len(said) == (3 if old.is_partitioned else 1)  # its parts too


def test_what_a_way_back_did_not_remove_is_told(database):
    plan = planned(database, 16, seed="first")
    swap = vectors.at(plan, "swap_index")
    walk(database, plan, up_to=swap)
    new = plan.steps[swap].undo.renames[0].new
    assert f"index public.{new} should not be there" in before_and_promised(database, plan)[0]
    take_back(database, plan)
    assert before_and_promised(database, plan)[0] == ()


def test_what_an_earlier_try_has_left_of_another_index_is_not_minded(database):
    left = planned(database, 48, seed="first")
    walk(database, left, up_to=vectors.at(left, "judge_index"))
    plan = planned(database, 16, seed="second")
    walk(database, plan)
    assert before_and_promised(database, plan)[1] == ()
    take_back(database, plan)
    assert before_and_promised(database, plan)[0] == ()


def test_a_whole_that_an_earlier_try_has_attached_is_taken_over(server):
    monthly = reachable(copy_of(server, "monthly"))
    left = planned(monthly, 16, seed="first")
    walk(monthly, left, up_to=vectors.at(left, "judge_index"))
    plan = planned(monthly, 16, seed="second")
    assert vectors.step(plan, "attach_indexes") == vectors.step(left, "attach_indexes")
    walk(monthly, plan)
    assert before_and_promised(monthly, plan)[1] == ()


def test_changes_there_and_back_and_there_again_keep_indexes_of_their_own(plain, settings):
    plans = {}
    for name, m in (("first", 16), ("second", 24), ("third", 16), ("fourth", 24)):
        plans[name] = planned(plain, m, seed=name)
        walk(plain, plans[name])
        if name != "fourth":
            (old,) = plans[name].finish
            vector_index.drop_old_index(plain, old, deployment=name)
    assert len({kept(plan) for plan in plans.values()}) == 4
    # the second and the fourth go from the same index to the same index
    journal(settings, plain, plans["second"], "promoted", "completed", deployment="second")
    # under another target, so that nothing but the name keeps it
    journal(settings, plain, plans["fourth"], "promoted", deployment="fourth", target="database-other")
    assert finish_due(settings, again=True) == (kept(plans["second"]),)
    assert is_there(plain, kept(plans["fourth"]))


def test_an_index_that_any_deployment_may_return_to_is_never_dropped(plain, settings):
    plan = planned(plain, 16, seed="first")
    walk(plain, plan)
    journal(settings, plain, plan, "promoted", "completed", deployment="first")
    armed = journal(settings, plain, plan, "promoted", deployment="other", target="database-other")
    assert finish_due(settings, again=True) == ()
    assert is_there(plain, kept(plan))
    armed.append(Moved(state="completed", reason="by hand", by="test", at=datetime.now(UTC)))
    finish_due(settings)
    assert not is_there(plain, kept(plan))


def test_a_change_that_begins_while_it_waits_to_be_dropped_keeps_it(server, settings, caplog):
    monthly = reachable(copy_of(server, "monthly"))
    plan = planned(monthly, 16, seed="first")
    walk(monthly, plan)
    journal(settings, monthly, plan, "promoted", "completed", deployment="first")
    with (
        caplog.at_level(logging.WARNING),
        idle_in_transaction(monthly, "SELECT count(*) FROM memories"),
        ThreadPoolExecutor(1) as pool,
    ):
        finishing = pool.submit(finish_due, settings)
        wait_until(lambda: f"dropping {kept(plan)} waits for" in caplog.text)
        JournalFile(settings.journal_dir, "later").adopt(line(opened(monthly, "later")))
        assert finishing.result(timeout=20) == ()
    assert "a change of database-main has begun" in caplog.text
    assert is_there(monthly, kept(plan))


def test_a_mark_that_cannot_be_written_stops_nobody(plain, settings, caplog):
    plan = planned(plain, 16, seed="first")
    walk(plain, plan)
    written = journal(settings, plain, plan, "promoted", "completed", deployment="first")
    mark = written.directory / "finished"
    mark.symlink_to(written.directory / "nowhere" / "finished")  # as unwritable as on a full disk
    with caplog.at_level(logging.WARNING):
        assert finish_due(settings) == (kept(plan),)
    assert "looked for again later" in caplog.text
    mark.unlink()
    assert finish_due(settings) == (kept(plan),)
    assert mark.exists()
    assert finish_due(settings) == ()
