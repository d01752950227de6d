"""The gate before a deployment: what was checked, on which evidence, and whether it blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from rules.environment import Stage
from rules.finding import Finding, Result
from rules.frozen import Frozen

__all__ = ["Attestation", "Check", "ChecklistReport", "Finding", "Item", "Result", "Waiver", "judge"]

Section = Literal["release", "code", "environment", "infrastructure", "strategy", "final"]
Phase = Literal["before", "during", "after"]

ItemId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,63}$")]
Person = Annotated[str, Field(min_length=2, max_length=120, description="who says so")]
Words = Annotated[str, Field(min_length=3, max_length=2000)]
_GOOD = frozenset({Result.PASSED, Result.NOT_APPLICABLE, Result.ATTESTED, Result.WAIVED})


class Item(Frozen):
    """A question of the checklist; from stage `blocks_from` on, an answer that is not good blocks."""

    id: ItemId
    title: str
    section: Section
    blocks_from: Stage | None = Field(description="None: it only ever warns")
    remedy: str = Field(description="how to supply what is missing")
    phase: Phase = "before"
    attestable: bool = Field(default=True, description="a person's word may stand for missing evidence")


class Attestation(Frozen):
    """A person's word where no evidence can be read."""

    item: ItemId = Field(description="id of the row")
    by: Person
    words: Words = Field(description="what was looked at, and what was found")


class Waiver(Frozen):
    """A person's decision to go on without a row, whatever it says."""

    item: ItemId = Field(description="id of the row")
    by: Person
    reason: Words


class Check(Frozen):
    """One row of the checklist."""

    id: str
    title: str
    section: Section
    phase: Phase
    result: Result
    blocks: bool = Field(description="whether this row, as it stands, stops the deployment")
    evidence: str
    remedy: str = ""
    by: str = Field(default="", description="who attested or waived it")

    @property
    def in_words(self) -> str:
        """What was found, and how to supply what is missing."""
        return f"{self.title} ({self.id}): {self.result}, {self.evidence.rstrip('.')}. {self.remedy}".rstrip()


class ChecklistReport(Frozen):
    """All rows of one deployment."""

    checks: tuple[Check, ...]

    @property
    def blocking(self) -> tuple[Check, ...]:
        """The rows that do not allow the deployment."""
        return tuple(check for check in self.checks if check.blocks)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The rows that are not good and are let pass in this environment."""
        return tuple(c for c in self.checks if not c.blocks and c.result not in _GOOD)

    @property
    def in_words(self) -> str:
        """What is missing, and how to supply it; empty when nothing blocks."""
        return " ".join(check.in_words for check in self.blocking)

    @property
    def summary(self) -> str:
        """How many rows came out how."""
        counted = Counter(check.result for check in self.checks)
        parts = [f"{counted[result]} {result.replace('_', ' ')}" for result in Result if counted[result]]
        return f"{len(self.checks)} rows: {', '.join(parts)}; {len(self.blocking)} block"


def judge(
    items: Iterable[Item],
    findings: Mapping[str, Finding],
    *,
    stage: Stage,
    attestations: Iterable[Attestation] = (),
    waivers: Iterable[Waiver] = (),
) -> ChecklistReport:
    """Return the rows of `items`, in their order.

    A waiver stands over everything. A person's word stands in for evidence that is missing, never against
    evidence that was read.

    Args:
        items: the questions.
        findings: item id -> what was read; an item without one is unknown.
        stage: how strict to be.
        attestations: persons' words.
        waivers: persons' decisions.
    """
    said = {attestation.item: attestation for attestation in attestations}
    waived = {waiver.item: waiver for waiver in waivers}
    nothing = Finding.unknown("no evidence was given.")
    return ChecklistReport(
        checks=tuple(
            _row(item, findings.get(item.id, nothing), said.get(item.id), waived.get(item.id), stage)
            for item in items
        )
    )


def unknown_items(
    items: Iterable[Item], attestations: Iterable[Attestation], waivers: Iterable[Waiver]
) -> tuple[str, ...]:
    """Return the ids that persons named and that no row has, sorted: a slip must not pass for a word."""
    known = {item.id for item in items}
    named = {a.item for a in attestations} | {w.item for w in waivers}
    return tuple(sorted(named - known))


def _row(  # noqa: PLR0917 - one row has these five sides
    item: Item, finding: Finding, said: Attestation | None, waived: Waiver | None, stage: Stage
) -> Check:
    by, remedy = "", item.remedy
    if waived and finding.result is not Result.PASSED:
        was = f"{finding.result.replace('_', ' ')}: {finding.evidence}"
        finding = Finding(result=Result.WAIVED, evidence=f"{waived.reason} (it was {was})")
        by = waived.by
    elif said and item.attestable and finding.result is Result.UNKNOWN:
        finding, by = Finding(result=Result.ATTESTED, evidence=said.words), said.by
    good = finding.result in _GOOD
    strict = item.blocks_from is not None and stage.is_at_least(item.blocks_from)
    return Check(
        id=item.id,
        title=item.title,
        section=item.section,
        phase=item.phase,
        result=finding.result,
        blocks=strict and not good,
        evidence=finding.evidence,
        remedy="" if good else remedy,
        by=by,
    )
