"""What a look at one piece of evidence found: the answer to one question, with what it rests on."""

from __future__ import annotations

from enum import StrEnum

from rules.frozen import Frozen


class Result(StrEnum):
    """How a check came out. Unknown is not passed."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"
    ATTESTED = "attested"
    WAIVED = "waived"


class Finding(Frozen):
    """How it came out, and what was read: numbers, names, times, in words."""

    result: Result
    evidence: str

    @classmethod
    def passed(cls, evidence: str) -> Finding:
        """Return that it is as it should be."""
        return cls(result=Result.PASSED, evidence=evidence)

    @classmethod
    def failed(cls, evidence: str) -> Finding:
        """Return that it is not as it should be."""
        return cls(result=Result.FAILED, evidence=evidence)

    @classmethod
    def unknown(cls, evidence: str) -> Finding:
        """Return that it could not be told, and why."""
        return cls(result=Result.UNKNOWN, evidence=evidence)

    @classmethod
    def not_applicable(cls, evidence: str) -> Finding:
        """Return that the question does not arise here, and why."""
        return cls(result=Result.NOT_APPLICABLE, evidence=evidence)

    @classmethod
    def judged(cls, evidence: str, *, ok: bool) -> Finding:
        """Return passed or failed."""
        return cls.passed(evidence) if ok else cls.failed(evidence)


def worst(findings: tuple[Finding, ...]) -> Finding:
    """Return one finding for several of one question: failed before unknown before passed.

    Raises:
        ValueError: there is none.
    """
    if not findings:
        raise ValueError("no finding to choose from")
    order = (Result.FAILED, Result.UNKNOWN, Result.PASSED, Result.NOT_APPLICABLE)
    result = min((finding.result for finding in findings), key=order.index)
    said = [finding.evidence for finding in findings if finding.result is result]
    return Finding(result=result, evidence="; ".join(said))
