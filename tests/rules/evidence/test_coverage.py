"""Coverage: lines in both formats."""

from __future__ import annotations

import json

import pytest

from rules.evidence.coverage import Coverage, judge_coverage, parse_coverage
from rules.finding import Result

COBERTURA = (
    b'<?xml version="1.0"?><!DOCTYPE coverage SYSTEM "http://cobertura.sourceforge.net/xml/coverage-04.dtd">'
    b'<coverage line-rate="0.9" lines-valid="%d" lines-covered="%d"><packages/></coverage>'
)


def totals(covered, lines):
    return json.dumps(
        {"totals": {"covered_lines": covered, "num_statements": lines, "percent_covered": 1}}
    ).encode()


@pytest.mark.parametrize("content", [totals(81, 100), COBERTURA % (100, 81)])
def test_lines_are_counted_in_both_formats(content):
    assert parse_coverage(content) == Coverage(lines=100, ratio=0.81)


def test_without_counts_the_rate_counts_and_no_lines_are_unknown():
    bare = b'<coverage line-rate="0.9"/>'
    lines = b'<coverage line-rate="0.9"><class><lines><line number="1" hits="1"/></lines></class></coverage>'
    assert judge_coverage(parse_coverage(bare), min_coverage=0.5).result is Result.UNKNOWN
    assert judge_coverage(parse_coverage(lines), min_coverage=0.5).result is Result.PASSED


@pytest.mark.parametrize(
    ("covered", "lines", "result"),
    [(81, 100, Result.PASSED), (80, 100, Result.FAILED), (0, 0, Result.UNKNOWN), (0, 5, Result.FAILED)],
)
def test_more_than_the_minimum_must_be_covered(covered, lines, result):
    assert judge_coverage(parse_coverage(totals(covered, lines)), min_coverage=0.8).result is result


def test_a_ratio_is_never_rounded_up_to_a_limit_it_does_not_reach():
    found = judge_coverage(Coverage(lines=10_000, ratio=0.79999), min_coverage=0.8)
    assert "79.9 %" in found.evidence


@pytest.mark.parametrize(
    "content",
    [
        totals(101, 100),
        totals(-1, 100),
        COBERTURA % (1, 2),
        b'<coverage line-rate="nan"/>',
        b'<coverage line-rate="1.5"/>',
        b"<coverage/>",
        b'<coverage lines-valid="x" lines-covered="1"/>',
        b"<report/>",
        b"{}",
        b"[",
        b"",
    ],
)
def test_what_contradicts_itself_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_coverage(content)
