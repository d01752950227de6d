"""What becomes of a promoted release: it follows its components, and they end together."""

from __future__ import annotations

import fcntl
from datetime import timedelta

from rules.environment import Environment, Monitoring
from tasks.recover import recover_all, roll_back_by_person
from tests.tasks.releases import Left

#: Watched for an hour.
SHORT = Environment(monitoring=Monitoring(for_s=3600, every_s=60, probe_every_s=1))
GOOD = {"schema": "promoted", "web": "promoted"}


def looked_at(left: Left):
    found = {one.deployment: one for one in recover_all(by="test", settings=left.settings)}
    return found[left.name]


def test_when_one_component_was_taken_back_the_others_follow(api, settings):
    left = Left(settings, {"schema": "promoted", "index": "promoted", "web": "promoted"}, state="promoted")
    roll_back_by_person(left.ids["index"], reason="it is slow", settings=settings)
    one = looked_at(left)
    assert (one.state, one.acted, one.reason) == ("rolled_back", True, "Its component index is rolled_back.")
    assert set(left.states().values()) == {"rolled_back"}


def test_as_long_as_all_stand_nothing_is_done(api, settings):
    left = Left(settings, GOOD, state="promoted")
    assert not looked_at(left).acted
    assert left.states() == GOOD
    assert left.view().state == "promoted"


def test_when_a_component_is_deployed_anew_the_release_is_superseded(api, settings):
    left = Left(settings, {**GOOD, "web": "superseded"}, state="promoted")
    one = looked_at(left)
    assert (one.state, one.reason) == ("superseded", "web was deployed anew.")
    assert left.view("schema").state == "promoted"  # it can still be taken back by itself


def test_components_are_completed_with_their_release_and_not_before(api, settings):
    left = Left(settings, GOOD, state="promoted", ago=timedelta(minutes=50), environment=SHORT)
    assert looked_at(left).state == "promoted"
    assert left.states() == GOOD

    left = Left(settings, GOOD, state="promoted", ago=timedelta(minutes=70), environment=SHORT)
    assert looked_at(left).state == "completed"
    assert left.states() == dict.fromkeys(GOOD, "completed")


def test_a_promoted_component_of_a_release_that_lives_stays_armed_however_long_that_takes(api, settings):
    left = Left(settings, GOOD, ago=timedelta(hours=48), environment=SHORT)
    with (left.journal().directory / "alive").open("a+") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        recover_all(by="test", settings=settings)
    assert left.view().state == "running"
    assert left.states() == GOOD


def test_what_was_cut_short_while_it_was_completed_is_completed(api, settings):
    left = Left(settings, {**GOOD, "schema": "completed"}, state="promoted")
    assert looked_at(left).state == "completed"
    assert left.states() == dict.fromkeys(GOOD, "completed")


def test_a_component_of_a_superseded_release_ends_by_its_own_time(api, settings):
    left = Left(settings, GOOD, state="superseded", ago=timedelta(minutes=70), environment=SHORT)
    recover_all(by="test", settings=settings)
    assert left.states() == dict.fromkeys(GOOD, "completed")


def test_what_a_failed_way_back_has_left_stays_armed_until_it_is_taken_up_again(api, settings):
    states = {"schema": "promoted", "index": "rollback_failed"}
    left = Left(settings, states, state="rollback_failed", ago=timedelta(minutes=70), environment=SHORT)
    recover_all(by="test", settings=settings)
    assert left.states() == states
