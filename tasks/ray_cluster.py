"""A Ray cluster as its head lists it: version, nodes, actors and tasks. Its jobs: `tasks.ray_jobs`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rules.ray_cluster import RayActor, RayNode, RayNodeProbe, RayTask
from tasks.ray_api import Head, RayClusterError, Row, ask, listing, unusable

__all__ = [
    "RayClusterError",
    "actors",
    "failed_tasks",
    "healthy",
    "lost_actors",
    "node",
    "node_of",
    "nodes",
    "resources",
    "running_release",
    "tasks",
    "version",
]

#: The namespace of the actors that Ray itself makes, one for each submitted job that runs.
SUPERVISORS = "SUPERVISOR_ACTOR_RAY_NAMESPACE"
_SUPERVISOR_NAME = "_ray_internal_job_actor_"

#: A task in one of these is not on any node. RUNNING alone would miss one that waits within `ray.get`.
_NOWHERE = ("FINISHED", "FAILED", "NIL", "PENDING_ARGS_AVAIL", "PENDING_NODE_ASSIGNMENT")
#: An actor that moves on while it is asked for is seen where it goes, not missed.
_LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING", "ALIVE")
#: How a task fails by its own doing.
_OWN_FAILURES = frozenset({"TASK_EXECUTION_EXCEPTION", "TASK_CANCELLED"})
#: How an actor ends because those who use it wanted that.
_OWN_ENDS = frozenset({"RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED", "OWNER_DIED"})


def version(cluster: Head) -> str:
    """Return Ray's version on the head, such as `2.60.0`.

    Raises:
        RayClusterError: no usable answer.
    """
    answer = ask(cluster, "GET", "api/version")
    try:
        return str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise unusable(cluster, "api/version", answer.text) from error


def healthy(cluster: Head) -> bool:
    """Return whether the head says that its control store is well; one that cannot be reached is not."""
    try:
        return ask(cluster, "GET", "api/gcs_healthz").text.strip() == "success"
    except RayClusterError:
        return False


def nodes(cluster: Head) -> tuple[RayNode, ...]:
    """Return the nodes that are alive, the newest last, the head's too.

    A node that is killed is listed alive for about 17 s more. One that drains is too, and nothing tells it.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    rows = listing(cluster, "nodes", [("state", "=", "ALIVE")])
    return tuple(_node(row) for row in sorted(rows, key=lambda row: row["start_time_ms"]))


def node(cluster: Head, node_id: str) -> RayNode | None:
    """Return a node by its id, alive or dead; None: the cluster does not know it.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    rows = listing(cluster, "nodes", [("node_id", "=", node_id)])
    return _node(rows[0]) if rows else None


def node_of(cluster: Head, host: str) -> RayNode | None:
    """Return the node that is alive with that label `host`; None: there is none.

    Of two the newest: the other is one that was killed, and that Ray has not missed yet.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    found = [each for each in nodes(cluster) if each.host == host and not each.is_head]
    return found[-1] if found else None


def resources(cluster: Head, node_id: str) -> dict[str, float]:
    """Return what a node offers in all, by the resource's name; empty: the cluster does not know the node.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    rows = listing(cluster, "nodes", [("node_id", "=", node_id)])
    return {name: float(amount) for row in rows for name, amount in (row["resources_total"] or {}).items()}


def running_release(probe: RayNodeProbe) -> str | None:
    """Return the label `release` of the node that is alive on the probe's host.

    None when none is, when it has no such label, and when the head does not answer.
    """
    try:
        found = node_of(probe, probe.node)
    except RayClusterError:
        return None
    return (found.release or None) if found else None


def actors(cluster: Head) -> tuple[RayActor, ...]:
    """Return the actors that live or are about to, of all nodes; a submitted job's driver is one, `job ID`.

    The API does not tell how often an actor may be restarted: see `tasks.ray_jobs.restart_limits`.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    # not by `state != DEAD`: that is sifted only after Ray has cut its list, which remembers many dead ones
    rows = [row for state in _LIVING for row in listing(cluster, "actors", [("state", "=", state)])]
    return tuple(_actor(row) for row in {row["actor_id"]: row for row in rows}.values())


