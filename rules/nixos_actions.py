"""What is done to a NixOS host. Each action names the system it is about: every host has one of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rules.frozen import Count, Frozen, Name, PositiveSeconds, ReleaseId
from rules.nixos import StorePath


class RestoreSystem(Frozen):
    """Have the recorded generation be what boots, and the recorded system active: never relative.

    Where a reboot has brought a kernel that is neither the recorded one nor the recorded generation's, the
    host is rebooted into that generation. The two differ where a reboot was due before.
    """

    undo: Literal["restore_system"] = "restore_system"
    instance: Name
    release: StorePath = Field(description="the recorded generation's system")
    running: StorePath = Field(description="the system that was active")
    generation: Count
    booted: StorePath | None = Field(description="the system whose kernel ran; None: it could not be told")
    failed_before: tuple[str, ...] = ()
    answering: tuple[str, ...] = Field(default=(), description="URLs that must answer again")

    def describe(self) -> str:
        """Return this step in words."""
        running = "" if self.running == self.release else f", {self.running} active"
        return f"{self.instance}: generation {self.generation}, {self.release}{running}"


class RestoreChannel(Frozen):
    """Have the profile of channels at the recorded generation, and the recorded address followed."""

    undo: Literal["restore_channel"] = "restore_channel"
    instance: Name
    channel: str
    generation: Count
    path: StorePath = Field(description="that generation's content")
    url: str = Field(description="the address that was followed")

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.instance}: channels at generation {self.generation}, {self.channel} from {self.url}"


class DisarmGuard(Frozen):
    """Stop the host's timer and remove all of it; it may have fired, or never been there."""

    undo: Literal["disarm_guard"] = "disarm_guard"
    instance: Name

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.instance}: no guard armed"


class DropRoots(Frozen):
    """Remove the garbage collector roots that this deployment made."""

    undo: Literal["drop_roots"] = "drop_roots"
    instance: Name

    def describe(self) -> str:
        """Return this step in words."""
        return f"{self.instance}: nothing kept for this deployment"


class UpdateChannel(Frozen):
    """Bring the host's channel up to date, and prove that it has the content that the plan was made with."""

    action: Literal["update_channel"] = "update_channel"
    instance: Name
    channel: str
    url: str = Field(description="address to follow from now on; empty: the one it follows")
    content: str = Field(description="SHA-256 of the content it must have afterwards, as nix-hash says")


class StageSystem(Frozen):
    """Have the system on the host, kept from the garbage collector, as the one it runs now is."""

    action: Literal["stage_system"] = "stage_system"
    instance: Name
    path: StorePath
    before: tuple[StorePath, ...] = Field(description="systems that the way back needs")


class ArmGuard(Frozen):
    """Have the host take itself back unless it hears from the deployment again: a timer of its own."""

    action: Literal["arm_guard"] = "arm_guard"
    instance: Name
    guard_s: PositiveSeconds
    back: RestoreSystem = Field(description="what the host does by itself then")


class ActivateSystem(Frozen):
    """Activate the system without making it the one that boots."""

    action: Literal["activate_system"] = "activate_system"
    instance: Name
    path: StorePath
    failed_before: tuple[str, ...] = Field(default=(), description="units that may go on failing")


class SwitchSystem(Frozen):
    """Make the system a generation, the one that boots; `switch` activates it too."""

    action: Literal["switch_system"] = "switch_system"
    instance: Name
    path: StorePath
    mode: Literal["switch", "boot"] = "switch"
    failed_before: tuple[str, ...] = ()


class RebootHost(Frozen):
    """Reboot, and wait until the host answers with the system that its profile is at."""

    action: Literal["reboot_host"] = "reboot_host"
    instance: Name
    path: StorePath


class VerifySystem(Frozen):
    """Prove that the system runs: its path and version, no more failed units, the declared URLs."""

    action: Literal["verify_system"] = "verify_system"
    instance: Name
    path: StorePath
    release: ReleaseId
    failed_before: tuple[str, ...] = ()
    is_default: bool = Field(description="whether it must be what the profile is at, too")
    booted: bool = Field(default=False, description="whether its kernel must be the one that runs")


class ConfirmSystem(Frozen):
    """Reach the host over a new connection, see that it did not take itself back, and disarm its guard."""

    action: Literal["confirm_system"] = "confirm_system"
    instance: Name
    path: StorePath


class ReleaseRoots(Frozen):
    """Let the garbage collector have what was kept for the way back; gone already is fine."""

    action: Literal["release_roots"] = "release_roots"
    instance: Name


NixosAction = (
    UpdateChannel
    | StageSystem
    | ArmGuard
    | ActivateSystem
    | SwitchSystem
    | RebootHost
    | VerifySystem
    | ConfirmSystem
)
NixosUndo = RestoreSystem | RestoreChannel | DisarmGuard | DropRoots
