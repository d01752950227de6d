"""Coverage: which part of the lines the tests reached, from Cobertura XML or coverage.py's JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rules.evidence.foreign import Foreign, percent
from rules.evidence.markup import parse_xml
from rules.finding import Finding
from rules.frozen import Count, Frozen, Ratio


class Coverage(Frozen):
    """Lines that could be reached, and the part of them that was."""

    lines: Count
    ratio: Ratio


class _Totals(Foreign):
    covered_lines: Annotated[int, Field(ge=0)]
    num_statements: Annotated[int, Field(ge=0)]


class _CoverageJson(Foreign):
    totals: _Totals


def parse_coverage(content: bytes) -> Coverage:
    """Return the coverage of lines that a Cobertura XML or a coverage.py JSON file tells.

    coverage.py's own percentage mixes branches in; here lines are counted in both formats.

    Raises:
        ValueError: it is neither, or its numbers contradict each other.
    """
    if content.lstrip()[:1] == b"{":
        totals = _CoverageJson.model_validate_json(content).totals
        return _counted(totals.covered_lines, totals.num_statements)
    root = parse_xml(content)
    if root.tag != "coverage":
        raise ValueError(f"not Cobertura XML: the root element is {root.tag[:60]}")
    if "lines-valid" in root.attrib and "lines-covered" in root.attrib:
        return _counted(_count(root.attrib["lines-covered"]), _count(root.attrib["lines-valid"]))
    lines = sum(1 for _ in root.iter("line"))
    rate = float(root.attrib.get("line-rate", "nan"))
    if not 0 <= rate <= 1:
        raise ValueError("line-rate is missing, or not between 0 and 1")
    return Coverage(lines=lines, ratio=rate)


def judge_coverage(coverage: Coverage, *, min_coverage: Ratio) -> Finding:
    """Return whether more than `min_coverage` of the lines are covered; all of them always suffice."""
    if not coverage.lines:
        return Finding.unknown("coverage was measured over no lines at all.")
    words = (
        f"{percent(coverage.ratio)} of {coverage.lines} lines are covered; more than "
        f"{percent(min_coverage)} must be."
    )
    return Finding.judged(words, ok=coverage.ratio > min_coverage or coverage.ratio == 1)


def _counted(covered: int, lines: int) -> Coverage:
    if covered > lines:
        raise ValueError(f"{covered} lines covered of {lines}")
    return Coverage(lines=lines, ratio=covered / lines if lines else 0.0)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):  # noqa: PLR2004 - no such many lines
        raise ValueError("lines-valid and lines-covered must be whole numbers")
    return int(text)
