"""A NixOS host: where its systems are, and what is known of the one it runs and the one that is to come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import AbsolutePath, Count, Frozen, Name, PositiveSeconds

#: Of a system: what `config.system.build.toplevel` is built to, such as /nix/store/…-nixos-system-web-26.05.
StorePath = Annotated[str, Field(pattern=r"^/[^\s]*/[0-9a-z]{32}-[^/\s]+$")]
ProbeUrl = Annotated[str, Field(pattern=r"^https?://[^/\s@]+(/\S*)?$")]


class NixosPlaces(Frozen):
    """Where things are on a host. The defaults are NixOS's own."""

    profile: AbsolutePath = "/nix/var/nix/profiles/system"
    channels: AbsolutePath = Field(
        default="/nix/var/nix/profiles/per-user/root/channels", description="root's profile of channels"
    )
    current: AbsolutePath = Field(
        default="/run/current-system", description="link to the system that is active"
    )
    booted: AbsolutePath = Field(
        default="/run/booted-system", description="link to the system that was booted"
    )
    configuration: AbsolutePath = Field(
        default="/etc/nixos/configuration.nix", description="what a channel's system is made from"
    )
    programs: AbsolutePath = Field(
        default="/run/current-system/sw/bin", description="directory of Nix's and systemd's programs"
    )
    state: AbsolutePath = Field(
        default="/var/lib/sovereign-deploy",
        description="ours: garbage collector roots and the guard's script",
    )
    runtime: AbsolutePath = Field(default="/run/sovereign-deploy", description="ours, and gone with a reboot")
    guard_units: AbsolutePath = Field(
        default="/etc/systemd/system.control",
        description="where systemd finds units that neither a switch nor a reboot takes away",
    )

    def program(self, name: str) -> str:
        """Return the full path of one of Nix's or systemd's programs."""
        return f"{self.programs}/{name}"


class NixosHost(Frozen):
    """One host: how its system is built, and how long things may take there."""

    places: NixosPlaces = NixosPlaces()
    attribute: Name | None = Field(
        default=None, description="its name in a flake's nixosConfigurations; none: the instance's name"
    )
    channel: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")] = Field(
        default="nixos", description="the channel that its system is built from"
    )
    build_on: Literal["host", "worker"] = Field(
        default="host", description="where a flake is built; worker: what the host lacks is copied to it"
    )
    urls: tuple[ProbeUrl, ...] = Field(
        default=(), description="each must answer 2xx, asked by the worker, once the new system is active"
    )
    guard_s: PositiveSeconds = Field(
        default=300.0,
        description="the host takes itself back this long after the deployment was last heard there; longer "
        "than its slowest activation, or boot, and the time until it is verified",
    )
    activate_s: PositiveSeconds = Field(default=240.0, description="one activation may take this long")
    settle_s: PositiveSeconds = Field(default=60.0, description="until all services have started")
    reboot_s: PositiveSeconds = Field(default=600.0, description="until it answers again after a reboot")
    build_s: PositiveSeconds = Field(default=7200.0, description="a build, with all downloads")


class NixosProbe(Frozen):
    """A host is there when it can be asked; the system that is active says what it runs."""

    current: AbsolutePath = "/run/current-system"
    urls: tuple[ProbeUrl, ...] = ()
    timeout_s: PositiveSeconds = 5.0

    @property
    def url(self) -> str:
        """What smoke tests are relative to, and what people are told was asked."""
        return self.urls[0] if self.urls else f"file://{self.current}"


class SystemNames(Frozen):
    """What a system says of itself by `nixos-version --json`."""

    version: str = Field(description="such as 26.05.1234.0123456789ab")
    revision: str | None = Field(default=None, description="of the configuration; None: it was not set")

    def is_release(self, release: str) -> bool:
        """Return whether a person means this system by `release`: its version, or its revision.

        A revision may be shortened, to 7 digits at least; a version may not: 26.05.1 is not 26.05.12.
        """
        if release == self.version or (self.revision is not None and release == self.revision):
            return True
        return self.revision is not None and len(release) >= 7 and self.revision.startswith(release)  # noqa: PLR2004

    @property
    def in_words(self) -> str:
        """Both, for people."""
        return f"{self.version}{f' (revision {self.revision})' if self.revision else ''}"


class ClosureDifference(Frozen):
    """What the new system has that the active one has not, and the other way round."""

    packages: tuple[str, ...] = Field(
        default=(), description="one line each, such as 'openssl: 3.0.13 → 3.0.14, +12.3 KiB'"
    )
    added_bytes: Count = 0
    removed_bytes: Count = 0


class UnitsAffected(Frozen):
    """What the new system's own dry activation says that it would do to units."""

    stopped: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    reloaded: tuple[str, ...] = ()


class HostFacts(Frozen):
    """One host as it was just read, and the system that was built for it. Nothing live was touched."""

    generation: Count = Field(description="number of the generation that the profile is at")
    profile: StorePath = Field(description="that generation's system: what the host boots by default")
    running: StorePath = Field(description="the active system; other than `profile` after a test")
    booted: StorePath | None = Field(description="the system whose kernel runs; None: it cannot be told")
    built: StorePath = Field(description="the new system; in the store of whoever built it")
    names: SystemNames = Field(description="of the new system")
    channels: StorePath | None = Field(
        default=None, description="the profile of channels before; None: this release is from none"
    )
    channel_url: str = Field(default="", description="the address that the host's channel follows now")
    channel_generation: Count | None = Field(default=None, description="the number of its generation")
    channel_content: str | None = Field(
        default=None, description="SHA-256 of the new channel's content, as nix-hash says"
    )
    reboot_for: tuple[str, ...] = Field(
        default=(), description="what differs from what was booted: kernel, initrd, kernel-modules"
    )
    reboot_due_for: tuple[str, ...] = Field(
        default=(),
        description="the same of the profile's system: a reboot is due already, and the kernel that runs "
        "cannot be had back by booting the recorded generation",
    )
    init_changes: bool = Field(
        default=False, description="it cannot be activated without a reboot: init's interface is another one"
    )
    closure: ClosureDifference = ClosureDifference()
    units: UnitsAffected = UnitsAffected()
    failed_units: tuple[str, ...] = Field(default=(), description="those that have failed already, sorted")
    answering: tuple[str, ...] = Field(default=(), description="the declared URLs that answer 2xx now")

    @property
    def awaits_reboot(self) -> bool:
        """Whether a reboot was due before anything is done: what boots by default brings another kernel."""
        return bool(self.reboot_due_for) or (self.built == self.profile and bool(self.reboot_for))


#: Instance -> its facts.
NixosSituation = dict[Name, HostFacts]


class Activation(Frozen):
    """How a `switch-to-configuration` ended."""

    outcome: Literal[
        "done", "refused", "script_failed", "reload_failed", "units_failed", "reboot_needed", "unknown"
    ]
    is_active: bool = Field(description="whether the new system runs nevertheless")
    failed_units: tuple[str, ...] = ()
    words: str = Field(description="what happened and the state it left, for people")
