"""Only one process ever changes a target: others wait their turn, the given-up stay fenced."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from flows.deploy import deploy
from lab.processes import wait_until
from rules.errors import LockHeldError
from rules.strategy import InPlace
from tasks.recover import recover_all
from tests.flows.site import PATIENCE_S, SHORT_LEASE, Site

LEASE_S = float(SHORT_LEASE["SOVEREIGN_LEASE_S"])
#: The server tells the time in whole seconds.
OVER_S = LEASE_S + 2


def test_a_second_deployment_is_refused_and_told_who_is_at_it(site: Site) -> None:
    first = site.deploying_halfway(site.change("2.0.0"))
    owner, half_way = site.owner(), site.application.observed()
    assert owner
    with pytest.raises(LockHeldError, match=f"{owner.deployment}.*{owner.flow_run_id}.*Nothing was changed"):
        deploy(site.change("3.0.0"), InPlace(instance="blue-1"))

    assert site.application.observed() == half_way
    assert [view.state for view in site.views()] == ["running", "aborted"]
    assert site.owner() == owner
    first.send(signal.SIGTERM)
    site.ended(first)
    assert site.application.observed() == site.before


def test_of_two_that_start_at_once_exactly_one_runs(site: Site) -> None:
    both = [
        site.deploying(site.change(release), InPlace(instance="blue-1")) for release in ("2.0.0", "3.0.0")
    ]
    for process in both:
        site.ended(process)

    states = sorted(view.state for view in site.views())
    # or one after the other, where the second had not yet begun when the first was done
    assert states in (["aborted", "promoted"], ["promoted", "superseded"])
    assert site.owner() is None


def test_a_process_that_wakes_after_it_was_given_up_changes_nothing(site: Site) -> None:
    zombie = site.deploying_halfway(site.change("2.0.0"), SHORT_LEASE)
    zombie.send(signal.SIGSTOP)
    time.sleep(OVER_S)
    recover_all(by="test", settings=site.settings())
    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before

    deploy(site.change("3.0.0"), InPlace(instance="blue-1"))
    newer = site.application.observed()
    entries = site.views()[0].entries
    zombie.send(signal.SIGCONT)
    site.ended(zombie)

    assert "was given up for dead and recovered by another process" in Path(zombie.log).read_text()
    assert site.application.observed() == newer
    assert site.views()[0].entries == entries
    assert site.views()[1].state == "promoted"
    assert site.owner() is None


def test_a_process_stopped_in_the_middle_of_a_step_is_ended_first(site: Site) -> None:
    zombie = site.deploying(site.change(), environment=SHORT_LEASE)
    wait_until(
        lambda: bool(site.views()) and len(site.view().intents) > 0,
        timeout_s=PATIENCE_S,
        what="a step",
        process=zombie,
    )
    zombie.send(signal.SIGSTOP)
    while site.view().entries[-1].entry != "intent":  # between two steps: let it come to the next one
        zombie.send(signal.SIGCONT)
        time.sleep(0.02)
        zombie.send(signal.SIGSTOP)
        time.sleep(0.05)
    time.sleep(OVER_S)
    recover_all(by="test", settings=site.settings(takeover_patience_s=0.5))

    assert not zombie.is_alive()
    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_another_host_waits_for_the_lease_and_then_takes_over(site: Site) -> None:
    process = site.deploying_halfway(site.change("2.0.0"), SHORT_LEASE)
    process.kill()
    elsewhere = site.settings(host="elsewhere", journal_dir=site.directory / "elsewhere")
    (refused,) = recover_all(by="test", settings=elsewhere)
    assert "renewed its lease" in refused.reason
    assert site.application.observed() != site.before

    time.sleep(OVER_S)
    (done,) = recover_all(by="test", settings=elsewhere)
    assert done.state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None

    # something newer is deployed there, and only then does the first host come back, its journal out of date
    with pytest.MonkeyPatch.context() as there:
        there.setenv("SOVEREIGN_HOST", elsewhere.host)
        there.setenv("SOVEREIGN_JOURNAL_DIR", str(elsewhere.journal_dir))
        deploy(site.change("3.0.0"), InPlace(instance="blue-1"))
    newer = site.application.observed()
    assert site.view().state == "running"
    recover_all(by="test", settings=site.settings())
    assert site.application.observed() == newer
    assert site.view().state == "rolled_back"


def test_a_lock_whose_owner_died_on_a_lost_host_before_any_change_is_freed(site: Site) -> None:
    site.lock_as_lost_host(lease_s=1)
    recover_all(by="test", settings=site.settings())
    assert site.owner() is not None
    time.sleep(3)
    recover_all(by="test", settings=site.settings())
    assert site.owner() is None
