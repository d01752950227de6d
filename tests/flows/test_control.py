"""A person's word to a running deployment: pause, resume and abort, in every phase."""

from __future__ import annotations

import time

import pytest

from blocks.environment import Environment
from flows.control import control
from flows.deploy import deploy
from flows.recover import recover
from lab.processes import Process, wait_until
from rules.entries import Noted
from rules.environment import Stage
from rules.errors import InvalidRequestError
from rules.journal import JournalView
from rules.strategy import Canary, InPlace, Watching
from tests.flows.site import EASY, ENDLESS, PATIENCE_S, Site

QUICK = Canary(steps_percent=(50, 100), watch=Watching(tick_s=0.2, deadline_s=30, limits=EASY))
HEARS = {"SOVEREIGN_RENEW_EVERY_S": "0.5"}


def asks_for_approval(name: str) -> str:
    """Save an environment in which a person must approve; return its name."""
    Environment(stage=Stage.DEVELOPMENT, approval=True, approval_timeout_s=60).save(name, overwrite=True)
    return name


def notes(view: JournalView, about: str) -> list[str]:
    return [entry.words for entry in view.entries if isinstance(entry, Noted) and entry.about == about]


def wait_for_note(site: Site, about: str, process: Process) -> None:
    wait_until(lambda: bool(notes(site.view(), about)), timeout_s=PATIENCE_S, what=about, process=process)


def wait_for_gate(site: Site, process: Process) -> None:
    """Wait until a deployment has passed its checklist: what comes next is the baseline."""
    wait_until(
        lambda: bool(site.views()) and site.view().gate is not None,
        timeout_s=PATIENCE_S,
        what="the gate",
        process=process,
    )


def wait_for_question(site: Site, process: Process) -> str:
    """Wait until a deployment waits for a person; return its flow run."""
    wait_until(
        lambda: bool(site.views()) and site.run_state(site.view().opened.flow_run_id)[0] == "PAUSED",
        timeout_s=PATIENCE_S,
        what="the question",
        process=process,
    )
    return site.view().opened.flow_run_id


def test_a_paused_canary_stays_where_it_is_and_goes_on_when_resumed(site: Site) -> None:
    slow = QUICK.model_copy(
        update={
            "watch": Watching(
                tick_s=0.2, deadline_s=60, limits=EASY.model_copy(update={"min_observation_s": 4})
            )
        }
    )
    process = site.deploying(site.change(), slow, HEARS)
    site.wait_until_halfway("2.0.0", process)
    name = site.view().opened.deployment
    assert "pause by Ada" in control(name, "pause", "Ada", "a look at the logs")
    wait_for_note(site, "paused", process)
    halfway = site.application.observed()["route_map"]
    time.sleep(6)  # longer than the step would take
    assert process.is_alive()
    assert site.view().state == "running"
    assert site.application.observed()["route_map"] == halfway == {site.application.name: "blue:green:5000"}

    control(name, "resume", "Ada", "the logs are clean")
    site.ended(process)
    assert site.view().state == "promoted"
    assert notes(site.view(), "paused") == ["a look at the logs"]
    assert len(notes(site.view(), "resumed")) == 1


def test_an_aborted_canary_is_taken_back_by_the_word_of_a_person(site: Site) -> None:
    process = site.deploying_halfway(site.change(), HEARS)
    control(site.view().opened.deployment, "abort", "Ada", "second thoughts")
    site.ended(process)

    assert site.view().state == "rolled_back"
    assert site.view().cause == "Aborted by Ada: second thoughts."
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_a_paused_deployment_can_be_aborted(site: Site) -> None:
    process = site.deploying_halfway(site.change(), HEARS)
    name = site.view().opened.deployment
    control(name, "pause", "Ada", "a look")
    wait_for_note(site, "paused", process)
    control(name, "abort", "Ada", "it is bad")
    site.ended(process)

    assert site.view().state == "rolled_back"
    assert site.application.observed() == site.before


