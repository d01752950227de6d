"""What the crash tests of every component share: an environment with a gate, and evidence for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from lab.evidence import LabEvidence
from rules.environment import GateLimits, Monitoring, Stage
from rules.evidence.sources import Evidence

ENVIRONMENT = "crash"
#: Two runs, far enough away not to begin while a point is tried.
MONITORING = Monitoring(every_s=43_200, for_s=86_400)


class Staging:
    """A staging environment: deployments go through its gate, and are watched after their promotion.

    Args:
        directory: where evidence is made.
        release: what the evidence is about.
    """

    def __init__(self, directory: Path, *, release: str) -> None:
        self._evidence = LabEvidence(directory, release=release, commit="a" * 40, pull_request=1)
        self.papers = Evidence()
        self._http = httpx.Client(
            timeout=10, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False
        )

    def build(self) -> None:
        """Make the release's evidence."""
        self.papers = self._evidence.build()

    def save(self, *, backups: Sequence[str] = ()) -> None:
        """Save the environment's block, and make the deployment known that watches after a promotion."""
        from blocks.environment import Environment  # noqa: PLC0415 - only a child talks to Prefect

        limits = GateLimits(sops_recipients=(self._evidence.key.recipient,))
        Environment(stage=Stage.STAGING, limits=limits, monitoring=MONITORING, backups=list(backups)).save(
            ENVIRONMENT, overwrite=True
        )
        flow = self._ask("POST", "flows/", {"name": "monitor"})["id"]
        self._ask("POST", "deployments/", {"name": "monitor", "flow_id": flow})

    def seen(self) -> dict[str, Any]:
        """Return the locks that are held, and how many monitoring runs wait."""
        variables = self._ask("POST", "variables/filter", {})
        runs = self._ask("POST", "flow_runs/filter", {"flow_runs": {"tags": {"all_": ["sovereign-monitor"]}}})
        waiting = [run for run in runs if run["state_type"] == "SCHEDULED"]
        return {"locks": sorted(row["name"] for row in variables), "monitoring_runs": len(waiting)}

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.request(method, f"{os.environ['PREFECT_API_URL']}/{path}", json=body)
        return answer.raise_for_status().json()
