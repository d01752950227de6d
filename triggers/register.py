"""Register with Prefect what prefect.yaml cannot say: block types, and the watch over silent runs.

Run once for each Prefect server, after `prefect deploy --all`: `python -m triggers.register`.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import cast

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from blocks.alertmanager import Alertmanager
from blocks.application import Application
from blocks.btrfs import BtrfsSnapshots
from blocks.database import SovereignDatabase
from blocks.environment import Environment
from blocks.forgejo import Forgejo
from blocks.grafana import Grafana
from blocks.haproxy import HAProxy
from blocks.host import Host
from blocks.http_balancer import HttpBalancer
from blocks.ipfs import SovereignIpfsContent
from blocks.nginx import Nginx
from blocks.nixos import SovereignNixosHosts
from blocks.notifications import Notifications
from blocks.postgres import PostgresBaseBackup
from blocks.prometheus import Prometheus
from blocks.ray_cluster import SovereignRayCluster
from blocks.restic import ResticRepository
from blocks.sglang import SovereignModel
from blocks.zfs import ZfsSnapshots

log = logging.getLogger(__name__)
#: Every kind of system that deployments know.
BLOCKS = (
    Alertmanager,
    Application,
    BtrfsSnapshots,
    Environment,
    Forgejo,
    Grafana,
    HAProxy,
    Host,
    HttpBalancer,
    Nginx,
    Notifications,
    PostgresBaseBackup,
    Prometheus,
    ResticRepository,
    SovereignDatabase,
    SovereignIpfsContent,
    SovereignModel,
    SovereignNixosHosts,
    SovereignRayCluster,
    ZfsSnapshots,
)
SILENT_RUNS = "sovereign: recover silent runs"
#: Three missed heartbeats of a worker started with PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30.
_SILENT_FOR = timedelta(seconds=90)


def register() -> None:
    """Register the block types and the automation; repeating it replaces the automation."""
    for block in BLOCKS:
        block.register_type_and_schema()
    watch_silent_runs()


def watch_silent_runs() -> None:
    """Have Prefect call a run crashed and start `recover` when its heartbeats stop.

    Both actions are in one automation: a second one that reacts to the state change came minutes late
    after a restart of the server. A run killed before its first heartbeat never arms it; the schedule of
    `recover` sees that one.
    """
    with get_client(sync_client=True) as client:
        recover = client.read_deployment_by_name("recover/recover")
    for existing in _existing():
        existing.delete()
    trigger = EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.sovereign-change"}
        ),
        for_each={"prefect.resource.id"},
        threshold=1,
        within=_SILENT_FOR,
    )
    actions = [
        ChangeFlowRunState(state=StateType.CRASHED, message="its heartbeats stopped"),
        RunDeployment(source="selected", deployment_id=recover.id),
    ]
    Automation(name=SILENT_RUNS, trigger=trigger, actions=actions).create()


def _existing() -> list[Automation]:
    try:
        return [cast("Automation", Automation.read(name=SILENT_RUNS))]
    except ValueError:
        return []


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register()
    log.info("block types and the automation '%s' are registered", SILENT_RUNS)
