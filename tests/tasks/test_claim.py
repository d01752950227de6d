"""Who may take a deployment back: the dead are recovered, the living are left alone."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lab.identity import started_ticks
from rules.database import Database, DatabaseAddress
from rules.entries import Intent, Locked, Opened
from rules.errors import CutOffError, FencedError
from tasks.claim import StillRunningError, claim, refuse_living, step_lock
from tasks.journal import JournalFile
from tasks.lease import acquire, current_holding
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.tasks.deploying import STEP, another_process, opening, owner, settings_in
from tests.tasks.gateway import Fault


@pytest.fixture
def journal(settings: Settings, opened: Opened) -> JournalFile:
    """The journal of a deployment that is in the middle of its first step, and whose process is gone."""
    file = JournalFile(settings.journal_dir, opened.deployment)
    with file.begun(opened):
        file.append(Locked(token="token"))
        file.append(Intent(number=0, title=STEP.title, undo=STEP.undo))
    return file


def claimed(journal: JournalFile, api: PrefectApi | None, settings: Settings):
    return claim(journal, journal.read(), api=api, settings=settings)


# --- by the lock in Prefect ------------------------------------------------------------------------


def test_a_dead_process_of_this_host_loses_its_lock_at_once(api, journal, opened, settings):
    dead = acquire(api, opened.target, owner(opened.deployment, pid=1))
    lease = claimed(journal, api, settings)
    assert lease.token != dead.token
    assert current_holding(api, opened.target).token == lease.token
    with pytest.raises(FencedError):
        dead.renew(api)


def test_a_lock_that_is_free_is_taken_before_anything_is_undone(api, journal, opened, settings):
    lease = claimed(journal, api, settings)
    assert current_holding(api, opened.target).token == lease.token


def test_another_host_is_left_alone_until_its_lease_is_over(through, journal, opened, settings):
    api, between = through
    theirs = acquire(api, opened.target, owner(opened.deployment, host="host-b"))
    with pytest.raises(StillRunningError, match="on host-b, which renewed its lease"):
        claimed(journal, api, settings)
    assert current_holding(api, opened.target).token == theirs.token
    between.clock_ahead_s = 120
    assert claimed(journal, api, settings).token != theirs.token


def test_a_target_that_belongs_to_another_deployment_is_not_touched(through, journal, opened, settings):
    api, between = through
    theirs = acquire(api, opened.target, owner("web-3-0", pid=1))
    between.clock_ahead_s = 120
    with pytest.raises(FencedError, match="belongs to web-3-0 now"):
        claimed(journal, api, settings)
    assert current_holding(api, opened.target).token == theirs.token


def test_a_repeated_rollback_takes_over_from_the_one_that_failed(api, journal, opened, settings):
    acquire(api, opened.target, owner(opened.deployment, pid=1))
    again = opening(
        deployment=f"{opened.deployment}-again1", target=opened.target, continues=opened.deployment
    )
    continued = JournalFile(settings.journal_dir, again.deployment)
    with continued.begun(again):
        continued.append(Intent(number=0, title=STEP.title, undo=STEP.undo))
    assert claimed(continued, api, settings).owner.deployment == again.deployment


def test_a_chain_of_repeated_rollbacks_may_take_over_from_the_first(api, journal, opened, settings):
    acquire(api, opened.target, owner(opened.deployment, pid=1))
    name = f"{opened.deployment}-again-again"
    last = opening(deployment=name, target=opened.target, continues=f"{opened.deployment}-again")
    continued = JournalFile(settings.journal_dir, name)
    with continued.begun(last):
        pass
    assert claimed(continued, api, settings).owner.deployment == name


@pytest.mark.parametrize(
    ("database", "is_refused"),
    [
        pytest.param(Database(name="m", address=DatabaseAddress(database="m")), True, id="socket"),
        pytest.param(
            Database(name="m", address=DatabaseAddress(host="db.internal", database="m")),
            False,
            id="elsewhere",
        ),
    ],
)
def test_another_host_leaves_a_database_alone_that_it_would_mistake_for_its_own(
    api, settings, database, is_refused
):
    theirs = opening(host="host-b", database=database)
    adopted = JournalFile(settings.journal_dir, theirs.deployment)
    with adopted.begun(theirs):
        adopted.append(Intent(number=0, title=STEP.title, undo=STEP.undo))
    if is_refused:
        with pytest.raises(StillRunningError, match="only recover on host-b can take it back"):
            claimed(adopted, api, settings)
    else:
        assert claimed(adopted, api, settings)


def test_a_deployment_that_changed_nothing_needs_no_lock(api, opened, settings):
    fresh = JournalFile(settings.journal_dir, opened.deployment)
    with fresh.begun(opened):
        pass
    assert claimed(fresh, api, settings) is None
    acquire(api, opened.target, owner("web-3-0"))
    assert claimed(fresh, api, settings) is None


# --- cut off from Prefect --------------------------------------------------------------------------


def test_cut_off_this_host_may_undo_only_as_long_as_its_own_lease_runs(api, between, journal, settings):
    between.faults = [Fault()]
    journal.note_lease(time.time() + 60)
    assert claimed(journal, api, settings) is None
    journal.note_lease(time.time() - 1)
    with pytest.raises(CutOffError, match="set SOVEREIGN_ONLY_HOST=true and run recover"):
        claimed(journal, api, settings)


def test_cut_off_another_hosts_deployment_is_not_touched(api, between, settings):
    theirs = opening(host="host-b")
    adopted = JournalFile(settings.journal_dir, theirs.deployment)
    with adopted.begun(theirs):
        adopted.append(Intent(number=0, title=STEP.title, undo=STEP.undo))
    adopted.note_lease(time.time() + 60)
    between.faults = [Fault()]
    with pytest.raises(CutOffError, match=r"of host-b\) is over"):
        claimed(adopted, api, settings)


def test_an_only_host_may_always_undo(journal, tmp_path):
    assert claimed(journal, None, settings_in(tmp_path, only_host=True)) is None
    with pytest.raises(CutOffError, match="PREFECT_API_URL is not set"):
        claimed(journal, None, settings_in(tmp_path))


# --- by the process on this host -------------------------------------------------------------------


def working(journal: JournalFile, opened: Opened):
    """A deployment's own process, which begins its journal and stays in the middle of a step."""

    def work(ready):
        with journal.begun(opened), journal.exclusive(patience_s=0):
            ready()
            signal.pause()

    return another_process(work)


