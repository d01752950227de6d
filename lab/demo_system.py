"""The demo's changes of a NixOS host: what they are, and what they end in."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from lab.nixos import LabNixos
from rules.strategy import InPlace
from rules.system_change import NixosChannel, SystemRelease

HOST = InPlace(instance="alpha")


@dataclasses.dataclass(frozen=True)
class SystemScene:
    """One release of the host's system from its channel, and what it is to end in."""

    title: str
    version: str
    ends: str
    options: dict[str, Any]

    def change(self, hosts: LabNixos) -> SystemRelease:
        """Publish the version in the channel, with this configuration on the host, and return the change."""
        hosts.publish_channel(self.version)
        hosts.configure("alpha", **self.options)
        return SystemRelease(hosts=hosts.fleet.application, release=self.version, source=NixosChannel())


SYSTEM_SCENES = (
    SystemScene(
        "A NixOS system with another kernel: tested, switched to, rebooted into",
        "26.05.2000.bbbbbbbbbbbb",
        "promoted",
        {"kernel": "6.12.40", "packages": ("openssl-3.0.14",)},
    ),
    SystemScene(
        "A system that runs, but one of its units does not",
        "26.05.3000.cccccccccccc",
        "rolled_back",
        {"kernel": "6.12.40", "failing_units": ("web.service",)},
    ),
)


def why_not() -> str:
    """Say why there can be no host here; empty: there can."""
    return "" if shutil.which("nix-build") else "no nix-build: Debian's package nix-bin has it"
