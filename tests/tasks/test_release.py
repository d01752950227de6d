"""A release goes back as a whole, newest component first, whatever became of each, from its journal alone."""

from __future__ import annotations

import time

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from rules.entries import Moved
from rules.errors import CutOffError, FencedError, StepFailedError, WorldMovedError
from rules.release_plan import plan_release
from tasks.deployment import open_deployment, supersede_promoted
from tasks.lease import current_holding
from tasks.prefect_api import PrefectApi
from tasks.recover import recover, recover_all, roll_back_by_person
from tasks.release import refuse_fallen
from tasks.settings import Settings
from tests.tasks.deploying import another_process, opening
from tests.tasks.releases import Left

GOOD = {"schema": "promoted", "index": "promoted", "web": "promoted"}
BACK = dict.fromkeys(GOOD, "rolled_back")


def taken_back(left: Left):
    return recover(left.name, cause="The process that ran it is gone.", by="test", settings=left.settings)


def went_back_at(left: Left, name: str):
    return next(e.at for e in left.view(name).entries if isinstance(e, Moved) and e.state == "rolling_back")


# --- a release whose process is gone ---------------------------------------------------------------


def test_its_components_go_back_newest_first(api, settings):
    left = Left(settings, GOOD)
    assert taken_back(left).state == "rolled_back"
    assert left.states() == BACK
    times = [went_back_at(left, name) for name in ("web", "index", "schema")]
    assert times == sorted(times)
    assert left.view("web").cause == f"{left.name} is taken back: The process that ran it is gone."
    assert {e.by for e in left.view("web").entries if isinstance(e, Moved)} == {"test", "release"}


@pytest.mark.parametrize("state", ["", "running", "rolling_back", "rolled_back", "aborted", "blocked"])
def test_whatever_became_of_the_last_component_all_others_go_back(api, settings, state):
    left = Left(settings, {**GOOD, "web": state})
    assert taken_back(left).state == "rolled_back"
    assert set(left.states().values()) <= {"rolled_back", "aborted", "blocked"}
    assert left.view("schema").state == "rolled_back"


def test_whoever_is_recovered_first_it_comes_to_the_same(api, settings):
    left = Left(settings, {**GOOD, "web": "running"})
    recover(left.ids["web"], cause="It is gone.", by="test", settings=settings)
    assert taken_back(left).state == "rolled_back"
    assert left.states() == {**BACK, "web": "aborted"}


def test_those_who_look_after_all_of_them_need_one_look(api, settings):
    left = Left(settings, {**GOOD, "web": "running"})
    recover_all(by="test", settings=settings)
    assert left.view().state == "rolled_back"
    assert left.states() == {**BACK, "web": "aborted"}
    assert current_holding(api, left.opened.target) is None


def test_one_that_is_recovered_again_goes_on_where_the_first_was_stopped(api, settings):
    left = Left(settings, {**GOOD, "web": "rolled_back", "index": "rolled_back"}, state="rolling_back")
    assert taken_back(left).state == "rolled_back"
    assert left.states() == BACK


def test_a_component_whose_process_lives_is_left_alone_and_its_release_open(api, settings):
    left = Left(settings, {**GOOD, "web": ""})
    opened = left.part("web")

    def live(ready) -> None:
        with left.journal("web").begun(opened):
            ready()
            time.sleep(60)

    with another_process(live), pytest.raises(FencedError, match="lives and is left alone"):
        taken_back(left)
    assert left.view().state == "rolling_back"
    assert left.view("schema").state == "promoted"
    assert taken_back(left).state == "rolled_back"
    assert left.states() == {**BACK, "web": "aborted"}


def test_with_prefect_away_a_component_goes_back_by_the_lease_of_its_release(settings: Settings):
    left = Left(settings, GOOD)
    left.journal("web").note_lease(time.time() - 60)
    with temporary_settings({PREFECT_API_URL: None}):
        with pytest.raises(CutOffError, match="is over"):
            taken_back(left)
        left.journal().note_lease(time.time() + 60)
        assert taken_back(left).state == "rolled_back"
    assert left.states() == BACK


# --- a way back that fails -------------------------------------------------------------------------


def test_when_a_component_cannot_go_back_older_ones_stay_and_the_targets_stay_held(api, settings):
    left = Left(settings, {**GOOD, "index": "rollback_failed", "web": "rolled_back"})
    after = taken_back(left)
    assert after.state == "rollback_failed"
    assert f"{left.ids['index']}: left by a test" in after.reason
    assert left.view("schema").state == "promoted"
    assert not (settings.journal_dir / f"{left.ids['index']}-again").exists()
    holding = current_holding(api, left.opened.target)
    assert holding
    assert set(holding.owner.holds) == set(left.targets.values())


