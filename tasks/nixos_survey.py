"""What must be known of NixOS hosts before a new system is planned: what they are at, and what would change.

The new systems are built here, so that a plan shows exact store paths. Nothing live is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pydantic import TypeAdapter, ValidationError

from rules.errors import CommandError, InvalidRequestError, StepFailedError
from rules.fleet import Fleet, FleetState, Instance, InstanceState
from rules.frozen import Count, Frozen
from rules.nixos import (
    ClosureDifference,
    HostFacts,
    NixosSituation,
    StorePath,
    SystemNames,
    UnitsAffected,
)
from rules.nixos_activation import (
    closure_difference,
    end_of_log,
    generation_of,
    units_affected,
)
from rules.rollout import affected
from rules.strategy import Strategy
from rules.system_change import NixosChannel, NixosClosures, SystemRelease
from tasks import host as hosts
from tasks.nixos_build import bring_system, build_system, locked
from tasks.nixos_channel import candidate, read_channel
from tasks.nixos_reading import (
    BOOT_PARTS,
    boot_parts,
    failed_units,
    names_of,
    resolved,
    silent_urls,
)
from tasks.nixos_store import EXPERIMENTAL, nix_of

log = logging.getLogger(__name__)

_AT_ONCE = 4
_ASK_TIMEOUT_S = 300.0
_REBOOT_NEEDED = 100
_STORE_PATH: TypeAdapter[str] = TypeAdapter(StorePath)
_UNTOUCHED = "Nothing was touched."


class _Now(Frozen):
    """What a host is at."""

    generation: Count
    profile: StorePath
    running: StorePath
    booted: StorePath | None


def survey_nixos(
    change: SystemRelease, strategy: Strategy, fleet: Fleet, before: FleetState, *, deployment: str
) -> NixosSituation:
    """Build the new system of each host concerned, and return how each is and what would change there.

    Raises:
        InvalidRequestError: a host cannot be asked or is no NixOS, its system cannot be built, is another
            release than the one that was asked for, or cannot be activated; nothing was touched.
    """
    concerned = affected(strategy, fleet, before)
    _refuse_missing(change, concerned)
    log.info("%s: building %s for %s", deployment, change.release, ", ".join(i.name for i in concerned))
    # once for all hosts: a branch may move while the first one builds
    with _refused():
        certain = locked(concerned[0], change) if concerned else change
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="survey-nixos")
    try:
        surveys = {
            instance.name: pool.submit(_survey, instance, certain, before.instances[instance.name])
            for instance in concerned
        }
        return {name: survey.result() for name, survey in surveys.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse_missing(change: SystemRelease, concerned: tuple[Instance, ...]) -> None:
    if not isinstance(change.source, NixosClosures):
        return
    missing = [instance.name for instance in concerned if instance.name not in change.source.paths]
    if missing:
        raise InvalidRequestError(
            f"There is no system for {', '.join(missing)} among the closures, only for "
            f"{', '.join(sorted(change.source.paths))}. Give a store path for each host. {_UNTOUCHED}"
        )


@contextmanager
def _refused() -> Iterator[None]:
    """Make a refusal of whatever goes wrong, as nothing was begun yet."""
    try:
        yield
    except (CommandError, StepFailedError, InvalidRequestError) as error:
        words = str(error)
        raise InvalidRequestError(words if _UNTOUCHED in words else f"{words}\n{_UNTOUCHED}") from error


def _survey(instance: Instance, change: SystemRelease, observed: InstanceState) -> HostFacts:
    with _refused():
        now = _read(instance, observed)
        channel, channel_facts = _channel(instance, change)
        built = build_system(instance, change, channel=channel)
        bring_system(instance, change, built)
        names = _names(instance, change, built)
        reboot_for, due_for = _changed_parts(instance, now, built)
        # what is not activated in the running system does nothing to its units
        is_activated = change.activate == "live" and built != now.running
        units, needs_init = _dry_activation(instance, built) if is_activated else (UnitsAffected(), False)
        return HostFacts(
            **now.model_dump(),
            **channel_facts,
            built=built,
            names=names,
            reboot_for=reboot_for,
            reboot_due_for=due_for,
            init_changes=needs_init or _init_differs(instance, now.running, built),
            closure=_closure(instance, now.running, built),
            units=units,
            failed_units=failed_units(instance),
            answering=_answering(instance),
        )


# --- what the host is at -------------------------------------------------------------------------------


def _read(instance: Instance, observed: InstanceState) -> _Now:
    """Return what a host is at.

    Raises:
        InvalidRequestError: it cannot be asked, is no NixOS, or is being changed by somebody else.
        CommandError: it cannot be asked.
    """
    if observed.running is None:
        raise InvalidRequestError(
            f"{instance.name} cannot be asked which system it runs, so no way back is known: see whether it "
            "is up and can be reached, and deploy again."
        )
    places = instance.nixos_host.places
    link = hosts.read_link(instance.host, places.profile)
    paths = (places.profile, places.current, places.booted, places.program("nix-env"))
    profile, running, booted, program = resolved(instance.host, paths)
    if link is None or not _is_system(profile) or not _is_system(running) or program is None:
        raise InvalidRequestError(
            f"{instance.name} does not look like a NixOS host: {places.profile} leads to {profile}, "
            f"{places.current} to {running}, {places.programs}/nix-env to {program}. Correct its places in "
            "the block of these hosts."
        )
    if (profile, running) != (observed.release, observed.running):
        raise InvalidRequestError(
            f"{instance.name} is being changed by somebody else: a moment ago it had {observed.release} and "
            f"ran {observed.running}, now it has {profile} and runs {running}. Wait, and deploy again."
        )
    return _Now(
        generation=_generation(instance, link),
        profile=str(profile),
        running=str(running),
        booted=booted if _is_system(booted) else None,
    )


def _is_system(path: str | None) -> bool:
    try:
        return path is not None and bool(_STORE_PATH.validate_python(path))
    except ValidationError:
        return False


def _generation(instance: Instance, link: str) -> int:
    try:
        return generation_of(link)
    except ValueError as error:
        raise InvalidRequestError(
            f"{instance.name}: {instance.nixos_host.places.profile}: {error}, so there is none to go back "
            "to. Make what it leads to a generation with nix-env --profile … --set …, and deploy again."
        ) from error


def _answering(instance: Instance) -> tuple[str, ...]:
    urls = instance.nixos_host.urls
    silent = silent_urls(urls)
    return tuple(url for url in urls if url not in silent)


# --- what the new system changes -----------------------------------------------------------------------


def _channel(instance: Instance, change: SystemRelease) -> tuple[str | None, dict[str, object]]:
    """Return the directory to build from, and what is known of the channel; nothing for other sources."""
    if not isinstance(change.source, NixosChannel):
        return None, {}
    before = read_channel(instance)
    directory, content = candidate(instance, change)
    return directory, {
        "channels": before.path,
        "channel_url": before.url,
        "channel_generation": before.generation,
        "channel_content": content,
    }


def _names(instance: Instance, change: SystemRelease, built: StorePath) -> SystemNames:
    try:
        names = names_of(instance, built)
    except ValueError as error:
        raise InvalidRequestError(f"{instance.name}: {built} does not say what it is: {error}.") from error
    if not names.is_release(change.release):
        raise InvalidRequestError(
            f"{instance.name}: {built} was built, and is {names.in_words}, not {change.release}. Ask for the "
            f"release {names.version}, or see where its {change.source.source} comes from. {_UNTOUCHED}"
        )
    return names


def _changed_parts(
    instance: Instance, now: _Now, built: StorePath
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the new system changes with a reboot only, and what the profile's would change already.

    That is the kernel and what belongs to it. Where it is not known what was booted, nothing is.
    """
    if now.booted is None:
        return (), ()
    booted, *others = boot_parts(instance.host, now.booted, built, now.profile)
    new, default = (
        tuple(part for part, old, new in zip(BOOT_PARTS, booted, parts, strict=True) if old != new)
        for parts in others
    )
    return new, default


