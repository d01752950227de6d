"""The delayed rollback: assessed, told, approved, executed, verified and documented."""

from __future__ import annotations

import pytest

from flows.delayed_rollback import delayed_roll_back
from flows.deploy import deploy
from lab.processes import Process, wait_until
from rules.errors import DeployError, InvalidRequestError
from rules.strategy import BlueGreen, InPlace, Watching
from tests.flows.site import EASY, PATIENCE_S, Site

QUICK = BlueGreen(watch=Watching(tick_s=0.2, deadline_s=20, limits=EASY))


def asking(site: Site, deployment: str) -> tuple[Process, str]:
    """Start one that asks first, and wait for its question; return its process and flow run."""
    parameters = {"deployment": deployment, "reason": "answers are slow"}
    process = site.run("flows.delayed_rollback.delayed_roll_back", parameters)

    def paused() -> list[str]:
        wanted = {"flow_runs": {"name": {"any_": [deployment]}, "state": {"type": {"any_": ["PAUSED"]}}}}
        return [str(run["id"]) for run in site.ask("POST", "flow_runs/filter", wanted).json()]

    wait_until(lambda: bool(paused()), timeout_s=PATIENCE_S, what="the question", process=process)
    return process, paused()[0]


def test_it_is_assessed_and_taken_back_without_asking_where_that_is_wanted(site: Site) -> None:
    name = deploy(site.change(), QUICK).deployment
    record = delayed_roll_back(name, "answers are slow", approval=False)

    assert record.state == "rolled_back"
    assert site.application.observed() == site.before
    assert site.owner() is None
    page = site.artifact(f"assessment-{name}")
    assert f"# Take back {name}?" in page
    assert "goes back to 1.0.0" in page
    assert "all traffic back to blue" in page
    assert "loses no data" in page
    assert "error_ratio: " in page
    assert "In the way" not in page


@pytest.mark.parametrize("approved", [True, False], ids=["approved", "refused"])
def test_a_person_is_asked_with_the_assessment(site: Site, *, approved: bool) -> None:
    name = deploy(site.change(), QUICK).deployment
    promoted = site.application.observed()
    process, run = asking(site, name)
    assert site.application.observed() == promoted
    answer = {"approved": approved, "by": "Ada", "words": "enough seen"}
    site.ask("POST", f"flow_runs/{run}/resume", {"run_input": answer}).raise_for_status()
    site.ended(process)

    assert site.view().state == ("rolled_back" if approved else "promoted")
    assert site.application.observed() == (site.before if approved else promoted)
    assert site.run_state(run)[0] == ("COMPLETED" if approved else "FAILED")


def test_what_was_changed_since_is_shown_and_refused(site: Site) -> None:
    name = deploy(site.change(), InPlace(instance="blue-1")).deployment
    deploy(site.change("3.0.0"), InPlace(instance="blue-1"))
    with pytest.raises(InvalidRequestError, match="is superseded, not promoted"):
        delayed_roll_back(name, "answers are slow", approval=False)


def test_a_deployment_that_was_never_promoted_is_refused(site: Site) -> None:
    process = site.deploying_halfway(site.change())
    name = site.view().opened.deployment
    with pytest.raises(InvalidRequestError, match=r"is running, not promoted\. One that runs is aborted by"):
        delayed_roll_back(name, "answers are slow", approval=False)
    process.kill()


def test_a_deployment_that_nobody_knows_is_refused(site: Site) -> None:
    with pytest.raises(DeployError, match="has a journal of web-0-0-0"):
        delayed_roll_back("web-0-0-0", "answers are slow", approval=False)
