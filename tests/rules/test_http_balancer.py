"""The calls of an HTTP balancer lead from any split to any other, past no side that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.http_balancer import ReportedStatus, SetCanary, Switch, calls, traffic_of
from rules.traffic import Traffic

SIDES = ("blue", "green")


def split(live: str, percentage: int) -> Traffic:
    candidate = next(side for side in SIDES if side != live)
    return Traffic(live=live, candidate=candidate, canary_basis_points=percentage * 100)


splits = st.builds(split, st.sampled_from(SIDES), st.integers(0, 100))


def after(now: Traffic, call: Switch | SetCanary, *, resets: bool) -> Traffic:
    """Return what a balancer with such an API does then."""
    if isinstance(call, SetCanary):
        return split(now.live, call.percentage)
    return split(call.environment, 0 if resets else now.canary_basis_points // 100)


@given(splits, splits, st.booleans())
def test_the_calls_lead_to_the_split_that_is_wanted(now, wanted, resets):
    for call in calls(now, wanted, switch_resets_canary=resets):
        now = after(now, call, resets=resets)
    assert now == wanted


@given(splits, splits, st.booleans())
def test_nobody_is_sent_to_a_side_that_is_neither_live_nor_carries_traffic_before_or_after(
    now, wanted, resets
):
    fine = {now.live, *now.carrying, *wanted.carrying}
    for call in calls(now, wanted, switch_resets_canary=resets):
        now = after(now, call, resets=resets)
        assert set(now.carrying) <= fine


@given(splits, splits)
def test_an_api_that_does_both_in_one_act_has_no_moment_in_between(now, wanted):
    fine = {*now.carrying, *wanted.carrying}
    for call in calls(now, wanted, switch_resets_canary=True):
        now = after(now, call, resets=True)
        assert set(now.carrying) <= fine | {wanted.live}


@given(splits)
def test_what_is_in_force_needs_no_call(now):
    assert calls(now, now) == ()


def test_a_canary_is_ended_before_the_switch():
    assert calls(split("blue", 100), split("green", 0)) == (
        SetCanary(percentage=0),
        Switch(environment="green"),
    )


@pytest.mark.parametrize(("environment", "percentage"), [("red", 0), ("blue", 10.001)])
def test_a_report_that_is_no_split_is_refused(environment, percentage):
    with pytest.raises(ValueError, match=r"the live environment is red|finer than"):
        traffic_of(ReportedStatus(environment=environment, percentage=percentage), SIDES)


@pytest.mark.parametrize("percentage", [0.29, 0.07, 57.99])
def test_a_report_of_hundredths_of_a_percent_is_exact(percentage):
    reported = traffic_of(ReportedStatus(environment="blue", percentage=percentage), SIDES)
    assert reported.canary_basis_points / 100 == percentage


def test_a_report_is_a_split_with_the_other_environment_as_candidate():
    assert traffic_of(ReportedStatus(environment="green", percentage=12.5), SIDES) == Traffic(
        live="green", candidate="blue", canary_basis_points=1_250
    )
