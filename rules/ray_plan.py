"""The plan of a new release of a Ray cluster's nodes: drain, update, restart, verify, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from rules.change import RayRelease
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance
from rules.frozen import Count, Frozen, Name
from rules.plan import ObserveBatch, Plan, ProbeInstance, RestartService, Step, SwitchRelease
from rules.ray_actions import DrainNode, StopService, VerifyNode
from rules.ray_cluster import RayActor, RayNode, RayTask
from rules.rollout import has_release, numbered, only_instance, staged, step_of
from rules.strategy import InPlace, Rolling, Strategy
from rules.undo import RestoreNode


class RaySituation(Frozen):
    """The cluster as it was just read."""

    head_version: str = Field(description="Ray's version on the head")
    versions: dict[Name, str] = Field(description="instance -> version of the ray program on its host")
    nodes: dict[Name, RayNode] = Field(description="instance -> its node that is alive")
    strangers: tuple[RayNode, ...] = Field(
        default=(), description="nodes that are alive and are no instance's, without the head"
    )
    actors: tuple[RayActor, ...] = Field(default=(), description="alive ones, of all nodes")
    tasks: tuple[RayTask, ...] = Field(default=(), description="running ones, of all nodes")
    failed_tasks: dict[str, Count] = Field(default_factory=dict, description="node id -> tries that failed")


class _Nodes(Frozen):
    """Which nodes are updated, added and removed, in this order."""

    updated: tuple[Instance, ...]
    added: tuple[Instance, ...]
    removed: tuple[Instance, ...]

    @property
    def all(self) -> tuple[Instance, ...]:
        return (*self.updated, *self.added, *self.removed)


def plan_ray(
    change: RayRelease, strategy: Strategy, fleet: Fleet, before: FleetState, *, situation: RaySituation
) -> Plan:
    """Return the steps that bring a release to a cluster's nodes; none when they have it already.

    Raises:
        InvalidRequestError: it does not fit this cluster, or would lose what cannot be repeated.
    """
    rolling = _rolling(strategy)
    nodes = _nodes(change, strategy, fleet, before)
    _refuse_versions((*nodes.updated, *nodes.added), situation)
    _refuse_losses(change, nodes, situation)
    _refuse_too_many_out(rolling, nodes, before)
    steps: list[Step] = [staged(node, change, before) for node in (*nodes.updated, *nodes.added)]
    size = rolling.batch_size
    for start in range(0, len(nodes.updated), size):
        steps += _batch(
            change, nodes.updated[start : start + size], fleet, situation, before=before, rolling=rolling
        )
    for node in nodes.added:
        steps += [*_brought_up(change, node, fleet, situation, before=before), _observed((node,), rolling)]
    for node in nodes.removed:
        steps += _taken_out(node, fleet, situation, before=before)
    return Plan(
        change=change,
        strategy=strategy,
        before=before,
        steps=numbered(steps),
        notes=tuple(_notes(nodes, fleet, situation)) if steps else (),
    )


def _rolling(strategy: Strategy) -> Rolling:
    match strategy:
        case Rolling():
            return strategy
        case InPlace():
            return Rolling()
        case _:
            raise InvalidRequestError(
                f"The nodes of one Ray cluster have no sides for {strategy.strategy}: use rolling, or "
                "in_place for one node. For a second cluster beside this one, give it a block of its own, "
                "and deploy the application that submits to it blue-green. Nothing was touched."
            )


def _nodes(change: RayRelease, strategy: Strategy, fleet: Fleet, before: FleetState) -> _Nodes:
    runs = {name for name, state in before.instances.items() if state.running is not None}
    unknown = sorted(set(change.nodes) - set(fleet.names))
    if unknown:
        raise InvalidRequestError(
            f"{fleet.application} has no node {', '.join(unknown)}; it has {', '.join(fleet.names)}. Nothing "
            "was touched."
        )
    if isinstance(strategy, InPlace):
        if change.nodes:
            raise InvalidRequestError(
                "in_place updates one node: leave `nodes` empty, or use rolling. Nothing was touched."
            )
        one = only_instance(strategy, fleet)
        if one.name not in runs:
            raise InvalidRequestError(
                f"{one.name} is not in the cluster: to add it, use rolling and list all `nodes` that are to "
                "run. Nothing was touched."
            )
        wanted = runs = {one.name}
    else:
        wanted = set(change.nodes) or runs
    if not wanted:
        raise InvalidRequestError(
            f"No node of {fleet.application} is in the cluster, so there is none to update: list the `nodes` "
            "that are to run. Nothing was touched."
        )
    return _Nodes(
        updated=tuple(
            i for i in fleet.instances if i.name in wanted & runs and not has_release(change, before, i.name)
        ),
        added=tuple(i for i in fleet.instances if i.name in wanted - runs),
        removed=tuple(i for i in fleet.instances if i.name in runs - wanted),
    )


def _refuse_versions(nodes: tuple[Instance, ...], situation: RaySituation) -> None:
    """Refuse what the head would refuse: it takes no node of another version."""
    silent = [node.name for node in nodes if node.name not in situation.versions]
    if silent:
        raise InvalidRequestError(
            f"Which version of Ray {', '.join(silent)} would start cannot be told, and the head takes none "
            f"but its own, {situation.head_version}. Look whether the host can be reached and whether the "
            "block's `program` runs there with --version. Nothing was touched."
        )
    other = {
        node.name: situation.versions[node.name]
        for node in nodes
        if situation.versions[node.name] != situation.head_version
    }
    if other:
        words = ", ".join(f"{name} has {version}" for name, version in other.items())
        raise InvalidRequestError(
            f"The head runs Ray {situation.head_version}, and takes no node of another version: {words}. "
            "A new version of Ray cannot be rolled out node by node. Bring up a second cluster of it beside "
            "this one, with a Sovereign Ray Cluster block of its own, and deploy the application that "
            "submits to it blue-green. Nothing was touched."
        )


def _refuse_losses(change: RayRelease, nodes: _Nodes, situation: RaySituation) -> None:
    """Refuse to end what Ray does not start again elsewhere, unless a person has accepted it by name."""
    stopped = _ids((*nodes.updated, *nodes.removed), situation)
    lost = sorted(
        {a.name for a in situation.actors if a.node_id in stopped and a.is_last_life}
        - set(change.accept_lost)
    )
    if lost:
        raise InvalidRequestError(
            f"Stopping their nodes ends these actors for good, for they may not be restarted: "
            f"{', '.join(lost)}. Nothing was touched. Create them with max_restarts, end them first, or name "
            "them in accept_lost."
        )


def _refuse_too_many_out(rolling: Rolling, nodes: _Nodes, before: FleetState) -> None:
    left = sum(state.running is not None for state in before.instances.values()) - len(nodes.removed)
    if nodes.removed and left < 1 and not nodes.added:
        raise InvalidRequestError("That would leave the cluster without a worker node. Nothing was touched.")
    if nodes.updated and rolling.batch_size >= left > 1:
        raise InvalidRequestError(
            f"A batch of {rolling.batch_size} would take out all {left} worker nodes at once, and running "
            "tasks had nowhere to go: use a smaller batch. Nothing was touched."
        )


def _ids(nodes: tuple[Instance, ...], situation: RaySituation) -> set[str]:
    return {situation.nodes[node.name].node_id for node in nodes if node.name in situation.nodes}


def _batch(
    change: RayRelease,
    batch: tuple[Instance, ...],
    fleet: Fleet,
    situation: RaySituation,
    *,
    before: FleetState,
    rolling: Rolling,
) -> Iterator[Step]:
    for node in batch:
        yield _drained(node, fleet, situation, before=before, reason=f"update to {change.release}")
    for node in batch:
        yield from _brought_up(change, node, fleet, situation, before=before)
    yield _observed(batch, rolling)


def _drained(
    node: Instance, fleet: Fleet, situation: RaySituation, *, before: FleetState, reason: str
) -> Step:
    node_id = situation.nodes[node.name].node_id
    drain = DrainNode(instance=node.name, node_id=node_id, drain_s=fleet.ray_cluster.drain_s, reason=reason)
    return step_of(f"{node.name}: drain", drain, _back(node, fleet, situation, before=before))


def _back(node: Instance, fleet: Fleet, situation: RaySituation, *, before: FleetState) -> RestoreNode:
    recorded, known = before.instances[node.name], situation.nodes.get(node.name)
    return RestoreNode(
        instance=node.name,
        release=recorded.release,
        running=recorded.running,
        node_id=known.node_id if known else None,
        drain_s=fleet.ray_cluster.drain_s,
    )


def _brought_up(
    change: RayRelease, node: Instance, fleet: Fleet, situation: RaySituation, *, before: FleetState
) -> Iterator[Step]:
    name, known = node.name, situation.nodes.get(node.name)
    back = _back(node, fleet, situation, before=before)
    actors = tuple(actor.name for actor in situation.actors if known and actor.node_id == known.node_id)
    notice = f"actors of {name} are ended, and start anew elsewhere: {', '.join(actors)}" if actors else None
    yield step_of(f"{name}: switch to {change.release}", SwitchRelease(instance=name), back)
    verb = "stop and start" if known else "start"
    yield step_of(f"{name}: {verb}", RestartService(instance=name), back, interrupts=notice)
    yield step_of(f"{name}: wait until it is in the cluster", ProbeInstance(instance=name))
    verify = VerifyNode(
        instance=name,
        old_node_id=known.node_id if known else None,
        actors_before=len(situation.actors),
        unsettled_before=tuple(a.actor_id for a in situation.actors if a.state != "ALIVE"),
        failed_tasks_before=situation.failed_tasks.get(known.node_id, 0) if known else 0,
        accept_lost=change.accept_lost,
    )
    yield step_of(f"{name}: verify node, job, actors and tasks", verify)


def _observed(batch: tuple[Instance, ...], rolling: Rolling) -> Step:
    names = tuple(node.name for node in batch)
    observe = ObserveBatch(instances=names, observe_s=rolling.observe_s, limits=rolling.limits)
    return step_of(f"observe {', '.join(names)}", observe)


def _taken_out(
    node: Instance, fleet: Fleet, situation: RaySituation, *, before: FleetState
) -> Iterator[Step]:
    yield _drained(node, fleet, situation, before=before, reason="taken out of the cluster")
    back = _back(node, fleet, situation, before=before)
    yield step_of(f"{node.name}: stop", StopService(instance=node.name), back)


def _notes(nodes: _Nodes, fleet: Fleet, situation: RaySituation) -> Iterator[str]:
    stopped = _ids((*nodes.updated, *nodes.removed), situation)
    once = sorted(
        {task.name for task in situation.tasks if task.node_id in stopped and task.max_retries == 0}
    )
    if once:
        yield f"These tasks have no retries and are waited for: {', '.join(once)}."
    unsure = sorted({a.name for a in situation.actors if a.node_id in stopped and a.max_restarts is None})
    if unsure:
        yield f"Ray does not say whether these actors may be restarted: {', '.join(unsure)}."
    if len(situation.nodes) == 1 and nodes.updated and not situation.strangers:
        yield "There is one worker node only: tasks wait until it is back."
    concerned = {node.name for node in nodes.all}
    away = [name for name in fleet.names if name not in situation.nodes and name not in concerned]
    if away:
        yield f"Declared nodes that are not in the cluster, and stay as they are: {', '.join(away)}."
    if situation.strangers:
        ids = ", ".join(f"{node.host or node.ip or node.node_id[:8]}" for node in situation.strangers)
        yield f"Nodes of the cluster that are not declared, and stay as they are: {ids}."