@pytest.fixture
def fresh(settings: Settings, opened: Opened) -> JournalFile:
    return JournalFile(settings.journal_dir, opened.deployment)


def test_a_living_process_is_left_alone(api, fresh, opened, settings):
    with working(fresh, opened) as pid:
        acquire(api, opened.target, owner(opened.deployment, pid=pid))
        with pytest.raises(StillRunningError, match=f"process {pid} of .* lives and is left alone"):
            refuse_living(fresh, api, settings)
    refuse_living(fresh, api, settings)


def test_a_living_process_is_left_alone_while_nobody_can_tell(through, fresh, opened, settings):
    api, between = through
    with working(fresh, opened):
        for without in (None, api):
            between.faults = [Fault()]
            with pytest.raises(StillRunningError):
                refuse_living(fresh, without, settings)


def test_a_stopped_process_whose_lease_is_over_is_given_up(through, fresh, opened, settings):
    api, between = through
    with working(fresh, opened) as pid:
        acquire(api, opened.target, owner(opened.deployment, pid=pid))
        os.kill(pid, signal.SIGSTOP)
        between.clock_ahead_s = 120
        refuse_living(fresh, api, settings)


def test_a_process_at_work_in_a_step_is_not_disturbed(api, fresh, opened, settings):
    with working(fresh, opened) as pid:
        acquire(api, opened.target, owner(opened.deployment, pid=pid))
        at_work = pytest.raises(StillRunningError, match="another process is at work")
        with at_work, step_lock(fresh, api, settings):
            pass
        assert started_ticks(pid), "it lives"


def test_a_process_that_stopped_in_a_step_is_ended_before_that_is_undone(through, fresh, opened, settings):
    api, between = through
    with working(fresh, opened) as pid:
        acquire(api, opened.target, owner(opened.deployment, pid=pid))
        os.kill(pid, signal.SIGSTOP)
        between.clock_ahead_s = 120
        with step_lock(fresh, api, settings):
            assert started_ticks(pid) is None
