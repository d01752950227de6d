"""Quantiles of probes: the nearest rank, and too few are no data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.latency import probe_readings, quantile


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([1.0], 0.95, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 21)], 0.95, 19.0),
        ([1.0, 2.0], 0.0, 1.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_a_quantile_is_the_value_of_the_nearest_rank(values, part, expected):
    assert quantile(values, part) == expected


@given(st.lists(st.floats(0, 60), min_size=1), st.floats(0, 1))
def test_at_least_that_part_of_the_values_is_not_above_it(values, part):
    found = quantile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-6


def test_no_values_have_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@pytest.mark.parametrize(
    ("count", "known"),
    [
        (0, set()),
        (2, set()),
        (3, {"latency_p50_s", "mean_response_s"}),
        (19, {"latency_p50_s", "mean_response_s"}),
    ],
)
def test_too_few_probes_are_no_data(count, known):
    found = probe_readings([0.1] * count, failed=1)
    assert {reading.name for reading in found if reading.status == "ok"} == known
    assert all(f"{count} probes answered, 1 failed" in reading.note for reading in found)


def test_enough_probes_have_median_p95_and_mean():
    found = {reading.name: reading.value for reading in probe_readings([0.1] * 18 + [1.0] * 2, failed=0)}
    assert found == {"latency_p50_s": 0.1, "latency_p95_s": 1.0, "mean_response_s": pytest.approx(0.19)}
