"""What linters, type checkers and security scanners report: SARIF 2.1, ruff's JSON, pyright's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from pydantic import TypeAdapter

from rules.evidence.foreign import Foreign
from rules.evidence.sarif import read_sarif
from rules.evidence.scan import Problem, Scan
from rules.finding import Finding
from rules.frozen import Count
from rules.words import listed

#: CVSS from which on scanners, and those who read them, speak of "high".
HIGH_SEVERITY = 7.0


class _Position(Foreign):
    row: int


class _RuffRow(Foreign):
    code: str | None  # None: a syntax error
    filename: str
    location: _Position
    message: str


class _Line(Foreign):
    line: int


class _Range(Foreign):
    start: _Line


class _PyrightRow(Foreign):
    file: str
    severity: Literal["error", "warning", "information"]
    rule: str | None = None
    range: _Range | None = None


class _PyrightSummary(Foreign):
    filesAnalyzed: int  # noqa: N815 - pyright's own name


class _Pyright(Foreign):
    generalDiagnostics: tuple[_PyrightRow, ...]  # noqa: N815 - pyright's own name
    summary: _PyrightSummary


def parse_diagnostics(content: bytes) -> Scan:
    """Return what a file reports; its format is told by its content.

    Each row of ruff is an error, as ruff knows no lesser ones. Pyright's lines count from 0, ours from 1.

    Raises:
        ValueError: it is in none of the three formats.
    """
    data = json.loads(content)
    if isinstance(data, list):
        return _ruff(TypeAdapter(tuple[_RuffRow, ...]).validate_python(data))
    if isinstance(data, dict) and "generalDiagnostics" in data:
        return _pyright(_Pyright.model_validate(data))
    if isinstance(data, dict) and "runs" in data:
        return read_sarif(data)
    raise ValueError("neither SARIF nor the JSON of ruff or pyright")


def judge_diagnostics(scans: Iterable[Scan], *, max_diagnostics: Count) -> Finding:
    """Return whether at most `max_diagnostics` errors are left; warnings are counted and let pass."""
    scans = tuple(scans)
    if not scans or (unknown := _unfinished(scans)):
        return Finding.unknown(unknown if scans else "nothing was diagnosed.")
    problems = _live(scans)
    errors = [problem for problem in problems if problem.level == "error"]
    words = (
        f"{_tools(scans)}: {len(errors)} errors, {len(problems) - len(errors)} lesser ones; at most "
        f"{max_diagnostics} errors are allowed."
    )
    return _judged(words, errors, limit=max_diagnostics)


def judge_security(scans: Iterable[Scan], *, max_findings: Count) -> Finding:
    """Return whether at most `max_findings` serious ones are left: level error, or CVSS of 7.0 and above."""
    scans = tuple(scans)
    if not scans or (unknown := _unfinished(scans)):
        return Finding.unknown(unknown if scans else "nothing was scanned.")
    problems = _live(scans)
    serious = [
        problem
        for problem in problems
        if problem.level == "error" or (problem.severity or 0) >= HIGH_SEVERITY
    ]
    words = (
        f"{_tools(scans)}: {len(serious)} findings of level error or severity {HIGH_SEVERITY:g} and above, "
        f"{len(problems) - len(serious)} lesser ones; at most {max_findings} are allowed."
    )
    return _judged(words, serious, limit=max_findings)


def _judged(words: str, problems: list[Problem], *, limit: int) -> Finding:
    if problems:
        words += f" {listed(f'{problem.rule} at {problem.where}' for problem in problems)}."
    return Finding.judged(words, ok=len(problems) <= limit)


def _live(scans: tuple[Scan, ...]) -> list[Problem]:
    return [problem for scan in scans for problem in scan.problems if not problem.suppressed]


def _unfinished(scans: tuple[Scan, ...]) -> str:
    """Say why the scans prove nothing; empty when they do."""
    return " ".join(scan.unfinished for scan in scans if scan.unfinished)


def _tools(scans: tuple[Scan, ...]) -> str:
    return ", ".join(dict.fromkeys(tool for scan in scans for tool in scan.tools))


def _ruff(rows: tuple[_RuffRow, ...]) -> Scan:
    return Scan(
        tools=("ruff",),
        problems=tuple(
            Problem(level="error", rule=r.code or "syntax error", where=f"{r.filename}:{r.location.row}")
            for r in rows
        ),
    )


def _pyright(report: _Pyright) -> Scan:
    level: dict[str, Literal["error", "warning", "note"]] = {
        "error": "error",
        "warning": "warning",
        "information": "note",
    }
    return Scan(
        tools=("pyright",),
        problems=tuple(
            Problem(
                level=level[row.severity],
                rule=row.rule or "pyright",
                where=f"{row.file}:{row.range.start.line + 1 if row.range else 1}",
            )
            for row in report.generalDiagnostics
        ),
        unfinished="" if report.summary.filesAnalyzed else "pyright analysed no file.",
    )
