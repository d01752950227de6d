"""The final checklist as data: what must have happened before, during and after a rollout."""

from __future__ import annotations

from rules.checklist import Item, Phase
from rules.environment import Stage

DEV, _, CANARY, PRODUCTION = Stage


def _item(name: str, title: str, *, phase: Phase, blocks_from: Stage, remedy: str) -> Item:
    """Only the journal answers: what is not in it has not happened, whatever anybody says."""
    return Item(
        id=f"final-{name}",
        title=title,
        section="final",
        phase=phase,
        blocks_from=blocks_from,
        remedy=remedy,
        attestable=False,
    )


_TAKEN_BACK_OR_REPEAT = "Take it back (roll-back), or find out why and deploy again."

FINAL_ITEMS: tuple[Item, ...] = (
    _item(
        "planned",
        "The plan, with each step's way back, was kept",
        phase="before",
        blocks_from=DEV,
        remedy="Deploy again: nothing may be changed without a kept plan.",
    ),
    _item(
        "gate-open",
        "The checklist let it pass",
        phase="before",
        blocks_from=DEV,
        remedy="Supply what the checklist says is missing, then deploy again.",
    ),
    _item(
        "approved",
        "A person approved it, where one must",
        phase="before",
        blocks_from=DEV,
        remedy="Approve the flow run while it waits, or deploy again.",
    ),
    _item(
        "baseline-measured",
        "How users and hosts were doing before was measured",
        phase="before",
        blocks_from=CANARY,
        remedy="Have traffic or a Prometheus to measure by, then deploy again.",
    ),
    _item(
        "backups-verified",
        "Every backup of the environment was taken and read back",
        phase="before",
        blocks_from=CANARY,
        remedy="Mend the backup that is named, then deploy again.",
    ),
    _item(
        "team-told",
        "The team was told",
        phase="before",
        blocks_from=PRODUCTION,
        remedy="Name a notifications block in the environment, or tell them and attest it.",
    ),
    _item(
        "switch-rehearsed",
        "Switch and switch back were rehearsed",
        phase="during",
        blocks_from=DEV,
        remedy=_TAKEN_BACK_OR_REPEAT,
    ),
    _item(
        "steps-done",
        "Every step of the plan was done",
        phase="during",
        blocks_from=DEV,
        remedy=_TAKEN_BACK_OR_REPEAT,
    ),
    _item(
        "verdicts-passed",
        "Every watch ended with PASS",
        phase="during",
        blocks_from=CANARY,
        remedy="Read the decisions; a batch that was only not shown to be bad needs more traffic to tell.",
    ),
    _item(
        "no-pause-open",
        "No pause was left open",
        phase="during",
        blocks_from=DEV,
        remedy="Resume or abort it.",
    ),
    _item(
        "verified",
        "The system was verified to be as planned, and promoted",
        phase="after",
        blocks_from=DEV,
        remedy="Mend the release, then deploy again.",
    ),
    _item(
        "compared",
        "Compared with the baseline, nothing that takes it back got worse",
        phase="after",
        blocks_from=CANARY,
        remedy="Read the comparison; take it back if users are worse off.",
    ),
    _item(
        "monitoring-scheduled",
        "Monitoring is scheduled",
        phase="after",
        blocks_from=CANARY,
        remedy="Watch it by hand, and see why Prefect did not take the runs; `recover` schedules them again.",
    ),
    _item(
        "rolled-back",
        "What was taken back was verified to be as before",
        phase="after",
        blocks_from=DEV,
        remedy="Mend what stopped the way back, then run roll-back for this deployment.",
    ),
)
