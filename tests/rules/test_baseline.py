"""Baselines: no data is never 0, and a small move is no verdict."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.baseline import Baseline, Comparison, Tolerance, Tolerances, compare

RATIOS = st.none() | st.floats(0, 1)
RESPONSES = st.none() | st.floats(0, 60)
BASELINES = st.builds(
    Baseline,
    window_s=st.floats(1, 600),
    requests=st.integers(0, 10**6),
    error_ratio=RATIOS,
    mean_response_s=RESPONSES,
)


def baseline(
    error_ratio: float | None = 0.01, mean_response_s: float | None = 0.1, requests: int = 600
) -> Baseline:
    return Baseline(window_s=60, requests=requests, error_ratio=error_ratio, mean_response_s=mean_response_s)


def comparison(name: str, before: Baseline, after: Baseline) -> Comparison:
    return next(found for found in compare(before, after) if found.name == name)


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        (0.0, 0.0, "same"),
        (0.0, 0.001, "same"),
        (0.0, 0.005, "same"),
        (0.0, 0.006, "worse"),
        (0.010, 0.015, "same"),
        (0.010, 0.016, "worse"),
        (0.010, 0.004, "better"),
        (0.100, 0.125, "same"),
        (0.100, 0.126, "worse"),
        (0.100, 0.074, "better"),
        (1.0, 0.0, "better"),
        (None, 0.5, "no_data"),
        (0.5, None, "no_data"),
        (None, None, "no_data"),
        (math.nan, 0.0, "no_data"),
        (0.0, math.nan, "no_data"),
    ],
)
def test_an_error_ratio_is_judged_beyond_a_quarter_and_half_a_percent(
    before: float | None, after: float | None, result: str
) -> None:
    assert comparison("error_ratio", baseline(before), baseline(after)).result == result


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        (0.002, 0.011, "same"),
        (0.002, 0.013, "worse"),
        (0.200, 0.250, "same"),
        (0.200, 0.251, "worse"),
        (0.200, 0.100, "better"),
        (math.inf, 0.1, "no_data"),
    ],
)
def test_a_mean_response_is_judged_beyond_a_quarter_and_ten_milliseconds(
    before: float | None, after: float | None, result: str
) -> None:
    found = comparison("mean_response_s", baseline(0.0, before), baseline(0.0, after))
    assert found.result == result


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [(600, 300, "same"), (600, 299, "worse"), (600, 901, "better"), (600, 0, "worse"), (0, 0, "same")],
)
def test_traffic_that_went_away_is_worse_and_zero_requests_are_a_finding(
    before: int, after: int, result: str
) -> None:
    found = comparison("requests_per_s", baseline(requests=before), baseline(requests=after))
    assert found.result == result


def test_each_metric_says_which_way_is_better_and_what_was_let_pass() -> None:
    found = {c.name: (c.direction, c.tolerance) for c in compare(baseline(), baseline())}
    defaults = Tolerances()
    assert found == {
        "error_ratio": ("lower_is_better", defaults.error_ratio),
        "mean_response_s": ("lower_is_better", defaults.mean_response_s),
        "requests_per_s": ("higher_is_better", defaults.requests_per_s),
    }


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.01, 0.03, "from 0.01 to 0.03 (+200%)"),
        (0.0, 0.03, "from 0 to 0.03"),
        (0.01, 0.01, "unchanged at 0.01"),
        (None, 0.01, "no data before the change"),
        (0.01, None, "no data after the change"),
        (None, None, "no data before and after the change"),
    ],
)
def test_the_change_is_said_in_words(before: float | None, after: float | None, words: str) -> None:
    assert comparison("error_ratio", baseline(before), baseline(after)).change == words


def test_declared_tolerances_replace_the_defaults() -> None:
    strict = Tolerances(error_ratio=Tolerance(relative=0, floor=0))
    found = {c.name: c.result for c in compare(baseline(0.01), baseline(0.0101), strict)}
    assert found == {"error_ratio": "worse", "mean_response_s": "same", "requests_per_s": "same"}


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_ratio_outside_0_and_1_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        baseline(value)


def test_a_window_of_no_length_is_refused() -> None:
    with pytest.raises(ValidationError):
        Baseline(window_s=0, requests=0)


@given(BASELINES)
def test_nothing_changed_is_never_better_or_worse(same: Baseline) -> None:
    assert {c.result for c in compare(same, same)} <= {"same", "no_data"}


@given(BASELINES, BASELINES)
def test_there_is_no_data_exactly_where_a_value_is_missing(before: Baseline, after: Baseline) -> None:
    for found in compare(before, after):
        assert (found.result == "no_data") == (found.before is None or found.after is None)


@given(BASELINES, BASELINES)
def test_a_comparison_survives_json(before: Baseline, after: Baseline) -> None:
    for found in compare(before, after):
        assert Comparison.model_validate_json(found.model_dump_json()) == found
    assert Baseline.model_validate_json(before.model_dump_json()) == before