def lost_actors(cluster: Head, node_ids: Iterable[str], *, accepted: Collection[str] = ()) -> tuple[str, ...]:
    """Return what died for good on these nodes without its users having ended it, by name and cause.

    Args:
        cluster: whom to ask.
        node_ids: where.
        accepted: names whose loss does not count.

    Raises:
        RayClusterError: no answer.
    """
    concerned = frozenset(node_ids)
    rows = listing(cluster, "actors", [("state", "=", "DEAD")], whole=False)
    lost = [
        (_actor(row).name, _cause(row))
        for row in rows
        if row["node_id"] in concerned and not _ended_by_its_users(row)
    ]
    return tuple(f"{name} ({cause})" for name, cause in lost if name not in accepted)


def tasks(cluster: Head, node_id: str | None = None) -> tuple[RayTask, ...]:
    """Return the tasks that are on a node, or on any; calls of actors' methods are none of them.

    What Ray knows of a task is a second old. It never tells how often a task may be repeated.

    Raises:
        RayClusterError: no answer, or not all of it.
    """
    filters = [("state", "!=", state) for state in _NOWHERE]
    if node_id is not None:
        filters.append(("node_id", "=", node_id))
    return tuple(
        RayTask(task_id=row["task_id"], name=row["name"] or row["func_or_class_name"], node_id=row["node_id"])
        for row in listing(cluster, "tasks", filters)
        if row["type"] == "NORMAL_TASK" and row["node_id"]
    )


def failed_tasks(cluster: Head, *, accepted: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the tries of tasks that failed, though not by their own exception: node id -> names and errors.

    Ray remembers some of the past only, and lists 10,000 at most. What was on no node yet has the id "".

    Args:
        cluster: whom to ask.
        accepted: names of tasks whose failures do not count.

    Raises:
        RayClusterError: no answer.
    """
    found = defaultdict[str, list[str]](list)
    for row in listing(cluster, "tasks", [("state", "=", "FAILED")], whole=False):
        name = row["name"] or row["func_or_class_name"]
        is_own = row["type"] != "NORMAL_TASK" or row["error_type"] in _OWN_FAILURES
        if not is_own and name not in accepted:
            found[row["node_id"] or ""].append(f"{name} ({row['error_type']})")
    return {node_id: tuple(words) for node_id, words in found.items()}


# --- what is listed --------------------------------------------------------------------------------


def _node(row: Row) -> RayNode:
    labels = row["labels"] or {}
    return RayNode(
        node_id=row["node_id"],
        host=labels.get("host", ""),
        release=labels.get("release", ""),
        is_alive=row["state"] == "ALIVE",
        is_head=bool(row["is_head_node"]),
        ip=row["node_ip"] or "",
        words=row["state_message"] or "",
    )


def _actor(row: Row) -> RayActor:
    name = row["name"] or row["class_name"]
    if row["ray_namespace"] == SUPERVISORS:
        name = f"job {name.removeprefix(_SUPERVISOR_NAME)}"
    # what a drained node cost does not count against an actor's limit. They are numbers in quotation marks.
    forgiven = int(row["num_restarts_due_to_node_preemption"] or 0)
    return RayActor(
        actor_id=row["actor_id"],
        name=name,
        node_id=row["node_id"] or "",
        state=row["state"],
        restarts=max(0, int(row["num_restarts"] or 0) - forgiven),
    )


def _death(row: Row) -> tuple[str, Mapping[str, Any]]:
    """Return what kind of death an actor died, and what is known of it."""
    causes = row["death_cause"] or {}
    return next(((kind, known) for kind, known in causes.items() if isinstance(known, dict)), ("unknown", {}))


def _cause(row: Row) -> str:
    kind, known = _death(row)
    return str(known.get("reason") or kind)


def _ended_by_its_users(row: Row) -> bool:
    _, known = _death(row)
    words = str(known.get("error_message", ""))
    if "node has crashed" in words:  # so do actors end whose owner was on a node that was stopped
        return False
    return known.get("reason") in _OWN_ENDS or "INTENDED" in words
