"""Each action on a Ray cluster's node as a Prefect task, named after what it does to which node."""

from __future__ import annotations

from typing import assert_never

from rules.change import RayRelease
from rules.fleet import Instance
from rules.ray_actions import DrainNode, RayAction, StopService, VerifyNode
from tasks import ray_node
from tasks.as_task import as_task
from tasks.deployment import OpenDeployment

drain_node = as_task(ray_node.drain_node, "drain node", "{instance.name}: drain")
_restart_node = as_task(ray_node.restart_node, "restart node", "{instance.name}: restart", retries=1)
stop_node = as_task(ray_node.stop_node, "stop node", "{instance.name}: stop", retries=1)
verify_node = as_task(ray_node.verify_node, "verify node", "{instance.name}: verify")


def restart_node(deployment: OpenDeployment, instance: Instance) -> None:
    """Stop a node, see the cluster forget it, and start it with the release that is linked.

    Raises:
        DeployError: it failed; see the task.
    """
    _restart_node(deployment.fleet, instance, settings=deployment.settings)


def change_nodes(deployment: OpenDeployment, change: RayRelease, action: RayAction) -> None:
    """Do one action of a plan on one of a cluster's nodes.

    Raises:
        DeployError: it failed; see each task.
    """
    fleet, settings = deployment.fleet, deployment.settings
    instance = fleet.instance(action.instance)
    match action:
        case DrainNode():
            words = drain_node(fleet, instance, action, still_wanted=deployment.prove_ours, settings=settings)
            deployment.note("drained", words)
        case StopService():
            stop_node(fleet, instance, settings=settings)
        case VerifyNode():
            words = verify_node(
                fleet,
                instance,
                action,
                release=change.release,
                still_wanted=deployment.prove_ours,
                settings=settings,
            )
            deployment.note("node_verified", words)
        case unknown:
            assert_never(unknown)