def test_a_person_has_it_go_on_once_the_cause_is_mended(api, settings):
    left = Left(settings, {**GOOD, "index": "rollback_failed", "web": "rolled_back"})
    taken_back(left)
    again = roll_back_by_person(left.name, reason="mended", settings=settings)
    assert (again.opened.deployment, again.state) == (f"{left.name}-again", "rolled_back")
    assert left.view("schema").state == "rolled_back"
    assert left.view("index").state == "rollback_failed"  # what has ended stays as it ended
    assert current_holding(api, left.opened.target) is None


def test_a_component_that_a_person_has_taken_back_by_itself_is_not_taken_back_twice(api, settings):
    left = Left(settings, {**GOOD, "index": "rollback_failed", "web": "rolled_back"}, state="rollback_failed")
    roll_back_by_person(left.ids["index"], reason="mended", settings=settings)
    assert roll_back_by_person(left.name, reason="go on", settings=settings).state == "rolled_back"
    assert not (settings.journal_dir / f"{left.ids['index']}-again-again").exists()
    assert left.view("schema").state == "rolled_back"


# --- a release that was promoted -------------------------------------------------------------------


def test_a_person_takes_a_promoted_release_back_as_a_whole(api, settings):
    left = Left(settings, GOOD, state="promoted")
    after = roll_back_by_person(left.name, reason="users complain", settings=settings)
    assert (after.state, after.cause) == ("rolled_back", "users complain")
    assert left.states() == BACK


@pytest.mark.parametrize("state", ["superseded", "completed"])
def test_it_is_refused_before_anything_is_changed_where_one_can_no_longer_go_back(api, settings, state):
    left = Left(settings, {**GOOD, "schema": state}, state="promoted")
    with pytest.raises(WorldMovedError, match=f"schema is {state}. Nothing was changed"):
        roll_back_by_person(left.name, reason="too late", settings=settings)
    assert left.view().state == "promoted"
    assert left.states() == {**GOOD, "schema": state}
    assert current_holding(api, left.opened.target) is None


def test_a_component_on_the_same_target_does_not_disarm_those_before_it(api, settings):
    left = Left(settings, {"schema": "promoted"})
    stranger = Left(settings, {"other": "promoted"}, state="promoted")
    later = left.part("schema").model_copy(update={"deployment": f"{left.name}-2-index"})
    supersede_promoted(later, api, settings)
    assert left.view("schema").state == "promoted"
    supersede_promoted(later.model_copy(update={"part_of": ""}), api, settings)
    assert left.view("schema").state == "superseded"
    assert stranger.view("other").state == "promoted"


def test_a_release_goes_on_only_while_all_before_stand(settings):
    left = Left(settings, {**GOOD, "index": "aborted", "web": ""})
    refuse_fallen(left.view(), settings, done=["schema", "index"])  # that one was in place already
    left = Left(settings, {**GOOD, "schema": "rolled_back"})
    refuse_fallen(left.view(), settings, done=["index"])
    with pytest.raises(StepFailedError, match="taken back meanwhile: schema is rolled_back"):
        refuse_fallen(left.view(), settings, done=["schema", "index"])


# --- in its own process ----------------------------------------------------------------------------


def test_a_component_hears_what_is_asked_of_its_release(api: PrefectApi, settings: Settings):
    whole = opening()
    with (
        open_deployment(whole, api, settings) as release,
        open_deployment(opening(part_of=whole.deployment), api, settings) as part,
    ):
        part.prove_ours()
        part.whole = release
        part.prove_ours()
        release.journal.append(Moved(state="rolling_back", reason="by another", by="test"))
        with pytest.raises(FencedError, match=f"{release.name} was given up for dead"):
            part.prove_ours()


def test_a_release_goes_back_in_the_middle_of_the_step_in_which_its_component_failed(
    api: PrefectApi, settings: Settings
):
    left = Left(settings, {"schema": "promoted"})
    (step,) = plan_release(left.release, left.name).steps
    with open_deployment(opening(deployment=f"{left.name}-own"), api, settings) as release:

        def fail() -> None:
            assert release.roll_back("web failed").state == "rolled_back"
            raise StepFailedError("web failed")

        with pytest.raises(StepFailedError):
            release.perform(step, fail)
    assert left.view("schema").state == "rolled_back"
