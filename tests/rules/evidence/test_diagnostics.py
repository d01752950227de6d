"""SARIF, ruff and pyright: levels, suppressions, severities, and runs that prove nothing."""

from __future__ import annotations

import json

import pytest

from rules.evidence.diagnostics import judge_diagnostics, judge_security, parse_diagnostics
from rules.evidence.sarif import parse_sarif
from rules.finding import Result

RULES = [
    {"id": "E1", "defaultConfiguration": {"level": "error"}},
    {"id": "W1"},
    {"id": "HIGH", "properties": {"security-severity": "7.0"}, "defaultConfiguration": {"level": "note"}},
    {"id": "LOW", "properties": {"security-severity": "6.9"}},
]


def run(*results, **fields):
    return {"tool": {"driver": {"name": "scanner", "rules": RULES}}, "results": list(results), **fields}


def sarif(*runs):
    return json.dumps({"version": "2.1.0", "runs": list(runs)}).encode()


def errors(*results):
    return judge_diagnostics([parse_diagnostics(sarif(run(*results)))], max_diagnostics=0).result


def serious(*results):
    return judge_security([parse_sarif(sarif(run(*results)))], max_findings=0).result


@pytest.mark.parametrize(
    ("result", "judged"),
    [
        ({"ruleId": "E1"}, Result.FAILED),  # by its rule's default
        ({"ruleIndex": 0}, Result.FAILED),
        ({"rule": {"index": 0}}, Result.FAILED),
        ({"ruleId": "E1/sub"}, Result.FAILED),
        ({"ruleId": "W1"}, Result.PASSED),  # a rule without a level warns
        ({"ruleId": "not listed"}, Result.PASSED),
        ({"ruleId": "W1", "level": "error"}, Result.FAILED),
        ({"ruleId": "E1", "level": "warning"}, Result.PASSED),
        ({"ruleId": "E1", "kind": "pass"}, Result.PASSED),
        ({"ruleId": "E1", "baselineState": "absent"}, Result.PASSED),
        ({"ruleId": "E1", "suppressions": []}, Result.FAILED),
        ({"ruleId": "E1", "suppressions": [{"kind": "inSource"}]}, Result.PASSED),
        ({"ruleId": "E1", "suppressions": [{"status": "accepted"}]}, Result.PASSED),
        ({"ruleId": "E1", "suppressions": [{"status": "underReview"}]}, Result.FAILED),
        ({"ruleId": "E1", "suppressions": [{}, {"status": "rejected"}]}, Result.FAILED),
    ],
)
def test_errors_of_sarif_follow_the_standard(result, judged):
    assert errors(result) is judged


@pytest.mark.parametrize(
    ("result", "judged"),
    [
        ({"ruleId": "HIGH"}, Result.FAILED),  # whatever its level
        ({"ruleId": "LOW"}, Result.PASSED),
        ({"ruleId": "LOW", "properties": {"security-severity": "9.8"}}, Result.FAILED),
        ({"ruleId": "E1"}, Result.FAILED),
        ({"ruleId": "HIGH", "suppressions": [{"kind": "external"}]}, Result.PASSED),
    ],
)
def test_a_serious_finding_is_an_error_or_severe(result, judged):
    assert serious(result) is judged


def test_a_rule_of_an_extension_is_found_by_its_index():
    extension = {"name": "pack", "rules": [{"id": "X", "defaultConfiguration": {"level": "error"}}]}
    tool = {"driver": {"name": "scanner"}, "extensions": [extension]}
    result = {"ruleId": "X", "rule": {"index": 0, "toolComponent": {"index": 0}}}
    log = parse_diagnostics(sarif({"tool": tool, "results": [result]}))
    assert judge_diagnostics([log], max_diagnostics=0).result is Result.FAILED


@pytest.mark.parametrize(
    "content",
    [
        sarif(),
        sarif(run(invocations=[{"executionSuccessful": False}])),
        sarif(run(), run(invocations=[{"executionSuccessful": True}, {"executionSuccessful": False}])),
        sarif({"tool": {"driver": {"name": "scanner"}}}),
    ],
)
def test_no_run_a_failed_run_and_one_without_results_are_unknown(content):
    assert judge_security([parse_sarif(content)], max_findings=0).result is Result.UNKNOWN
    assert judge_diagnostics([parse_diagnostics(content)], max_diagnostics=0).result is Result.UNKNOWN


def test_nothing_at_all_is_unknown():
    assert judge_diagnostics([], max_diagnostics=0).result is Result.UNKNOWN
    assert judge_security([], max_findings=0).result is Result.UNKNOWN


def test_words_count_and_name_what_was_found():
    place = {"physicalLocation": {"artifactLocation": {"uri": "a.py"}, "region": {"startLine": 7}}}
    scan = parse_sarif(sarif(run({"ruleId": "E1", "locations": [place]}, {"ruleId": "W1"})))
    found = judge_security([scan], max_findings=0)
    assert "1 findings of level error" in found.evidence
    assert "E1 at a.py:7" in found.evidence
    assert judge_security([scan], max_findings=1).result is Result.PASSED


def pyright(*severities, files=1):
    rows = [
        {"file": "a.py", "severity": s, "message": "m", "range": {"start": {"line": 4, "character": 0}}}
        for s in severities
    ]
    return json.dumps({"generalDiagnostics": rows, "summary": {"filesAnalyzed": files}}).encode()


def test_pyrights_errors_count_and_its_warnings_are_let_pass():
    def judge(content):
        return judge_diagnostics([parse_diagnostics(content)], max_diagnostics=0)

    assert judge(pyright("warning", "information")).result is Result.PASSED
    assert judge(pyright("error")).result is Result.FAILED
    assert "a.py:5" in judge(pyright("error")).evidence
    assert judge(pyright(files=0)).result is Result.UNKNOWN


def test_several_reports_are_judged_together():
    scans = [parse_diagnostics(c) for c in (b"[]", pyright("error"), sarif(run({"ruleId": "E1"})))]
    found = judge_diagnostics(scans, max_diagnostics=1)
    assert found.result is Result.FAILED
    assert found.evidence.startswith("ruff, pyright, scanner: 2 errors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"3",
        b'{"runs": []}',
        b'{"version": "2.0.0", "runs": []}',
        b'[{"code": "E1"}]',
        sarif(run({"ruleIndex": 99})),
        sarif(run({"ruleId": "E1", "level": "fatal"})),
        sarif(run({"properties": {"security-severity": "high"}})),
    ],
)
def test_other_content_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_diagnostics(content)
