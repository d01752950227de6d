"""Whatever stops a deployment half-way, it takes itself back, or is taken back."""

from __future__ import annotations

import os
import signal

import pytest

from flows.deploy import deploy
from flows.guard import TakenBackError, undisturbed
from flows.recover import recover
from lab.processes import wait_until
from tests.flows.site import ENDLESS, PATIENCE_S, Site


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_in_mid_canary_takes_it_back(site: Site, number: signal.Signals) -> None:
    process = site.deploying_halfway(site.change())
    process.send(number)
    site.ended(process)

    assert_taken_back(site)
    assert "was told to stop" in site.view().cause
    assert site.run_state(site.view().opened.flow_run_id)[0] == "CRASHED"


def test_a_flow_that_runs_out_of_time_takes_itself_back(site: Site) -> None:
    in_time = deploy.with_options(timeout_seconds=8)
    with pytest.raises(TakenBackError, match="ran out of time"):
        in_time(site.change(), ENDLESS)

    assert_taken_back(site)
    state, message = site.run_state(site.view().opened.flow_run_id)
    assert state == "FAILED"
    assert "ran out of time. Rolled back and verified" in message


def test_a_flow_killed_in_mid_canary_is_recovered_by_the_schedule(site: Site) -> None:
    process = site.deploying_halfway(site.change())
    process.kill()
    (looked_at,) = [one for one in recover() if one.acted]

    assert looked_at.state == "rolled_back"
    assert_taken_back(site)
    for run in (looked_at.flow_run_id, *site.children(looked_at.flow_run_id)):
        assert site.run_state(run)[0] == "CRASHED"
    assert "P2" in site.artifact(f"incident-{looked_at.deployment}")


def test_a_way_back_that_is_killed_half_way_is_finished_by_the_schedule(site: Site) -> None:
    process = site.deploying_halfway(site.change())
    process.send(signal.SIGTERM)
    wait_until(
        lambda: any(entry.entry == "undone" for entry in site.view().entries),
        timeout_s=PATIENCE_S,
        what="the first step back",
    )
    process.kill()
    assert site.view().state == "rolling_back"
    assert len(site.view().to_undo) > 0
    recover()

    assert_taken_back(site)
    assert "was told to stop" in site.view().cause


def test_a_hook_that_is_killed_half_way_is_finished_by_the_schedule(site: Site) -> None:
    process = site.deploying_halfway(site.change())
    process.kill()
    hook = site.run("tests.flows.hook.run_hook", {"flow_run_id": site.view().opened.flow_run_id})
    wait_until(
        lambda: any(entry.entry == "undone" for entry in site.view().entries),
        timeout_s=PATIENCE_S,
        what="the hook's first step back",
        process=hook,
    )
    hook.kill()
    assert site.view().state == "rolling_back"
    recover()

    assert_taken_back(site)
    assert "ended as Crashed" in site.view().cause


def test_one_damaged_journal_does_not_keep_the_others_from_being_recovered(site: Site) -> None:
    process = site.deploying_halfway(site.change())
    process.kill()
    damaged = site.journal_dir / "damaged"
    damaged.mkdir()
    (damaged / "journal.jsonl").write_text('{"entry": "nobody knows this one"}\n')
    looked_at = {one.deployment: one for one in recover()}

    assert "nobody knows this one" in looked_at["damaged"].reason
    (damaged / "journal.jsonl").unlink()
    assert_taken_back(site)


def test_signals_wait_for_the_end_of_the_way_back() -> None:
    arrived: list[int] = []
    former = signal.signal(signal.SIGALRM, lambda number, _frame: arrived.append(number))
    try:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGALRM)
            os.kill(os.getpid(), signal.SIGALRM)
            assert arrived == []
        assert arrived == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, former)


def assert_taken_back(site: Site) -> None:
    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None
