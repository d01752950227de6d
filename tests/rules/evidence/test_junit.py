"""JUnit XML: what counts as passed, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.evidence.junit import TestCounts, judge_tests, parse_junit
from rules.finding import Result

NESTED = b"""<?xml version="1.0"?>
<testsuites tests="99"><testsuite name="outer"><testsuite name="inner">
  <testcase classname="a" name="good"/>
  <testcase classname="a" name="flaky"><flakyFailure message="once"/></testcase>
  <testcase classname="a" name="bad"><failure message="m">text</failure></testcase>
  <testcase classname="a" name="broken"><error/></testcase>
  <testcase classname="a" name="both"><failure/><error/></testcase>
</testsuite></testsuite><testsuite><testcase name="left out"><skipped/></testcase></testsuite></testsuites>"""


def test_cases_are_counted_at_any_depth_whatever_the_totals_say():
    counts = parse_junit(NESTED)
    assert (counts.passed, counts.skipped) == (2, 1)
    assert counts.failed == ("a.bad", "a.broken", "a.both")


@pytest.mark.parametrize(
    ("passed", "failed", "minimum", "result"),
    [
        (91, 9, 0.9, Result.PASSED),
        (90, 10, 0.9, Result.FAILED),  # more than, not as many as
        (10, 0, 1.0, Result.PASSED),  # all of them always suffice
        (9, 1, 1.0, Result.FAILED),
        (0, 0, 0.0, Result.UNKNOWN),
        (0, 3, 0.0, Result.FAILED),
    ],
)
def test_more_than_the_ratio_must_pass(passed, failed, minimum, result):
    counts = TestCounts(passed=passed, failed=("x",) * failed, skipped=7)
    assert judge_tests([counts], min_passed_ratio=minimum).result is result


def test_several_files_are_judged_together_and_failures_are_named():
    good, bad = TestCounts(passed=8), TestCounts(passed=1, failed=("pkg.test_x",))
    found = judge_tests([good, bad], min_passed_ratio=0.95)
    assert found.result is Result.FAILED
    assert "9 of 10 executed tests passed (90 %)" in found.evidence
    assert "pkg.test_x" in found.evidence


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_one_more_passed_test_never_makes_it_worse(passed, failed):
    def result(passed):
        return judge_tests([TestCounts(passed=passed, failed=("x",) * failed)], min_passed_ratio=0.9).result

    order = [Result.UNKNOWN, Result.FAILED, Result.PASSED]
    assert result(passed) is Result.UNKNOWN or order.index(result(passed + 1)) >= order.index(result(passed))


BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>'
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not xml",
        b"<testsuite><testcase>",
        b"<html/>",
        b"\xff\xfe<\x00",
        BOMB,
        BOMB.decode().encode("utf-16"),
        b"<!DOCTYPE x [ ]><testsuite/>",
        b"<testsuite>" + b"<a>" * 100 + b"</a>" * 100 + b"</testsuite>",
    ],
)
def test_garbage_bombs_and_deep_nests_are_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_junit(content)


@settings(deadline=None)  # a busy machine is no fault
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_value_error(content):
    with suppress(ValueError):
        parse_junit(content)
