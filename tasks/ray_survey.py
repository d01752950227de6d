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

_VERSION_TIMEOUT_S = 60.0
_AT_ONCE = 4
#: What Ray takes as the value of a label.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def survey_ray(change: RayRelease, fleet: Fleet, before: FleetState) -> RaySituation:
    """Return how the cluster is: versions, nodes, actors and tasks.

    Raises:
        InvalidRequestError: the release cannot be a label, or a node runs another release than it is linked
            to; nothing was touched.
        RayClusterError: the head does not answer, or not with all; nothing was touched.
    """
    cluster = fleet.ray_cluster
    _refuse_release(change)
    _refuse_disagreement(before)
    alive = [node for node in ray.nodes(cluster) if not node.is_head]
    own = {node.host: node for node in alive if node.host in fleet.names}  # of two the newest
    return RaySituation(
        head_version=ray.version(cluster),
        versions=_versions(cluster, _concerned(change, fleet, own)),
        nodes=own,
        strangers=tuple(node for node in alive if node.host not in fleet.names),
        actors=_actors(cluster),
        tasks=ray.tasks(cluster),
        failed_tasks=len(ray.failed_tasks(cluster)),
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
