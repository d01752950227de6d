"""How a run and its deployment are told apart, and what a script hears of their end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rules.entries import DeploymentState, Entry, Moved, Opened
from rules.fleet import Fleet
from rules.journal import JournalView, view
from triggers.api_progress import Exit, Progress, ended_as

RUN = "00000000-0000-4000-8000-000000000001"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def journal(*states: DeploymentState, why: str = "why") -> JournalView:
    opened = Opened(
        at=AT,
        deployment="web-2-0-0-00000000",
        target="application-web",
        flow_run_id=RUN,
        host="here",
        fleet=Fleet(application="web", instances=()),
        summary="",
    )
    moves: list[Entry] = [Moved(at=AT, state=s, reason=f"{why} {s}", by="flow") for s in states]
    return view([opened, *moves])


def progress(
    run_state: str, *states: DeploymentState, message: str = "", run: str = RUN, why: str = "why"
) -> Progress:
    """A run that has a deployment of its own, in the last of `states`."""
    known = journal(*states, why=why)
    return Progress(
        flow_run_id=run,
        run_state=run_state,
        run_message=message,
        flow="deploy",
        deployment=known.opened.deployment,
        journal=known,
    )


def without_journal(run_state: str, message: str = "") -> Progress:
    return Progress(flow_run_id=RUN, run_state=run_state, run_message=message, flow="deploy")


def raised(error: str) -> str:
    return f"Flow run encountered an exception: {error}"


@pytest.mark.parametrize(
    ("run_state", "states", "is_over"),
    [
        ("RUNNING", (), False),
        ("RUNNING", ("promoted",), False),  # its monitoring is still to be scheduled
        ("COMPLETED", ("promoted",), True),
        ("PAUSED", (), False),
        # the hook, or recover, is still to come
        ("FAILED", (), False),
        ("CRASHED", (), False),
        ("CRASHED", ("rolling_back",), False),
        ("CANCELLED", ("rolling_back",), False),
        ("CRASHED", ("rolling_back", "rolled_back"), True),
        ("FAILED", ("rolling_back", "rollback_failed"), True),
        ("FAILED", ("blocked",), True),
        # Prefect has forgotten the run: the journal alone tells
        ("", (), False),
        ("", ("rolling_back", "rolled_back"), True),
    ],
)
def test_a_run_is_over_when_its_deployment_is_too(run_state, states, is_over):
    assert progress(run_state, *states).is_over is is_over


@pytest.mark.parametrize(
    ("run_state", "is_over"), [("SCHEDULED", False), ("RUNNING", False), ("FAILED", True)]
)
def test_without_a_journal_the_run_decides(run_state, is_over):
    assert without_journal(run_state).is_over is is_over


def test_a_run_about_another_deployment_does_not_wait_for_that():
    about = progress("FAILED", run="00000000-0000-4000-8000-000000000002")
    assert not about.is_own
    assert about.is_over


def test_a_roll_back_whose_process_died_is_not_over_before_recover_has_ended_it():
    assert not progress("CRASHED", "promoted", "rolling_back", run=OTHER).is_over
    assert progress("CRASHED", "promoted", "rolling_back", "rolled_back", run=OTHER).is_over


def test_of_a_promotion_whose_run_has_failed_since_both_are_told():
    ended = ended_as(progress("FAILED", "promoted", message=raised("OSError: no space")))
    assert (ended.exit_code, ended.reason) == (Exit.GOOD, "why promoted Its run is FAILED since: no space")


@pytest.mark.parametrize(
    ("run_state", "states", "code"),
    [
        ("COMPLETED", ("promoted",), Exit.GOOD),
        ("CRASHED", ("promoted",), Exit.GOOD),  # only its book-keeping was cut short
        ("COMPLETED", ("promoted", "completed"), Exit.GOOD),
        ("COMPLETED", ("promoted", "superseded"), Exit.GOOD),
        ("COMPLETED", ("aborted",), Exit.GOOD),  # in place already
        ("FAILED", ("aborted",), Exit.NOTHING_CHANGED),
        ("FAILED", ("rolling_back", "rolled_back"), Exit.ROLLED_BACK),
        ("COMPLETED", ("promoted", "rolling_back", "rolled_back"), Exit.ROLLED_BACK),
        ("FAILED", ("rolling_back", "rollback_failed"), Exit.ROLLBACK_FAILED),
        ("FAILED", ("blocked",), Exit.BLOCKED),
    ],
)
def test_the_deployment_decides_on_the_exit_code(run_state, states, code):
    ended = ended_as(progress(run_state, *states))
    assert (ended.exit_code, ended.state) == (code, states[-1])


@pytest.mark.parametrize(
    ("run_state", "message", "code", "state"),
    [
        ("COMPLETED", "All states completed.", Exit.GOOD, "finished"),
        ("CANCELLED", "", Exit.NOTHING_CHANGED, "aborted"),
        ("CRASHED", "Process died", Exit.UNEXPECTED, "crashed"),
        ("FAILED", raised("LockHeldError: web is taken"), Exit.NOTHING_CHANGED, "aborted"),
        ("FAILED", raised("InvalidRequestError: no canary of a schema"), Exit.BAD_REQUEST, "failed"),
        ("FAILED", raised("ValueError: Unable to find block document named x"), Exit.BAD_REQUEST, "failed"),
        ("FAILED", "Validation of flow parameters failed with error: …", Exit.BAD_REQUEST, "failed"),
        ("FAILED", raised("ApiUnavailableError: away"), Exit.API_AWAY, "failed"),
        ("FAILED", raised("KeyError: 'x'"), Exit.UNEXPECTED, "failed"),
    ],
)
def test_a_run_that_left_no_journal_is_told_by_prefects_words(run_state, message, code, state):
    ended = ended_as(without_journal(run_state, message))
    assert (ended.exit_code, ended.state) == (code, state)
    assert ended.record is None


def test_the_reason_is_that_of_the_rollback_and_not_of_its_end():
    assert ended_as(progress("FAILED", "rolling_back", "rolled_back")).reason == "why rolling_back"
    failed = ended_as(progress("FAILED", "rolling_back", "rollback_failed"))
    assert failed.reason == "why rolling_back The way back failed: why rollback_failed"


OTHER = "00000000-0000-4000-8000-000000000002"


@pytest.mark.parametrize(
    ("about", "ended"),
    [
        (
            progress("COMPLETED", "promoted", "rolling_back", "rolled_back", run=OTHER),
            (Exit.GOOD, "rolled_back", "why rolling_back"),
        ),
        # its process died, and recover went on with it
        (
            progress("CRASHED", "promoted", "rolling_back", "rolled_back", message="gone", run=OTHER),
            (Exit.GOOD, "rolled_back", "why rolling_back"),
        ),
        # a cancellation came too late for nothing to be changed
        (
            progress("CANCELLED", "rolling_back", "rollback_failed", message="by Ada", run=OTHER),
            (Exit.ROLLBACK_FAILED, "rollback_failed", "by Ada"),
        ),
        (
            progress("FAILED", "promoted", message=raised("WorldMovedError: it has moved"), run=OTHER),
            (Exit.NOTHING_CHANGED, "promoted", "it has moved"),
        ),
        (
            progress(
                "FAILED", "rolling_back", "rollback_failed", message=raised("DeployError: no"), run=OTHER
            ),
            (Exit.ROLLBACK_FAILED, "rollback_failed", "no"),
        ),
    ],
)
def test_a_roll_back_is_judged_by_what_it_was_asked_for(about, ended):
    said = ended_as(about)
    assert (said.exit_code, said.state, said.reason) == ended