def _init_differs(instance: Instance, running: StorePath, built: StorePath) -> bool:
    interfaces = (f"{running}/init-interface-version", f"{built}/init-interface-version")
    # 2: one of them has none, as in a system so old or so small that nobody compares it
    return hosts.run(instance.host, ("cmp", "--silent", "--", *interfaces), check=False).returncode == 1


def _dry_activation(instance: Instance, built: StorePath) -> tuple[UnitsAffected, bool]:
    """Return what the system says it would do to units, and whether it can only be booted into.

    Raises:
        InvalidRequestError: it says that it must not be activated.
    """
    argv = (f"{built}/bin/switch-to-configuration", "dry-activate")
    said = hosts.run(instance.host, argv, timeout_s=instance.nixos_host.activate_s, check=False)
    if said.returncode == _REBOOT_NEEDED:
        return UnitsAffected(), True
    if said.returncode:
        raise InvalidRequestError(
            f"{instance.name}: {built} was built, but cannot be activated: {end_of_log(said.stderr)} (dry "
            f"activation, exit code {said.returncode}). If it may only be booted into, deploy it with "
            f"`activate: boot`. {_UNTOUCHED}"
        )
    return units_affected(said.stderr), False


def _closure(instance: Instance, running: StorePath, built: StorePath) -> ClosureDifference:
    nix, words = nix_of(instance), (*EXPERIMENTAL, "path-info", "--recursive", "--size")
    old, new = (nix.run("nix", *words, path, timeout_s=_ASK_TIMEOUT_S).stdout for path in (running, built))
    return closure_difference(old, new)
