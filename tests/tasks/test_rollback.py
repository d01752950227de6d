"""The way back of a whole deployment, on a real fleet, from its journal alone."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import LabApplication
from lab.prefect_server import PrefectServer
from lab.processes import wait_until
from rules.entries import Intent, Opened, Planned, Undone, line
from rules.errors import CutOffError, FencedError
from rules.fleet import Fleet
from rules.plan import Plan
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen
from rules.traffic import Traffic
from tasks import haproxy
from tasks.application import restart_service, switch_release, wait_until_ready
from tasks.fleet import observe_fleet
from tasks.journal import JournalFile
from tasks.lease import acquire, current_holding, take_over
from tasks.prefect_api import PrefectApi
from tasks.rollback import Rollback
from tasks.settings import Settings
from tests.tasks.deploying import STEP, opening, owner, settings_in
from tests.tasks.gateway import Fault, api_through
from tests.tasks.updating import NEXT_RELEASE, SETTINGS, stage

CAUSE = "error_ratio 0.15 is above 0.10 in 200 requests."
AWAY = Traffic(live="green", candidate="blue")
#: What another process does that recovers: it knows the journal and nothing else.
RECOVERY = """
import sys
from pathlib import Path
from tasks.journal import JournalFile
from tasks.rollback import Rollback
from tasks.settings import Settings
journal = JournalFile(Path(sys.argv[1]), sys.argv[2])
with journal.exclusive(patience_s=10):
    Rollback(journal, settings=Settings(journal_dir=sys.argv[1]), by="another process").run("It is gone.")
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LabApplication]:
    """One blue and one green instance behind HAProxy."""
    with LabApplication(tmp_path / "web", blue=1, green=1) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, command_timeout_s=20)


def hurried(fleet: Fleet) -> Fleet:
    """Return the fleet with a balancer that is not waited for."""
    assert fleet.route
    address = fleet.route.balancer.model_copy(update={"timeout_s": 0.3})
    return fleet.model_copy(update={"route": fleet.route.model_copy(update={"balancer": address})})


def deployed(pair: LabApplication, settings: Settings) -> tuple[JournalFile, Opened, Plan]:
    """Do a whole blue-green deployment, and leave its journal as a killed process would."""
    fleet, change = hurried(pair.fleet), pair.change(NEXT_RELEASE)
    plan = plan_rollout(change, BlueGreen(), fleet, observe_fleet(fleet))
    intents = [Intent(number=s.number, title=s.title, undo=s.undo) for s in plan.steps if s.undo]
    opened = opening(fleet)
    green = fleet.instance("green-1")
    stage(green, change)
    switch_release(green, NEXT_RELEASE)
    restart_service(green, settings=SETTINGS)
    wait_until_ready(green, NEXT_RELEASE, timeout_s=20)
    haproxy.set_traffic(pair.fleet.route, AWAY)
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.adopt(b"".join(line(entry) for entry in (opened, Planned(plan=plan), *intents)))
    journal.note_lease(time.time() + 300)
    return journal, opened, plan


def undone(journal: JournalFile) -> list[int]:
    return [entry.number for entry in journal.read().entries if isinstance(entry, Undone)]


def test_takes_every_step_back_newest_first_and_proves_it(pair, settings):
    before = pair.observed()
    journal, _, plan = deployed(pair, settings)
    assert pair.observed() != before
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    assert (view.state, view.cause) == ("rolled_back", CAUSE)
    numbers = [step.number for step in plan.steps if step.undo]
    assert undone(journal) == sorted(numbers, reverse=True)
    assert pair.observed() == before
    again = Rollback(journal, settings=settings, by="flow").run("asked again")
    assert again == view, "what has ended never changes"


def test_a_deployment_that_did_nothing_is_aborted(settings):
    opened = opening()
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.adopt(line(opened))
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    assert (view.state, view.reason) == ("aborted", f"{CAUSE} Nothing had been changed.")


def test_a_repeated_rollback_with_nothing_left_to_undo_is_still_verified(pair, settings):
    fleet = hurried(pair.fleet)
    plan = plan_rollout(pair.change(NEXT_RELEASE), BlueGreen(), fleet, observe_fleet(fleet))
    again = opening(fleet, continues="web-1")
    journal = JournalFile(settings.journal_dir, again.deployment)
    journal.adopt(b"".join(line(entry) for entry in (again, Planned(plan=plan))))
    journal.note_lease(time.time() + 300)
    assert Rollback(journal, settings=settings, by="person").run(CAUSE).state == "rolled_back"


def test_tries_again_while_a_part_is_away(pair, settings, caplog):
    before = pair.observed()
    journal, _, _ = deployed(pair, settings)
    pair.haproxy.stop()
    back = threading.Timer(0.6, pair.haproxy.start)
    back.start()
    with caplog.at_level(logging.WARNING):
        view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    back.join()
    assert "try 1 to take back switch all traffic to green failed: HAProxy did not answer" in caplog.text
    assert view.state == "rolled_back"
    assert pair.observed() == before


def test_gives_up_loudly_and_leaves_what_comes_before_the_step_that_failed(pair, tmp_path):
    settings = settings_in(tmp_path, undo_attempts=2)
    journal, _, plan = deployed(pair, settings)
    pair.haproxy.stop()
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    assert view.state == "rollback_failed"
    assert view.reason.startswith(f"{CAUSE} The way back failed: all traffic back to blue: HAProxy did not")
    assert undone(journal) == []
    assert len(view.to_undo) == len([step for step in plan.steps if step.undo])
    pair.haproxy.start()
    assert pair.observed()["instances"]["green-1"]["running"] == NEXT_RELEASE, "users are there: left alone"