def test_a_deployment_that_is_left_paused_is_taken_back(site: Site) -> None:
    process = site.deploying_halfway(site.change(), {**HEARS, "SOVEREIGN_PAUSE_DEADLINE_S": "2"})
    control(site.view().opened.deployment, "pause", "Ada", "lunch")
    site.ended(process)

    assert site.view().state == "rolled_back"
    assert "Paused by Ada for longer than 2 s: lunch" in site.view().cause
    assert site.application.observed() == site.before


def test_a_long_measurement_is_aborted_within_seconds(site: Site) -> None:
    Environment(baseline_s=40.0).save("measures-long", overwrite=True)
    process = site.deploying(site.change(), ENDLESS, HEARS, where="measures-long")
    wait_for_gate(site, process)
    control(site.view().opened.deployment, "abort", "Ada", "second thoughts")
    took_s = site.ended(process)

    assert took_s < 20, "it measures for 40 s"
    assert site.view().state == "aborted"
    assert "Aborted by Ada: second thoughts" in site.view().reason
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_a_pause_is_heard_while_it_measures_and_nothing_begins_after_that(site: Site) -> None:
    Environment(baseline_s=12.0).save("measures", overwrite=True)
    process = site.deploying(site.change(), ENDLESS, HEARS, where="measures")
    wait_for_gate(site, process)
    control(site.view().opened.deployment, "pause", "Ada", "a look")
    wait_for_note(site, "paused", process)
    assert site.view().baseline("before") is None, "it was heard in mid-measurement"
    wait_until(
        lambda: site.view().baseline("before") is not None,
        timeout_s=PATIENCE_S,
        what="the baseline",
        process=process,
    )
    time.sleep(2)
    assert not site.view().intents
    process.kill()


def test_nothing_happens_until_a_person_approves(site: Site) -> None:
    environment = asks_for_approval("asks-first")
    process = site.deploying(site.change(), InPlace(instance="blue-1"), where=environment)
    run = wait_for_question(site, process)
    assert site.application.observed() == site.before
    assert not site.view().intents

    answer = {"approved": True, "by": "Ada", "words": "looks good"}
    site.ask("POST", f"flow_runs/{run}/resume", {"run_input": answer}).raise_for_status()
    site.ended(process)
    view = site.view()
    assert view.state == "promoted"
    assert view.approval
    assert (view.approval.by, view.approval.words) == ("Ada", "looks good")


@pytest.mark.parametrize("how", ["refused", "aborted"])
def test_a_refused_deployment_changes_nothing(site: Site, how: str) -> None:
    environment = asks_for_approval("asks-first")
    process = site.deploying(site.change(), ENDLESS, HEARS, where=environment)
    run = wait_for_question(site, process)
    if how == "refused":
        answer = {"approved": False, "by": "Ada", "words": "not today"}
        site.ask("POST", f"flow_runs/{run}/resume", {"run_input": answer}).raise_for_status()
    else:
        said = control(site.view().opened.deployment, "abort", "Ada", "not today")
        assert "it waited for approval, which is refused" in said
    site.ended(process)

    assert site.view().state == "aborted"
    assert "Ada" in site.view().reason
    assert "not today" in site.view().reason
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_an_approval_that_nobody_gives_ends_the_deployment(site: Site) -> None:
    Environment(approval=True, approval_timeout_s=3).save("asks-briefly", overwrite=True)
    process = site.deploying(site.change(), ENDLESS, where="asks-briefly")
    site.ended(process)

    assert site.view().state == "aborted"
    assert "Nobody approved it within 3 s" in site.view().reason
    assert site.application.observed() == site.before


def test_a_deployment_killed_while_it_waits_for_approval_has_changed_nothing(site: Site) -> None:
    environment = asks_for_approval("asks-first")
    process = site.deploying(site.change(), ENDLESS, where=environment)
    wait_for_question(site, process)
    process.kill()
    recover()

    assert site.view().state == "aborted"
    assert site.application.observed() == site.before
    assert site.owner() is None


def test_a_word_that_comes_too_late_is_refused(site: Site) -> None:
    record = deploy(site.change(), InPlace(instance="blue-1"))
    with pytest.raises(InvalidRequestError, match=r"is promoted: .* To take it back, run roll-back"):
        control(record.deployment, "abort", "Ada", "second thoughts")
