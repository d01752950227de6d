"""The plan of a new NixOS system: from the hosts as they are, and from what was built for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance
from rules.nixos import HostFacts, NixosPlaces, NixosSituation
from rules.nixos_actions import ReleaseRoots, StageSystem, UpdateChannel
from rules.nixos_notes import host_notes
from rules.nixos_update import HostUpdate, channel_back, interrupted_units, looked_at, updated
from rules.plan import ObserveBatch, Plan, Step
from rules.rollout import affected, meant_for, numbered, rolled_out, serving
from rules.strategy import InPlace, Rolling, Strategy
from rules.system_change import NixosChannel, NixosClosures, SystemRelease


def plan_nixos(
    change: SystemRelease,
    strategy: Strategy,
    fleet: Fleet,
    before: FleetState,
    *,
    situation: NixosSituation,
) -> Plan:
    """Return the steps that bring a release to hosts; none when their users have it already.

    Raises:
        InvalidRequestError: it does not fit these hosts, or not in this way; says what would.
    """
    has_it = _those_that_have_it(change, before, situation)
    if all(instance.name in has_it for instance in meant_for(strategy, fleet, before)):
        return Plan(change=change, strategy=strategy, before=before, steps=())
    members = affected(strategy, fleet, before)
    _refuse_unknown(members, before, situation)
    due = tuple(instance for instance in members if instance.name not in has_it)
    _refuse_what_cannot_work(change, due, situation)
    _refuse_all_at_once(change, strategy, members, due=due, situation=situation)
    hosts = {
        i.name: _host(change, strategy, fleet, before, instance=i, facts=situation[i.name]) for i in members
    }
    steps = _steps(change, strategy, fleet, before, hosts=hosts, has_it=has_it)
    return Plan(
        change=change,
        strategy=strategy,
        before=before,
        steps=numbered(steps),
        finish=tuple(ReleaseRoots(instance=instance.name) for instance in due),
        notes=tuple(note for i in due for note in host_notes(change, i, situation[i.name])),
    )


def _those_that_have_it(
    change: SystemRelease, before: FleetState, situation: NixosSituation
) -> frozenset[str]:
    return frozenset(name for name in before.instances if _has_it(change, name, before, situation.get(name)))


def _has_it(change: SystemRelease, name: str, before: FleetState, facts: HostFacts | None) -> bool:
    """Whether a host boots and runs its new system; False where it is not known which one that is."""
    closures = change.source.paths if isinstance(change.source, NixosClosures) else {}
    wanted = facts.built if facts else closures.get(name)
    awaits_reboot = facts is not None and bool(facts.reboot_for) and change.reboot != "never"
    state = before.instances[name]
    return wanted is not None and state.release == wanted == state.running and not awaits_reboot


# --- what is refused -------------------------------------------------------------------------------


def _refuse_unknown(members: tuple[Instance, ...], before: FleetState, situation: NixosSituation) -> None:
    missing = [instance.name for instance in members if instance.name not in situation]
    if missing:
        raise InvalidRequestError(
            f"What {', '.join(missing)} runs and would get is not known: bring it within reach, or update "
            "the others one by one, in_place. Nothing was touched."
        )
    for name in (instance.name for instance in members):
        facts, state = situation[name], before.instances[name]
        if (facts.profile, facts.running) != (state.release, state.running):
            raise InvalidRequestError(
                f"{name} was changed while it was looked at: its profile was at {state.release}, with "
                f"{state.running} active, and is at {facts.profile}, with {facts.running}. Deploy again once "
                "whoever changes it has finished. Nothing was touched."
            )


def _refuse_what_cannot_work(
    change: SystemRelease, due: tuple[Instance, ...], situation: NixosSituation
) -> None:
    if change.activate == "boot" and change.reboot == "never":
        raise InvalidRequestError(
            "With activate: boot the new system is active only after a reboot, and reboot is never: use "
            "reboot: when_needed, or activate: live. Nothing was touched."
        )
    for instance in due:
        fault = _fault(change, instance, situation[instance.name])
        if fault:
            raise InvalidRequestError(f"{instance.name}: {fault} Nothing was touched.")


def _fault(change: SystemRelease, instance: Instance, facts: HostFacts) -> str | None:
    """Return why a host cannot be brought to its new system in this way, and which way would do."""
    host = instance.nixos_host
    if host.guard_s < host.activate_s + host.settle_s:
        return (
            f"guard_s is {host.guard_s:g}, so its guard may take it back in the middle: declare at least "
            f"activate_s and settle_s together, which are {host.activate_s + host.settle_s:g}."
        )
    if facts.init_changes and change.activate == "live":
        return (
            "the new system has another interface of init, and cannot be activated in the running one: use "
            "activate: boot, which reboots into it."
        )
    # guard and recovery would take back what this deployment cannot live to confirm
    is_ours = instance.host.address is None and host.places.current == NixosPlaces().current
    if is_ours and change.reboots(facts):
        by_hand = ", or with reboot: never, and reboot it by hand" if change.activate == "live" else ""
        return (
            "the deployment runs on this very host, and would end with its reboot: deploy it from a worker "
            f"on another one{by_hand}."
        )
    knows_channel = channel_back(instance, facts) is not None and facts.channel_content is not None
    if isinstance(change.source, NixosChannel) and not knows_channel:
        return f"it has no channel {host.channel} to come back to: add one there, or deploy from a flake."
    return None


def _refuse_all_at_once(
    change: SystemRelease,
    strategy: Strategy,
    members: tuple[Instance, ...],
    *,
    due: tuple[Instance, ...],
    situation: NixosSituation,
) -> None:
    is_one_batch = isinstance(strategy, Rolling) and strategy.batch_size >= len(members) > 1
    rebooted = [instance for instance in due if change.reboots(situation[instance.name])]
    if is_one_batch and len(rebooted) == len(members):
        raise InvalidRequestError(
            f"One batch would reboot all {len(members)} hosts before any of them was observed: use a smaller "
            "batch_size. Nothing was touched."
        )


# --- the steps -------------------------------------------------------------------------------------


def _host(
    change: SystemRelease,
    strategy: Strategy,
    fleet: Fleet,
    before: FleetState,
    *,
    instance: Instance,
    facts: HostFacts,
) -> HostUpdate:
    """Return what is done to one host, and whether users notice."""
    name = instance.name
    names = tuple(member.name for member in serving(fleet, before))
    # one that somebody took out of the balancer has no traffic to cut, and stays out
    ready = tuple(n for n in names if before.servers.get(n) == "ready")
    is_alone = not any(other != name for other in before.healthy(ready))
    is_cut = isinstance(strategy, InPlace) and name in ready
    is_quiet = not (change.reboots(facts) or interrupted_units(facts))
    return HostUpdate(
        instance=instance,
        facts=facts,
        is_tested=bool(fleet.smoke_tests or fleet.smoke_script),
        # the only one is left in place where nothing of it stops: to drain it would be the interruption
        is_drained=is_cut and not (is_alone and is_quiet),
        serves_users=(is_cut and is_alone) or (fleet.route is None and name in names),
    )


def _steps(
    change: SystemRelease,
    strategy: Strategy,
    fleet: Fleet,
    before: FleetState,
    *,
    hosts: dict[str, HostUpdate],
    has_it: frozenset[str],
) -> tuple[Step, ...]:
    def update(instance: Instance) -> Iterator[Step]:
        host = hosts[instance.name]
        if instance.name in has_it:
            return looked_at(change, host)
        return updated(change, host, before)

    steps = rolled_out(strategy, fleet, before, update, release=change.release)
    if not isinstance(strategy, Rolling):
        return tuple(steps)
    # nobody is drained for what is there already, nor for a copy that takes long; and no host is changed
    # before all of them have what they will need
    left = _without(steps, has_it)
    return tuple(sorted(left, key=lambda step: not isinstance(step.action, UpdateChannel | StageSystem)))


def _without(steps: Iterable[Step], names: frozenset[str]) -> Iterator[Step]:
    """Yield the steps of a rolling update that concern other hosts than these."""
    for step in steps:
        if getattr(step.action, "instance", None) in names:
            continue
        if not isinstance(step.action, ObserveBatch):
            yield step
        elif left := tuple(name for name in step.action.instances if name not in names):
            observe = step.action.model_copy(update={"instances": left})
            yield step.model_copy(update={"action": observe, "title": f"observe {', '.join(left)}"})
