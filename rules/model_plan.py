"""The plan of a model's new release: from what the servers have, run and answer now.

Three ways lead to it: a restart in place, announced with its interruption; a hot swap into the running
server; and, by blue-green or canary, servers that nobody uses yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import Field

from rules.change import ModelRelease
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance
from rules.frozen import Frozen, Name
from rules.model_actions import CheckMemory, DrainRequests, HotSwap, MemoryLimit, TestInference, VerifyModel
from rules.plan import Plan, ProbeInstance, RestartService, Step, SwitchRelease, TestInstance
from rules.rollout import (
    Update,
    affected,
    drained,
    has_it_already,
    numbered,
    rejoined,
    rolled_out,
    serving,
    staged,
    step_of,
)
from rules.serving import ServedBefore, ServingLimits
from rules.strategy import InPlace, Rolling, Strategy
from rules.undo import RestoreModel


class ServerSituation(Frozen):
    """One server that the plan changes, as it is before."""

    swap_refusals: tuple[str, ...] = Field(description="why it cannot be swapped hot; empty: it can")
    served: ServedBefore = Field(description="how the declared prompts are answered now, by it or a peer")
    memory: tuple[MemoryLimit, ...] = Field(default=(), description="of its GPUs; empty: it uses none")
    last_start_s: float | None = Field(default=None, description="seconds its last start took; None: unknown")


class ModelSituation(Frozen):
    """What was read of the model and of the servers, for the plan."""

    faults: tuple[str, ...] = Field(default=(), description="why it cannot go on: disk, memory; empty: none")
    notes: tuple[str, ...] = Field(default=(), description="what people should know before they approve it")
    servers: dict[Name, ServerSituation]


def plan_model(
    change: ModelRelease, strategy: Strategy, fleet: Fleet, before: FleetState, *, situation: ModelSituation
) -> Plan:
    """Return the steps that bring a model's release to its users; none when they have it already.

    Raises:
        InvalidRequestError: it does not fit these servers, or not in this way; says what would.
    """
    if situation.faults:
        raise InvalidRequestError(f"{'; '.join(situation.faults)}. Nothing was touched.")
    if has_it_already(change, strategy, fleet, before):
        return Plan(change=change, strategy=strategy, before=before, steps=())
    members = affected(strategy, fleet, before)
    hot = frozenset(i.name for i in members if _goes_hot(change, situation.servers[i.name]))
    _refuse_forced_swap(change, members, situation)
    update = _update(change, strategy, fleet, before, situation=situation, hot=hot)
    steps: Iterable[Step] = rolled_out(strategy, fleet, before, update, release=change.release)
    if isinstance(strategy, InPlace | Rolling):  # staged before a server is taken out: copying takes long
        steps = (*(staged(instance, change, before) for instance in members), *steps)
    notes = (*situation.notes, *_ways(change, members, situation, hot=hot))
    return Plan(change=change, strategy=strategy, before=before, steps=numbered(steps), notes=notes)


def _goes_hot(change: ModelRelease, server: ServerSituation) -> bool:
    return change.way != "restart" and not server.swap_refusals


def _refuse_forced_swap(
    change: ModelRelease, members: tuple[Instance, ...], situation: ModelSituation
) -> None:
    refused = [
        f"{instance.name}: {'; '.join(situation.servers[instance.name].swap_refusals)}"
        for instance in members
        if situation.servers[instance.name].swap_refusals
    ]
    if change.way == "hot_swap" and refused:
        raise InvalidRequestError(
            f"A hot swap is not safe, it may kill the server: {' | '.join(refused)}. Nothing was touched. "
            "Use the way auto or restart, or blue-green for an update without an interruption."
        )


def _ways(
    change: ModelRelease, members: tuple[Instance, ...], situation: ModelSituation, *, hot: frozenset[str]
) -> Iterator[str]:
    for instance in members:
        if instance.name in hot:
            yield f"{instance.name} is swapped hot: same architecture, tensors, tokenizer and flags."
            continue
        asked = "that way was asked for" if change.way == "restart" else ""
        reasons = "; ".join(situation.servers[instance.name].swap_refusals)
        yield f"{instance.name} is restarted: {asked or reasons}."


def _update(
    change: ModelRelease,
    strategy: Strategy,
    fleet: Fleet,
    before: FleetState,
    *,
    situation: ModelSituation,
    hot: frozenset[str],
) -> Update:
    """Return the numbered steps of a model's update for one server.

    They are the guide's: graceful stop, replace the model, update the configuration (it is part of the
    release), start, verify loading, test inference, look at the memory.
    """
    limits = fleet.model_serving.limits
    stages_itself = not isinstance(strategy, InPlace | Rolling)
    # one that somebody took out of the balancer has no traffic to cut, and stays out
    ready = {i.name for i in serving(fleet, before) if before.servers.get(i.name) == "ready"}
    cuts_traffic = ready if isinstance(strategy, InPlace) else frozenset[str]()
    answering = before.healthy(tuple(ready))

    def update(instance: Instance) -> Iterator[Step]:
        name, server = instance.name, situation.servers[instance.name]
        is_alone = not any(other != name for other in answering)
        if stages_itself:
            yield staged(instance, change, before)
        # after SIGTERM a server still takes requests, which would then be lost; a swap needs no cut, but
        # where others serve meanwhile, users never see a model that is not verified
        is_cut = name in cuts_traffic and not (name in hot and is_alone)
        if is_cut:
            yield drained(name, limits.drain_s, before)
        if name in hot:
            yield from _swapped(change, instance, before)
        else:
            notice = _notice(server, name) if is_cut and is_alone else None
            yield from _restarted(change, instance, before, limits=limits, notice=notice)
        yield from _verified(change, instance, fleet, server)
        if is_cut:
            yield rejoined(name, limits.drain_s, before)

    return update


def _notice(server: ServerSituation, name: str) -> str:
    took = (
        f"its last start took {server.last_start_s:.0f} s" if server.last_start_s else "how long is not known"
    )
    return f"{name} serves nobody while it is drained and started again ({took})"


def _swapped(change: ModelRelease, instance: Instance, before: FleetState) -> Iterator[Step]:
    name, recorded = instance.name, before.instances[instance.name]
    back = RestoreModel(instance=name, release=recorded.release, running=recorded.running, hot=True)
    yield step_of(f"{name}: switch to {change.release}", SwitchRelease(instance=name), back)
    yield step_of(f"{name}: swap the weights hot", HotSwap(instance=name), back)


def _restarted(
    change: ModelRelease, instance: Instance, before: FleetState, *, limits: ServingLimits, notice: str | None
) -> Iterator[Step]:
    name, recorded = instance.name, before.instances[instance.name]
    back = RestoreModel(instance=name, release=recorded.release, running=recorded.running)
    if recorded.running is not None:
        drain = DrainRequests(instance=name, drain_s=limits.drain_s, cut=limits.cut_after_drain)
        yield step_of(f"{name}: wait for running requests", drain)
    yield step_of(f"{name}: switch to {change.release}", SwitchRelease(instance=name), back)
    yield step_of(f"{name}: stop and start", RestartService(instance=name), back, interrupts=notice)
    yield step_of(f"{name}: wait until ready", ProbeInstance(instance=name))


def _verified(
    change: ModelRelease, instance: Instance, fleet: Fleet, server: ServerSituation
) -> Iterator[Step]:
    name, declared = instance.name, fleet.model_serving.prompts
    yield step_of(f"{name}: verify that {change.release} is loaded", VerifyModel(instance=name))
    asked = f"{name}: ask {len(declared)} declared prompts"
    yield step_of(asked, TestInference(instance=name, before=server.served))
    if fleet.smoke_tests or fleet.smoke_script:
        yield step_of(f"{name}: smoke tests", TestInstance(instance=name))
    if server.memory:
        yield step_of(f"{name}: look at the GPU memory", CheckMemory(instance=name, limits=server.memory))
