"""Benchmarks: each needs a limit, each limit needs a benchmark."""

from __future__ import annotations

import json

import pytest

from rules.evidence.benchmarks import judge_benchmarks, parse_benchmarks
from rules.finding import Result


def timed(**means):
    rows = [{"name": n, "fullname": f"t.py::{n}", "stats": {"mean": m}} for n, m in means.items()]
    return parse_benchmarks(json.dumps({"benchmarks": rows}).encode())


def plain(*rows):
    return parse_benchmarks(json.dumps(rows).encode())


@pytest.mark.parametrize(
    ("limits", "result"),
    [
        ({"a": 0.2, "b": 0.5}, Result.PASSED),
        ({"t.py::a": 0.2, "b": 0.5}, Result.PASSED),
        ({"a": 0.2, "t.py::a": 0.05, "b": 0.5}, Result.FAILED),  # the smaller limit counts
        ({"a": 0.05, "b": 0.5}, Result.FAILED),
        ({"a": 0.2}, Result.UNKNOWN),
        ({}, Result.UNKNOWN),
        ({"a": 0.2, "b": 0.5, "gone": 1.0}, Result.FAILED),
    ],
)
def test_pytest_benchmarks_means_are_held_to_their_limits(limits, result):
    assert judge_benchmarks(timed(a=0.1, b=0.4), limits).result is result


def test_words_name_the_benchmark_its_value_and_its_limit():
    found = judge_benchmarks(timed(slow=0.25), {"slow": 0.2})
    assert "slow took 0.25 s, at most 0.2 allowed" in found.evidence


def test_a_plain_list_brings_its_own_limits():
    row = {"name": "recall time", "value": 12.0, "limit": 15, "unit": "ms"}
    assert judge_benchmarks(plain(row), {}).result is Result.PASSED
    assert judge_benchmarks(plain({**row, "value": 15.1}), {}).result is Result.FAILED
    assert judge_benchmarks(plain({**row, "limit": None}), {}).result is Result.UNKNOWN


def test_a_broken_limit_is_not_hidden_by_another_that_is_missing():
    assert judge_benchmarks(timed(a=9.0, b=0.1), {"a": 1.0}).result is Result.FAILED


def test_nothing_measured_is_unknown_and_with_a_limit_failed():
    assert judge_benchmarks(plain(), {}).result is Result.UNKNOWN
    assert judge_benchmarks(plain(), {"a": 1.0}).result is Result.FAILED


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'[{"name": "a", "value": NaN, "limit": 1}]', b'[{"name": "a"}]', b'"x"']
)
def test_other_content_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_benchmarks(content)
