"""Baselines: no data is never 0, an absent provider is no bad release, a small move no verdict."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.baseline import METRICS, Baseline, Comparison, MetricQuery, Reading, Tolerance, compare
from rules.judge_metrics import judge_declared

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
NAMES = [metric.name for metric in METRICS]
QUEUE = MetricQuery(
    name="queue_length",
    query="max_over_time(queue_length[$window])",
    tolerance=Tolerance(relative=0.5, floor=2),
    rolls_back=True,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
KNOWN = st.builds(dict, value=FINITE, status=st.just("ok"))
UNKNOWN = st.builds(
    dict, value=st.none(), status=st.sampled_from(["no_data", "provider_error", "absent"]), note=st.text()
)


@st.composite
def baselines(draw: st.DrawFn) -> Baseline:
    names = draw(st.sets(st.sampled_from([*NAMES, QUEUE.name])))
    readings = tuple(
        Reading(name=name, source=draw(st.sampled_from(["a", "b"])), **draw(KNOWN | UNKNOWN))
        for name in sorted(names)
    )
    return Baseline(window_s=60, at=AT, readings=readings)


def baseline(*readings: Reading, window_s: float = 60) -> Baseline:
    return Baseline(window_s=window_s, at=AT, readings=readings)


def reading(name: str, value: float | None, **fields: str) -> Reading:
    return Reading(name=name, value=value, source="test", **fields)


def compared(name: str, before: float | None, after: float | None) -> Comparison:
    found = compare(baseline(reading(name, before)), baseline(reading(name, after)))
    return next(comparison for comparison in found if comparison.name == name)


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
        (0.0, math.inf, "no_data"),
        (-math.inf, 0.0, "no_data"),
    ],
)
def test_an_error_ratio_is_judged_beyond_a_quarter_and_half_a_percent(before, after, result):
    assert compared("error_ratio", before, after).result == result


@pytest.mark.parametrize(
    ("name", "before", "after", "result"),
    [
        ("mean_response_s", 0.002, 0.011, "same"),
        ("mean_response_s", 0.002, 0.013, "worse"),
        ("mean_response_s", 0.200, 0.251, "worse"),
        ("latency_p50_s", 0.100, 0.100, "same"),
        ("latency_p95_s", 0.100, 0.126, "worse"),
        ("latency_p95_s", 0.005, 0.024, "same"),
        ("requests_per_s", 10, 5, "same"),
        ("requests_per_s", 10, 4.9, "worse"),
        ("requests_per_s", 10, 0, "worse"),
        ("requests_per_s", 10, 15.1, "better"),
        ("requests_per_s", 0, 0, "same"),
        ("cpu_ratio", 0.30, 0.40, "same"),
        ("cpu_ratio", 0.30, 0.41, "worse"),
        ("memory_ratio", 0.50, 0.58, "worse"),
        ("disk_ratio", 0.20, 0.23, "same"),
        ("disk_ratio", 0.20, 0.24, "worse"),
        ("network_bytes_per_s", 1e5, 1.1e6, "same"),
        ("network_bytes_per_s", 1e7, 2.1e7, "worse"),
        ("gpu_ratio", 0.10, 0.30, "same"),
        ("gpu_memory_ratio", 0.50, 0.60, "worse"),
        ("gpu_memory_ratio", 0.50, 0.40, "better"),
    ],
)
def test_each_metric_has_its_own_direction_and_tolerance(name, before, after, result):
    assert compared(name, before, after).result == result


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        ("absent", "absent", "same"),
        ("absent", "no_data", "no_data"),
        ("absent", "provider_error", "provider_error"),
        ("absent", "ok", "no_data"),
        ("ok", "absent", "worse"),
        ("no_data", "provider_error", "provider_error"),
        ("provider_error", "ok", "provider_error"),
        ("ok", "provider_error", "provider_error"),
        ("ok", "ok", "same"),
    ],
)
def test_no_gpu_is_a_value_and_a_gpu_that_went_is_worse(before, after, result):
    one, other = (
        reading("gpu_ratio", 0.5 if status == "ok" else None, status=status) for status in (before, after)
    )
    found = {c.name: c.result for c in compare(baseline(one), baseline(other))}
    assert found["gpu_ratio"] == result


def test_what_two_sources_say_is_not_compared():
    probe = Reading(name="latency_p95_s", unit="s", value=0.1, source="probe")
    histogram = Reading(name="latency_p95_s", unit="s", value=0.9, source="prometheus")
    found = {c.name: c for c in compare(baseline(probe), baseline(histogram))}["latency_p95_s"]
    assert (found.result, found.change) == ("no_data", "by probe: 0.1 s; after by prometheus: 0.9 s")


def test_all_metrics_are_in_the_answer_measured_or_not():
    found = compare(baseline(), baseline())
    assert [c.name for c in found] == NAMES
    assert {c.result for c in found} == {"no_data"}
    assert {c.change for c in found} == {"no data (not measured), before and after"}


def test_only_the_error_ratio_and_what_users_declare_so_takes_a_change_back():
    found = compare(baseline(), baseline(), [QUEUE, MetricQuery(name="other", query="up")])
    assert [c.name for c in found if c.rolls_back] == ["error_ratio", "queue_length"]
    worse = compared("error_ratio", 0.0, 0.5)
    assert worse.takes_back
    assert not compared("error_ratio", None, 0.5).takes_back
    assert not compared("latency_p95_s", 0.1, 50.0).takes_back


def test_a_declared_metric_takes_the_place_of_ours():
    strict = MetricQuery(
        name="cpu_ratio", query="x", tolerance=Tolerance(relative=0, floor=0), rolls_back=True
    )
    one, other = baseline(reading("cpu_ratio", 0.30)), baseline(reading("cpu_ratio", 0.31))
    found = compare(one, other, [strict])
    assert [c.name for c in found] == NAMES
    assert next(c for c in found if c.name == "cpu_ratio").takes_back


def test_windows_of_different_length_are_not_compared():
    with pytest.raises(ValueError, match=r"60 s cannot be compared with one of 30 s"):
        compare(baseline(), baseline(window_s=30))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.01, 0.03, "from 0.01 to 0.03 (+200%)"),
        (0.0, 0.03, "from 0 to 0.03"),
        (0.01, 0.01, "unchanged at 0.01"),
        (-2.0, -1.0, "from -2 to -1 (+50%)"),
        (None, 0.01, "before: no data; after: 0.01"),
        (0.01, None, "before: 0.01; after: no data"),
        (None, None, "no data, before and after"),
    ],
)
def test_the_change_is_said_in_words(before, after, words):
    assert compared("error_ratio", before, after).change == words


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_none_is_no_data_and_never_0(value):
    found = reading("error_ratio", value)
    assert (found.value, found.status, found.in_words) == (None, "no_data", "no data")


@pytest.mark.parametrize("status", ["no_data", "provider_error", "absent"])
def test_a_reading_that_is_not_ok_has_no_value(status):
    with pytest.raises(ValidationError, match="cannot have the value"):
        reading("error_ratio", 0.0, status=status)


def test_a_window_has_a_length_and_a_moment_with_a_time_zone():
    for fields in ({"window_s": 0, "at": AT}, {"window_s": 1, "at": AT.replace(tzinfo=None)}):
        with pytest.raises(ValidationError):
            Baseline(**fields)
    with pytest.raises(ValidationError, match="two readings have one name"):
        baseline(reading("cpu_ratio", 1), reading("cpu_ratio", 2))


def test_declared_metrics_are_judged_at_each_look_as_they_are_in_the_comparison():
    before = baseline(reading(QUEUE.name, 10))
    looks = [
        ([reading(QUEUE.name, 15)], "same"),
        ([reading(QUEUE.name, 15.1)], "worse"),
        ([reading(QUEUE.name, math.nan)], "no_data"),
        ([reading(QUEUE.name, None, status="provider_error")], "provider_error"),
        ([], "no_data"),
    ]
    for readings, result in looks:
        (found,) = judge_declared(readings, before, [QUEUE])
        assert (found.result, found.takes_back) == (result, result == "worse")
    assert judge_declared([reading("stray", 1)], before, []) == ()


@given(baselines())
def test_nothing_changed_is_never_better_or_worse(same):
    assert not {c.result for c in compare(same, same, [QUEUE])} & {"better", "worse"}


@given(baselines(), baselines())
def test_better_and_worse_need_two_values_but_for_what_has_gone(before, after):
    for found in compare(before, after, [QUEUE]):
        if found.result in ("better", "same", "worse") and None in (found.before, found.after):
            statuses = before.reading(found.name).status, after.reading(found.name).status
            assert statuses in (("absent", "absent"), ("ok", "absent"))


@given(baselines(), baselines())
def test_all_of_it_survives_json(before, after):
    for found in compare(before, after, [QUEUE]):
        assert Comparison.model_validate_json(found.model_dump_json()) == found
    assert Baseline.model_validate_json(before.model_dump_json()) == before
