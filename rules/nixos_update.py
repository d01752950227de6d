"""The steps that bring one NixOS host to its new system, and their way back.

It is staged, guarded, tested, verified, switched to, verified, rebooted where that is needed, and confirmed.
The guard is armed before anything is activated: a host that is cut off takes itself back.
"""

from __future__ import annotations

from collections.abc import Iterator

from rules.fleet import FleetState, Instance
from rules.frozen import Frozen
from rules.nixos import HostFacts, NixosHost
from rules.nixos_actions import (
    ActivateSystem,
    ArmGuard,
    ConfirmSystem,
    DisarmGuard,
    DropRoots,
    RebootHost,
    RestoreChannel,
    RestoreSystem,
    StageSystem,
    SwitchSystem,
    UpdateChannel,
    VerifySystem,
)
from rules.nixos_notes import few
from rules.plan import Step, TestInstance
from rules.rollout import drained, rejoined, step_of
from rules.strategy import Rolling
from rules.system_change import NixosChannel, SystemRelease

#: In place waits for open requests as long as rolling does by default.
_DRAIN_S = Rolling().drain_s


class HostUpdate(Frozen):
    """One host, what is known of it, and what its update may do to users."""

    instance: Instance
    facts: HostFacts
    is_tested: bool = False
    is_drained: bool = False
    serves_users: bool = False

    @property
    def name(self) -> str:
        """The host's name."""
        return self.instance.name

    @property
    def nixos(self) -> NixosHost:
        """What is declared about it."""
        return self.instance.nixos_host

    @property
    def back(self) -> RestoreSystem:
        """The way back of all that activates something here."""
        facts = self.facts
        return RestoreSystem(
            instance=self.name,
            release=facts.profile,
            running=facts.running,
            generation=facts.generation,
            # also where a reboot was due: whoever goes back is content with this kernel or the recorded
            # generation's, and must not stay with the one of the release that is taken back
            booted=facts.booted,
            failed_before=facts.failed_units,
            answering=facts.answering,
        )


def interrupted_units(facts: HostFacts) -> tuple[str, ...]:
    """Return the units that do not run for a while, or any more."""
    return (*facts.units.stopped, *facts.units.restarted)


def channel_back(instance: Instance, facts: HostFacts) -> RestoreChannel | None:
    """Return the way back of an update of the host's channel; None: there is nothing to come back to."""
    if facts.channels is None or facts.channel_generation is None or not facts.channel_url:
        return None
    return RestoreChannel(
        instance=instance.name,
        channel=instance.nixos_host.channel,
        generation=facts.channel_generation,
        path=facts.channels,
        url=facts.channel_url,
    )


def updated(change: SystemRelease, host: HostUpdate, before: FleetState) -> Iterator[Step]:
    """Yield the numbered steps of one host that has another system."""
    if isinstance(change.source, NixosChannel):
        yield _channel_updated(change.source, host)
    yield _staged(change, host)
    if host.is_drained:
        notice = f"{host.name} serves nobody while it is drained and brought to {change.release}"
        step = drained(host.name, _DRAIN_S, before)
        yield step.model_copy(update={"interrupts": notice if host.serves_users else None})
    yield _guarded(host)
    yield from _activated(change, host) if change.activate == "live" else _set_to_boot(change, host)
    if change.reboots(host.facts):
        yield from _rebooted(change, host)
    confirm = ConfirmSystem(instance=host.name, path=host.facts.built)
    yield step_of(f"{host.name}: confirm over a new connection, and disarm its guard", confirm)
    if host.is_drained:
        yield rejoined(host.name, _DRAIN_S, before)


def looked_at(change: SystemRelease, host: HostUpdate) -> Iterator[Step]:
    """Yield the steps of a host that has its system already: proven and tested before it gets users."""
    yield _verified(change, host, f"verify that {change.release} runs and is what boots", is_default=True)
    yield from _tested(host)


def _channel_updated(source: NixosChannel, host: HostUpdate) -> Step:
    channel, content = host.nixos.channel, host.facts.channel_content or ""
    update = UpdateChannel(instance=host.name, channel=channel, url=source.url, content=content)
    return step_of(f"{host.name}: update channel {channel}", update, channel_back(host.instance, host.facts))


def _staged(change: SystemRelease, host: HostUpdate) -> Step:
    facts = host.facts
    kept = dict.fromkeys(path for path in (facts.profile, facts.running, facts.booted) if path)
    stage = StageSystem(instance=host.name, path=facts.built, before=tuple(kept))
    return step_of(f"{host.name}: stage {change.release}", stage, DropRoots(instance=host.name))


def _guarded(host: HostUpdate) -> Step:
    guard_s = host.nixos.guard_s
    arm = ArmGuard(instance=host.name, guard_s=guard_s, back=host.back)
    title = f"{host.name}: arm its guard, which takes it back after {guard_s:g} s of silence"
    return step_of(title, arm, DisarmGuard(instance=host.name))


def _activated(change: SystemRelease, host: HostUpdate) -> Iterator[Step]:
    """Test, verify, switch, verify: until the test has passed, the host boots what it booted before."""
    name, path, failed = host.name, host.facts.built, host.facts.failed_units
    units = interrupted_units(host.facts)
    notice = f"units of {name} stop or start anew: {few(units)}" if units and host.serves_users else None
    test = ActivateSystem(instance=name, path=path, failed_before=failed)
    yield step_of(f"{name}: test {change.release}", test, host.back, interrupts=notice)
    yield _verified(change, host, f"verify that {change.release} runs", is_default=False)
    yield from _tested(host)
    switch = SwitchSystem(instance=name, path=path, failed_before=failed)
    yield step_of(f"{name}: switch to {change.release}", switch, host.back)
    yield _verified(change, host, f"verify that {change.release} runs and is what boots", is_default=True)


def _set_to_boot(change: SystemRelease, host: HostUpdate) -> Iterator[Step]:
    failed = host.facts.failed_units
    switch = SwitchSystem(instance=host.name, path=host.facts.built, mode="boot", failed_before=failed)
    yield step_of(f"{host.name}: have {change.release} be what boots", switch, host.back)


def _rebooted(change: SystemRelease, host: HostUpdate) -> Iterator[Step]:
    notice = f"{host.name} is away while it reboots" if host.serves_users else None
    reboot = RebootHost(instance=host.name, path=host.facts.built)
    yield step_of(f"{host.name}: reboot", reboot, host.back, interrupts=notice)
    yield _verified(change, host, f"verify that {change.release} was booted", is_default=True, booted=True)
    yield from _tested(host)


def _verified(
    change: SystemRelease, host: HostUpdate, title: str, *, is_default: bool, booted: bool = False
) -> Step:
    verify = VerifySystem(
        instance=host.name,
        path=host.facts.built,
        release=change.release,
        failed_before=host.facts.failed_units,
        is_default=is_default,
        booted=booted,
    )
    return step_of(f"{host.name}: {title}", verify)


def _tested(host: HostUpdate) -> Iterator[Step]:
    if host.is_tested:
        yield step_of(f"{host.name}: smoke tests", TestInstance(instance=host.name))
