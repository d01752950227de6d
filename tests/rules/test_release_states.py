"""What becomes of a release as its components' deployments go on."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from rules.entries import DeploymentState
from rules.environment import Monitoring
from rules.release_states import NOT_CHANGED, armed_s, decide, fallen, why_not_back

STATES = get_args(DeploymentState)


@pytest.mark.parametrize(
    ("states", "is_over", "what"),
    [
        (("promoted", "promoted"), False, "keep"),
        (("promoted", "promoted"), True, "complete"),
        (("promoted", "aborted"), True, "complete"),
        (("rolled_back", "promoted"), False, "take_back"),
        (("promoted", "rollback_failed"), False, "take_back"),
        (("rolling_back", "promoted"), False, "keep"),
        (("rolling_back", "promoted"), True, "keep"),
        (("superseded", "promoted"), False, "supersede"),
        (("superseded", "rolled_back"), False, "supersede"),
        # completing the components was cut short, and then one was taken back: its time was over
        (("completed", "promoted"), False, "complete"),
        (("completed", "rolled_back"), False, "complete"),
        (("aborted", "promoted"), False, "keep"),
    ],
)
def test_what_follows_from_the_components_of_a_promoted_release(states, is_over, what):
    named = dict(zip(("schema", "web"), states, strict=True))
    assert decide(named, is_over=is_over).what == what


def test_no_component_is_left_alone_once_another_was_taken_back_in_time():
    for states in product(STATES, repeat=2):
        decision = decide(dict(zip("ab", states, strict=True)), is_over=False)
        if "rolled_back" in states and set(states) <= {"promoted", "rolled_back", "rollback_failed"}:
            assert decision.what == "take_back", states
            assert decision.why


def test_nothing_is_decided_while_a_component_is_on_its_way():
    for state in STATES:
        if state != "superseded":
            assert decide({"a": "rolling_back", "b": state}, is_over=False).what == "keep"


def test_why_it_is_taken_back_names_the_component():
    assert (
        decide({"a": "promoted", "web": "rolled_back"}, is_over=False).why
        == "Its component web is rolled_back."
    )


def test_what_was_in_place_already_stands_and_what_was_taken_back_has_fallen():
    assert fallen({"a": "promoted", "b": "aborted"}) == ""
    assert (
        fallen({"a": "promoted", "b": "rolled_back", "c": "superseded"})
        == "b is rolled_back, c is superseded"
    )


def test_what_can_no_longer_be_taken_back_is_named():
    assert why_not_back({"a": "superseded", "b": "promoted", "c": "rolled_back"}) == "a is superseded"
    assert why_not_back(dict.fromkeys("ab", "promoted")) == ""


def test_nothing_that_is_not_changed_is_still_armed():
    assert not NOT_CHANGED & {"promoted", "running", "rolling_back", "rollback_failed", "superseded"}


def test_a_promotion_is_armed_for_its_monitoring_and_two_looks_more():
    assert armed_s(Monitoring(for_s=3600, every_s=900, probe_every_s=30)) == 3660
