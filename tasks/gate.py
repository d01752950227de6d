"""Read the evidence that the checklist judges. Nothing is touched here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rules.change import Change, ReleaseArchive
from rules.checklist import ChecklistReport, artefact_check, judge_fleet
from rules.fleet import Fleet
from rules.plan import Plan


def run_checklist(change: Change, fleet: Fleet, plan: Plan) -> ChecklistReport:
    """Return every row of the checklist for this change."""
    rows = judge_fleet(change, fleet, plan.before)
    if isinstance(change.artefact, ReleaseArchive):
        found = _sha256(Path(change.artefact.path))
        rows = (artefact_check(found=found, wanted=change.artefact.sha256, where=change.artefact.path), *rows)
    return ChecklistReport(checks=rows)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
