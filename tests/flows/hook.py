"""Prefect's hook of a crashed run, as a worker runs it: in a process of its own, after the flow's."""

from __future__ import annotations

from uuid import UUID

from prefect import get_client
from prefect.states import Crashed

from flows.deploy import deploy
from flows.guard import take_back_after


def run_hook(flow_run_id: str) -> None:
    """Run the hook for a flow run whose process is gone."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run_id))
    take_back_after(deploy, run, Crashed(message="its process was killed"))
