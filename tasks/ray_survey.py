"""What must be known of a Ray cluster before a release of its nodes is planned."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from rules.change import RayRelease
from rules.errors import CommandError, InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance
from rules.ray_cluster import RayActor, RayCluster, RayNode
from rules.ray_plan import RaySituation
from tasks import host as hosts
from tasks import ray_cluster as ray
from tasks.ray_jobs import restart_limits
from tasks.server_service import is_running

_VERSION_TIMEOUT_S = 60.0
_AT_ONCE = 4
#: What Ray takes as the value of a label.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def survey_ray(change: RayRelease, fleet: Fleet, before: FleetState) -> RaySituation:
    """Return how the cluster is: versions, nodes, actors and tasks.

    Raises:
        InvalidRequestError: the release cannot be a label, or what a node runs is not known or not what it is
            linked to; nothing was touched.
        RayClusterError: the head does not answer, or not with all; nothing was touched.
    """
    cluster = fleet.ray_cluster
    _refuse_release(change)
    _refuse_disagreement(before)
    alive = [node for node in ray.nodes(cluster) if not node.is_head]
    own = {node.host: node for node in alive if node.host in fleet.names}  # of two the newest
    strangers = tuple(node for node in alive if node.host not in fleet.names)
    concerned = _concerned(change, fleet, own)
    _refuse_doubt(before, own)
    _refuse_unlabelled([each for each in concerned if each.name not in own], strangers)
    return RaySituation(
        head_version=ray.version(cluster),
        versions=_versions(cluster, concerned),
        nodes=own,
        strangers=strangers,
        actors=_actors(cluster),
        tasks=ray.tasks(cluster),
        failed_tasks={
            node_id: len(words)
            for node_id, words in ray.failed_tasks(cluster, accepted=change.accept_lost).items()
        },
    )


def _refuse_release(change: RayRelease) -> None:
    if not _LABEL.fullmatch(change.release):
        raise InvalidRequestError(
            f"Ray takes no label release={change.release}: 63 letters, digits, '-', '_' and '.' at most, a "
            "letter or digit at both ends. Give the release another id. Nothing was touched."
        )


def _refuse_disagreement(before: FleetState) -> None:
    """Refuse a node whose way back is not known: its link leads to another release than it runs."""
    apart = [
        f"{name} runs {state.running}, linked is {state.release or 'nothing'}"
        for name, state in sorted(before.instances.items())
        if state.running is not None and state.running != state.release
    ]
    if apart:
        raise InvalidRequestError(
            f"Bring link and node into agreement first, or no way back is known: {'; '.join(apart)}. Link "
            "the release that is meant and restart the node. Nothing was touched."
        )


def _refuse_doubt(before: FleetState, own: dict[str, RayNode]) -> None:
    """Refuse a node of which it is not known whether it is in the cluster, and with what.

    Taken for one that is to be added it would be stopped undrained, and left stopped by the way back.
    """
    unread = [name for name, state in before.instances.items() if state.running is None and name in own]
    gone = [name for name, state in before.instances.items() if state.running is not None and name not in own]
    if unread or gone:
        raise InvalidRequestError(
            f"In the cluster, but with no release that could be read: {', '.join(unread) or 'none'}; not "
            f"there any more: {', '.join(gone) or 'none'}. Nothing was touched. Look whether the head "
            "answers in time, and whether each node's service starts Ray with --labels-file "
            "<root>/current/labels.yaml; then deploy again."
        )


def _refuse_unlabelled(added: list[Instance], strangers: tuple[RayNode, ...]) -> None:
    """Refuse to add what may be at work already, as a node that does not say whose it is."""
    nameless = ", ".join(node.ip or node.node_id[:12] for node in strangers if not node.host)
    if not nameless:
        return
    running = [each.name for each in added if is_running(each.host, each.service)]
    if running:
        raise InvalidRequestError(
            f"The service of {', '.join(running)} runs already, and the cluster has nodes without the label "
            f"host ({nameless}): it would be stopped undrained. Nothing was touched. Drain and stop it "
            "first, or have it start Ray with --labels-file <root>/current/labels.yaml; then deploy again."
        )


def _concerned(change: RayRelease, fleet: Fleet, own: dict[str, RayNode]) -> list[Instance]:
    return [each for each in fleet.instances if each.name in own or each.name in change.nodes]


def _versions(cluster: RayCluster, instances: list[Instance]) -> dict[str, str]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda instance: _version(cluster, instance), instances))
    return {
        instance.name: version
        for instance, version in zip(instances, found, strict=True)
        if version is not None
    }


def _version(cluster: RayCluster, instance: Instance) -> str | None:
    """Return the version of the ray program on a node's host; None: there is none, or it does not run."""
    try:
        said = hosts.run(instance.host, (cluster.program, "--version"), timeout_s=_VERSION_TIMEOUT_S).stdout
    except CommandError:
        return None
    words = said.split()
    return words[-1] if words else None


def _actors(cluster: RayCluster) -> tuple[RayActor, ...]:
    actors = ray.actors(cluster)
    limits = restart_limits(cluster) if actors else {}
    return tuple(actor.model_copy(update={"max_restarts": limits.get(actor.actor_id)}) for actor in actors)
