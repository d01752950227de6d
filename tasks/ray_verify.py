"""The proof that a new node of a Ray cluster works: its identity, a job pinned to it, actors and tasks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from rules.errors import StepFailedError
from rules.fleet import Fleet, Instance, ReleaseDirectory
from rules.ray_actions import VerifyNode
from rules.ray_cluster import RayCluster, RayNode
from tasks import ray_cluster as ray
from tasks import ray_jobs
from tasks.ray_api import RayClusterError
from tasks.settings import Settings

_POLL_S = 1.0
#: Shell, as a host need not have a Python on its PATH.
_SAYS_WHERE = (
    'linked=$(basename -- "$(readlink -f -- "$RELEASE_DIR")"); '
    'echo "host $(uname -n), linked $linked"; test "$linked" = "$RELEASE"'
)


def verify_node(
    fleet: Fleet,
    instance: Instance,
    action: VerifyNode,
    *,
    release: str,
    still_wanted: Callable[[], None],
    settings: Settings,  # noqa: ARG001 - every effect of a plan takes them
) -> str:
    """Prove that a node is new, has the release, and does what it is given; say in words what was seen.

    Args:
        fleet: whose cluster it is in.
        instance: the node.
        action: what was there before.
        release: what its label must say.
        still_wanted: called while it is waited; raises when the deployment must not go on.
        settings: limits.

    Raises:
        StepFailedError: it does not hold, and says what; the node goes on running.
        RayClusterError: the head does not answer.
    """
    cluster = fleet.ray_cluster
    node = _new_node(cluster, instance, action, release)
    ran = _run_canary(cluster, instance, node, release=release, still_wanted=still_wanted)
    actors = _compare_actors(
        cluster, instance, node, before=action, timeout_s=instance.start_timeout_s, still_wanted=still_wanted
    )
    failed = _compare_failures(cluster, instance, node, before=action)
    return f"{instance.name}: node {node.node_id[:12]} has {release}; {ran}; {actors}; {failed}"


def canaries(cluster: RayCluster, host: str) -> tuple[str, ...]:
    """Return the ids of the canary jobs of a node's host that the cluster knows, ended or not.

    Raises:
        RayClusterError: the head does not answer.
    """
    return tuple(job_id for job_id in ray_jobs.known(cluster) if job_id.startswith(_canary_prefix(host)))


def _canary_prefix(host: str) -> str:
    return f"canary.{host}."  # no host's name has a dot


def _new_node(cluster: RayCluster, instance: Instance, action: VerifyNode, release: str) -> RayNode:
    node = ray.node_of(cluster, instance.name)
    if node is None:
        raise StepFailedError(
            f"{instance.name}: the cluster lists no node with the label host={instance.name}."
        )
    name = f"{instance.name}: node {node.node_id[:12]}"
    if node.node_id == action.old_node_id:
        raise StepFailedError(
            f"{name} is still the old one: it was not restarted, and takes no work if drained."
        )
    if node.release != release:
        raise StepFailedError(
            f"{name} has the label release={node.release or '(none)'}, not {release}. Look whether its "
            "service starts Ray with --labels-file <root>/current/labels.yaml."
        )
    if not ray.resources(cluster, node.node_id).get(instance.name):
        raise StepFailedError(
            f"{name} offers no resource named {instance.name}, so no job can be pinned to it. Start Ray "
            f"there with --resources '{{\"{instance.name}\": 1}}'."
        )
    return node


def _run_canary(
    cluster: RayCluster, instance: Instance, node: RayNode, *, release: str, still_wanted: Callable[[], None]
) -> str:
    job_id = f"{_canary_prefix(instance.name)}{secrets.token_hex(6)}"
    env = {"RELEASE": release, "RELEASE_DIR": _linked(instance)}
    began = time.monotonic()
    try:
        ray_jobs.submit(cluster, cluster.canary or _SAYS_WHERE, job_id=job_id, host=instance.name, env=env)
        job = ray_jobs.wait_for(
            cluster, job_id, timeout_s=cluster.canary_timeout_s, still_wanted=still_wanted
        )
        said = ray_jobs.logs(cluster, job_id)
    finally:
        with suppress(RayClusterError):
            ray_jobs.discard(cluster, job_id)
    _judge_canary(instance, node, job, said, limit_s=cluster.canary_timeout_s)
    last = said.splitlines()[-1][:200] if said else "nothing"
    return f"canary job done there in {time.monotonic() - began:.1f} s, says: {last}"


def _linked(instance: Instance) -> str:
    match instance.layout:
        case ReleaseDirectory():
            return f"{instance.layout.root}/current"
        case profile:
            return profile.profile


def _judge_canary(instance: Instance, node: RayNode, job: ray_jobs.Job, said: str, *, limit_s: float) -> None:
    if job.status == "SUCCEEDED" and job.node_id == node.node_id:
        return
    if job.status == "SUCCEEDED":
        what = f"ran on node {str(job.node_id)[:12]}, not on {node.node_id[:12]} that it was pinned to"
    elif job.has_ended:
        what = f"ended as {job.status}: {job.message[:300]}"
    else:
        what = f"is {job.status} after {limit_s:g} s and was stopped: {job.message[:300]}"
    raise StepFailedError(f"{instance.name}: the canary job {what}. It wrote: {said[-800:] or 'nothing'}")


def _compare_actors(
    cluster: RayCluster,
    instance: Instance,
    node: RayNode,
    *,
    before: VerifyNode,
    timeout_s: float,
    still_wanted: Callable[[], None],
) -> str:
    """Say how the actors are, once none is on its way, or at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        actors = ray.actors(cluster)
        moving = [a for a in actors if a.state != "ALIVE" and a.actor_id not in before.unsettled_before]
        if not moving or time.monotonic() > deadline:
            break
        still_wanted()
        time.sleep(_POLL_S)
    restarting = tuple(actor.name for actor in moving if actor.state == "RESTARTING")
    pending = tuple(actor.name for actor in actors if actor.state not in ("ALIVE", "RESTARTING"))
    words = f"{len(actors)} actors, {before.actors_before} before"
    words += f" ({', '.join(pending[:5])} not begun)" if pending else ""
    concerned = [node_id for node_id in (before.old_node_id, node.node_id) if node_id]
    # fewer is no loss where those who used them have ended them
    is_fewer = len(actors) < before.actors_before
    lost = ray.lost_actors(cluster, concerned, accepted=before.accept_lost) if is_fewer else ()
    if restarting or lost:
        what = f"do not come back within {timeout_s:g} s" if restarting else "are lost"
        raise StepFailedError(
            f"{instance.name}: {words}; {', '.join((restarting or lost)[:5])} {what}. Look into the actors' "
            "logs in Ray's dashboard."
        )
    return f"{words}, none lost that was not accepted" if is_fewer else words


def _compare_failures(cluster: RayCluster, instance: Instance, node: RayNode, *, before: VerifyNode) -> str:
    failed = ray.failed_tasks(cluster, accepted=before.accept_lost)
    concerned = [node_id for node_id in (node.node_id, before.old_node_id) if node_id]
    here = [words for node_id in concerned for words in failed.get(node_id, ())]
    words = f"{len(here)} failed tasks on this node, {before.failed_tasks_before} before"
    if len(here) > before.failed_tasks_before:
        raise StepFailedError(
            f"{instance.name}: {words}, not by exceptions of their own: {', '.join(here[:5])}. Look into "
            "these tasks in Ray's dashboard."
        )
    return words
