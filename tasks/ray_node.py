"""Effects on one node of a Ray cluster: drain, restart, stop, the way back. The proof: `tasks.ray_verify`.

Ray does not tell that a node drains, and has no way to end a drain: a node that was drained takes work again
only as a new node, so what tells a restarted node from a drained one is its id.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

from rules.errors import CommandError, StepFailedError
from rules.fleet import Fleet, Instance
from rules.frozen import Frozen, Seconds
from rules.ray_actions import DrainNode
from rules.ray_cluster import RayCluster, RayNode
from rules.undo import RestoreNode
from rules.words import listed
from tasks import host as hosts
from tasks import ray_cluster as ray
from tasks import ray_jobs, server_service
from tasks.application import restore_pointer, stop_service, wait_until_back
from tasks.ray_api import RayClusterError, token
from tasks.ray_verify import canaries, verify_node
from tasks.settings import Settings

__all__ = ["drain_node", "restart_node", "restore_node", "stop_node", "verify_node"]

#: What Ray knows of a task is a second old, or older where a host is busy: one that began just before may be
#: missing from a reading. A node without actors ends by itself once it is idle, so that one is given longer.
_ZERO_READINGS = 3
_ZERO_READINGS_WITHOUT_ACTORS = 10
_READ_EVERY_S = 1.0
_POLL_S = 0.5
#: Of the time that a whole rollback has: others must come back too.
_SHARE_OF_ROLLBACK = 0.25
#: A killed node is missed by Ray after 17 s only.
_MISSED_AFTER_S = 60.0
_NAMED = 5

_log = logging.getLogger(__name__)


class _Reading(Frozen):
    """What can be seen of a node that drains."""

    running: dict[str, str]  # tasks' names by their id
    holds_actors: bool
    is_gone: bool


class _Drained(Frozen):
    """How a drain went."""

    took_s: Seconds
    waited_for: tuple[str, ...]  # names of tasks that ran at first or later
    left: tuple[str, ...]  # names of tasks that still run
    is_over: bool  # whether the node runs no task, as far as can be told
    is_gone: bool
    doubt: str  # why it cannot be told


def drain_node(
    fleet: Fleet,
    instance: Instance,
    action: DrainNode,
    *,
    still_wanted: Callable[[], None],
    settings: Settings,
) -> str:
    """Have a node take no new tasks, wait until it runs none, and say in words how that went.

    Calls of actors' methods are not waited for: they go on coming until the node is stopped.

    Args:
        fleet: whose cluster it is in.
        instance: the node.
        action: the node's id, and how long its tasks are waited for.
        still_wanted: called between readings; raises when the deployment must not go on.
        settings: limits.

    Raises:
        StepFailedError: it is not the node it should be, or tasks still run at the deadline: nothing was
            stopped, so nothing is lost.
        RayClusterError: the head does not answer; nothing was done.
        CommandError: Ray refused.
    """
    cluster = fleet.ray_cluster
    node = ray.node(cluster, action.node_id)
    if node is None or (node.is_alive and node.host != instance.name):
        # to drain a node that it does not know is a success to Ray, which does nothing
        state = f"is the node of {node.host or 'no instance'}" if node else "is unknown to the cluster"
        raise StepFailedError(
            f"{instance.name}: node {action.node_id[:12]} {state}; nothing was drained. Plan the deployment "
            "anew: the node was replaced meanwhile, or the head restarted."
        )
    if not node.is_alive:
        _refuse_another(cluster, instance, node)
        return f"{instance.name}: nothing to drain, its node is dead already ({node.words or 'no reason'})"
    _begin_drain(cluster, instance, node, reason=action.reason, deadline_s=action.drain_s, settings=settings)
    drained = _wait_until_idle(cluster, node, timeout_s=action.drain_s, still_wanted=still_wanted)
    if not drained.is_over:
        raise StepFailedError(
            f"{instance.name} still runs tasks after {drained.took_s:.0f} s of draining (limit "
            f"{action.drain_s:g} s): {_named(drained.left) or drained.doubt}. It was not stopped, but takes "
            "no new tasks: Ray cannot end a drain, so taking this back restarts it, after it was waited for "
            "once more. Deploy again when they have ended, or with a larger drain_s."
        )
    return _drain_words(cluster, instance, node, drained)


def _refuse_another(cluster: RayCluster, instance: Instance, node: RayNode) -> None:
    """Refuse to take a node for gone in whose place another works: it would be stopped undrained."""
    another = ray.node_of(cluster, instance.name)
    if another:
        raise StepFailedError(
            f"{instance.name}: node {node.node_id[:12]} is dead, and {another.node_id[:12]} has taken its "
            "place since the plan was made; nothing was drained or stopped. Plan the deployment anew."
        )


def _begin_drain(
    cluster: RayCluster,
    instance: Instance,
    node: RayNode,
    *,
    reason: str,
    deadline_s: float,
    settings: Settings,
) -> None:
    # idle termination is refused for a busy node; after preemption a repeated task keeps all its retries.
    # Ray ends nothing at the deadline: it is only shown to whoever asks.
    argv = (cluster.program, "drain-node", "--address", cluster.gcs, "--node-id", node.node_id)
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason)
    deadline = ("--deadline-remaining-seconds", str(math.ceil(deadline_s)))
    secret = token(cluster)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret} if secret else None
    hosts.run(instance.host, (*argv, *why, *deadline), env=env, timeout_s=settings.command_timeout_s)


def _wait_until_idle(
    cluster: RayCluster, node: RayNode, *, timeout_s: float, still_wanted: Callable[[], None] = lambda: None
) -> _Drained:
    began, zeros, doubt = time.monotonic(), 0, ""
    seen, now = dict[str, str](), _Reading(running={}, holds_actors=True, is_gone=False)
    while True:
        try:
            now, doubt = _read(cluster, node), ""
        except RayClusterError as error:
            zeros, doubt = 0, str(error)  # not known is not none
        else:
            zeros = 0 if now.running else zeros + 1
            seen |= now.running
        took_s = time.monotonic() - began
        wanted = _ZERO_READINGS if now.holds_actors else _ZERO_READINGS_WITHOUT_ACTORS
        is_over = not doubt and (now.is_gone or zeros >= wanted)
        if is_over or took_s > timeout_s:
            return _Drained(
                took_s=took_s,
                waited_for=tuple(seen.values()),
                left=tuple(now.running.values()),
                is_over=is_over or zeros >= _ZERO_READINGS,
                is_gone=is_over and now.is_gone,
                doubt=doubt,
            )
        still_wanted()
        time.sleep(_READ_EVERY_S)


def _read(cluster: RayCluster, node: RayNode) -> _Reading:
    found = ray.node(cluster, node.node_id)
    if found is None:
        raise RayClusterError("the cluster does not know the node any more: its head was restarted")
    if not found.is_alive:
        return _Reading(running={}, holds_actors=False, is_gone=True)
    return _Reading(
        running={task.task_id: task.name for task in ray.tasks(cluster, node.node_id)},
        holds_actors=any(actor.node_id == node.node_id for actor in ray.actors(cluster)),
        is_gone=False,
    )


def _drain_words(cluster: RayCluster, instance: Instance, node: RayNode, drained: _Drained) -> str:
    count = len(drained.waited_for)
    tasks = f"{count} {'task was' if count == 1 else 'tasks were'} waited for" if count else "no task ran"
    words = f"{instance.name}: drained in {drained.took_s:.1f} s, {tasks}"
    if drained.is_gone:
        return f"{words}; the node ended by itself"
    with suppress(RayClusterError):
        there = tuple(actor.name for actor in ray.actors(cluster) if actor.node_id == node.node_id)
        return f"{words}; actors still there: {_named(there) or 'none'}"
    return words


def _named(names: tuple[str, ...]) -> str:
    return listed(names, shown=_NAMED)


def stop_node(fleet: Fleet, instance: Instance, *, settings: Settings) -> None:
    """Stop a node's service, and wait until the cluster lists none of it as alive; stopped already is fine.

    Nothing else on the host is stopped: `ray stop` would end every node that it sees there.

    Raises:
        StepFailedError: the service was stopped, but the cluster still lists its node.
        CommandError: the service does not stop.
    """
    stop_service(instance, settings=settings)
    deadline = time.monotonic() + _MISSED_AFTER_S
    while (still := _still_alive(fleet.ray_cluster, instance.name)) is not None:
        if time.monotonic() > deadline:
            raise StepFailedError(
                f"{instance.name}: its service was stopped, but after {_MISSED_AFTER_S:g} s {still}. It was "
                "not started again. Look for another node with the label "
                f"host={instance.name}, and whether the service ends all that it started."
            )
        time.sleep(_POLL_S)


def _still_alive(cluster: RayCluster, host: str) -> str | None:
    """Say in words which node is not known to be gone; None: none is alive."""
    try:
        node = ray.node_of(cluster, host)
    except RayClusterError as error:
        return f"it cannot be told whether the node is gone: {error}"
    return f"the cluster lists node {node.node_id[:12]} as alive" if node else None


def restart_node(fleet: Fleet, instance: Instance, *, settings: Settings) -> None:
    """Stop a node, see the cluster forget it, and start it with the release that is linked.

    It comes back as a new node, with an id of its own; it may take longer until it is listed.

    Raises:
        StepFailedError: the cluster still lists the old node; it was not started again.
        CommandError: the service does not stop or start.
    """
    stop_node(fleet, instance, settings=settings)
    # a start whose head is dead would try for minutes
    server_service.start(instance.host, instance.service, timeout_s=settings.command_timeout_s)


# --- the way back ----------------------------------------------------------------------------------


def restore_node(fleet: Fleet, instance: Instance, step: RestoreNode, *, settings: Settings) -> None:
    """Have the recorded release linked and a node of it that takes work; does nothing where that is so.

    What runs on a node that must be stopped is drained first, up to a quarter of the rollback's time. At that
    deadline it goes on: tasks with retries are repeated elsewhere, and those without are named in the log.

    Raises:
        UndoFailedError: the recorded release does not come up.
        StepFailedError: the node does not go away.
        RayClusterError: the head does not answer; repeat it.
        CommandError: a command on the host failed.
    """
    cluster = fleet.ray_cluster
    _discard_canaries(cluster, instance)
    node = ray.node_of(cluster, instance.name)
    is_restored = step.running is not None and node is not None and _is_restored(node, step)
    if node and not is_restored:
        _drain_for_undo(cluster, instance, node, drain_s=step.drain_s, settings=settings)
    # not before: what still runs there imports by the link
    restore_pointer(instance, step.release)
    if is_restored:
        return
    if step.running is None:
        stop_node(fleet, instance, settings=settings)
        return
    restart_node(fleet, instance, settings=settings)
    wait_until_back(instance, step.running, pointer=step.release)


def _is_restored(node: RayNode, step: RestoreNode) -> bool:
    """Whether the node runs the recorded release and cannot have been drained by the deployment."""
    return node.release == step.running and node.node_id != step.node_id


def _drain_for_undo(
    cluster: RayCluster, instance: Instance, node: RayNode, *, drain_s: float, settings: Settings
) -> None:
    limit_s = min(drain_s, settings.rollback_deadline_s * _SHARE_OF_ROLLBACK)
    try:
        _begin_drain(cluster, instance, node, reason="taken back", deadline_s=limit_s, settings=settings)
    except CommandError as error:
        # not taken back at all would be worse; `ray start --block` drains itself a little when it is stopped
        _log.warning("%s is stopped without a drain: %s", instance.name, error)
        return
    drained = _wait_until_idle(cluster, node, timeout_s=limit_s)
    if not drained.is_over:
        _log.warning(
            "%s is stopped although it still runs tasks after %.0f s of draining: %s. Those with retries are "
            "repeated on other nodes, those without are lost.",
            instance.name,
            drained.took_s,
            _named(drained.left) or drained.doubt,
        )


def _discard_canaries(cluster: RayCluster, instance: Instance) -> None:
    """Have no canary wait for this node: one whose deployment was killed would run on the next one."""
    for job_id in canaries(cluster, instance.name):
        with suppress(RayClusterError):
            ray_jobs.discard(cluster, job_id)
