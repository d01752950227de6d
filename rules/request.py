"""What comes with a change: its evidence, and persons' words about it."""

from __future__ import annotations

from rules.checklist import Attestation, Waiver
from rules.evidence.sources import Evidence
from rules.frozen import Frozen


class Papers(Frozen):
    """What the gate is shown beside the change itself."""

    evidence: Evidence = Evidence()
    attestations: tuple[Attestation, ...] = ()
    waivers: tuple[Waiver, ...] = ()