def test_goes_on_where_a_killed_rollback_stopped(pair, settings):
    before = pair.observed()
    journal, _, plan = deployed(pair, settings)
    argv = (sys.executable, "-c", RECOVERY, str(settings.journal_dir), journal.deployment)
    with subprocess.Popen(argv) as other:
        wait_until(lambda: bool(undone(journal)), timeout_s=60, what="the first step back")
        other.kill()
    assert journal.read().state == "rolling_back"
    with journal.exclusive(patience_s=5):
        view = Rollback(journal, settings=settings, by="recover").run("The process is gone.")
    assert (view.state, view.cause) == ("rolled_back", "It is gone.")
    assert undone(journal) == sorted((s.number for s in plan.steps if s.undo), reverse=True)
    assert pair.observed() == before


def test_says_where_the_system_is_not_as_before(pair, settings, monkeypatch):
    monkeypatch.setattr("tasks.rollback._SETTLE_S", 1.0)
    journal, _, _ = deployed(pair, settings)
    haproxy.drain(pair.haproxy.address, "blue", "blue-1", deadline_s=5)
    (pair.root("blue-1") / "releases" / "9.9.9").mkdir()
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    assert view.state == "rollback_failed"
    assert not view.to_undo
    assert "After the way back: blue-1: releases is ('1.0.0', '9.9.9'), not ('1.0.0',)" in view.reason
    assert "blue-1: balancer state is maint, not ready" in view.reason


def test_waits_until_the_system_has_settled(pair, settings):
    journal, _, _ = deployed(pair, settings)
    late = threading.Timer(1.5, (pair.root("blue-1") / "releases" / "9.9.9").rmdir)
    (pair.root("blue-1") / "releases" / "9.9.9").mkdir()
    late.start()
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    late.join()
    assert view.state == "rolled_back"


def test_holds_the_users_on_the_side_that_answers_when_home_is_dead(pair, settings):
    journal, _, _ = deployed(pair, settings)
    haproxy.set_traffic(pair.fleet.route, Traffic(live="blue", candidate="green", canary_basis_points=5_000))
    pair.kill("blue-1")
    view = Rollback(journal, settings=settings, by="flow").run(CAUSE)
    assert view.state == "rollback_failed"
    assert [held.reason for held in view.held] == [
        "no instance of blue answers, while 100% of green do: all traffic is held on green"
    ]
    assert haproxy.read_traffic(pair.fleet.route) == AWAY
    observed = pair.observed()["instances"]["green-1"]
    assert observed["running"] == NEXT_RELEASE, "the only side that answers is not touched"


# --- with a lock -----------------------------------------------------------------------------------


@pytest.fixture
def paper(settings: Settings) -> tuple[JournalFile, Opened]:
    """A journal with nothing behind it: what must not be undone need not be there."""
    opened = opening()
    journal = JournalFile(settings.journal_dir, opened.deployment)
    journal.adopt(line(opened) + line(Intent(number=0, title=STEP.title, undo=STEP.undo)))
    return journal, opened


def test_stops_at_once_when_another_process_has_taken_over(prefect_api: PrefectServer, paper, settings):
    journal, opened = paper
    with PrefectApi(settings) as api:
        lease = acquire(api, opened.target, owner(opened.deployment))
        take_over(api, opened.target, current_holding(api, opened.target), owner(opened.deployment))
        with pytest.raises(FencedError):
            lease.renew(api)
        with pytest.raises(FencedError):
            Rollback(journal, settings=settings, by="flow", lease=lease, api=api).run(CAUSE)
    assert journal.read().state == "rolling_back"
    assert undone(journal) == []


def test_undoes_nothing_once_its_lease_is_over_and_nobody_can_tell_who_has_it(
    prefect_api: PrefectServer, paper, settings
):
    journal, opened = paper
    with api_through(prefect_api.api_url, settings) as (api, between):
        lease = acquire(api, opened.target, owner(opened.deployment, lease_s=0.01))
        between.faults = [Fault()]
        wait_until(lambda: lease.left_s < 0, timeout_s=5, what="the lease's end")
        with pytest.raises(CutOffError, match="another host may have taken over"):
            Rollback(journal, settings=settings, by="flow", lease=lease, api=api).run(CAUSE)
    assert undone(journal) == []


def test_without_a_lock_of_its_own_it_undoes_only_while_the_dead_processs_lease_runs(paper, settings):
    journal, _ = paper
    journal.note_lease(time.time() - 1)
    with pytest.raises(CutOffError, match="another host may have taken over"):
        Rollback(journal, settings=settings, by="recover").run(CAUSE)
    assert journal.read().state == "rolling_back"
    assert undone(journal) == []


def test_an_only_host_undoes_even_then(prefect_api: PrefectServer, pair, tmp_path):
    before = pair.observed()
    settings = settings_in(tmp_path, only_host=True)
    journal, opened, _ = deployed(pair, settings)
    with api_through(prefect_api.api_url, settings) as (api, between):
        lease = acquire(api, opened.target, owner(opened.deployment, lease_s=0.01))
        between.faults = [Fault()]
        wait_until(lambda: lease.left_s < 0, timeout_s=5, what="the lease's end")
        view = Rollback(journal, settings=settings, by="flow", lease=lease, api=api).run(CAUSE)
    assert view.state == "rolled_back"
    assert pair.observed() == before
