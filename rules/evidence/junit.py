"""JUnit XML: how many of the tests that ran have passed."""

from __future__ import annotations

from collections.abc import Iterable

from rules.evidence.foreign import percent
from rules.evidence.markup import parse_xml
from rules.finding import Finding
from rules.frozen import Count, Frozen, Ratio
from rules.words import listed


class TestCounts(Frozen):
    """What one or several test runs came to; `failed` names the tests that failed or broke."""

    __test__ = False  # pytest, when it meets this class in a test module, takes it for one

    passed: Count = 0
    skipped: Count = 0
    failed: tuple[str, ...] = ()

    @property
    def executed(self) -> int:
        """Tests that ran to a result: a skipped one did not."""
        return self.passed + len(self.failed)

    def plus(self, other: TestCounts) -> TestCounts:
        """Return both together."""
        return TestCounts(
            passed=self.passed + other.passed,
            skipped=self.skipped + other.skipped,
            failed=self.failed + other.failed,
        )


def parse_junit(content: bytes) -> TestCounts:
    """Return the counts of one JUnit XML file, from its test cases; declared totals are not believed.

    Raises:
        ValueError: it is not XML, or neither `testsuites` nor `testsuite`.
    """
    root = parse_xml(content)
    if root.tag not in {"testsuites", "testsuite"}:
        raise ValueError(f"not JUnit XML: the root element is {root.tag[:60]}")
    passed = skipped = 0
    failed = []
    for case in root.iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed.append(f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")[:200])
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    return TestCounts(passed=passed, skipped=skipped, failed=tuple(failed))


def judge_tests(runs: Iterable[TestCounts], *, min_passed_ratio: Ratio) -> Finding:
    """Return whether more than `min_passed_ratio` of the executed tests passed; all of them always suffice.

    Nothing executed is unknown: a run that skipped everything has tested nothing.
    """
    total = TestCounts()
    for run in runs:
        total = total.plus(run)
    if not total.executed:
        return Finding.unknown(f"no test was executed, {total.skipped} skipped.")
    ratio = total.passed / total.executed
    words = (
        f"{total.passed} of {total.executed} executed tests passed ({percent(ratio)}), {total.skipped} "
        f"skipped; more than {percent(min_passed_ratio)} must pass."
    )
    if total.failed:
        words += f" Failed: {listed(total.failed)}."
    return Finding.judged(words, ok=ratio > min_passed_ratio or not total.failed)
