"""A new system for NixOS hosts: what is to be changed."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import Frozen, Name, ReleaseId
from rules.nixos import HostFacts, StorePath


class NixosChannel(Frozen):
    """From the host's own configuration and its channel, brought up to date."""

    source: Literal["channel"] = Field(default="channel", json_schema_extra={"position": 1})
    url: Annotated[str, Field(pattern=r"^((https?|file)://[^\s@]+)?$")] = Field(
        default="",
        description="address of the channel, such as https://…/nixos-26.05; empty: the one that the host "
        "follows now",
        json_schema_extra={"position": 0},
    )


class NixosFlake(Frozen):
    """From a flake: `nixosConfigurations.<host>` of it."""

    source: Literal["flake"] = Field(default="flake", json_schema_extra={"position": 1})
    flake: Annotated[str, Field(pattern=r"^[^\s#-][^\s#]*$")] = Field(
        description="reference that names one content, such as git+https://…/infra?rev=… or a directory",
        json_schema_extra={"position": 0},
    )


class NixosClosures(Frozen):
    """Built already, by a pipeline for instance: on each host, or to be had from its substituters."""

    source: Literal["closures"] = Field(default="closures", json_schema_extra={"position": 1})
    paths: dict[Name, StorePath] = Field(
        description="host -> its system's store path", min_length=1, json_schema_extra={"position": 0}
    )


class SystemRelease(Frozen):
    """A new release of the NixOS system of one or several hosts."""

    component: Literal["nixos_system"] = Field(default="nixos_system", json_schema_extra={"position": 5})
    hosts: Name = Field(
        description="name of the Sovereign NixOS Hosts block", json_schema_extra={"position": 0}
    )
    release: ReleaseId = Field(
        description="what `nixos-version` must say once the system runs: its version, or its configuration's "
        "revision",
        json_schema_extra={"position": 1},
    )
    source: NixosChannel | NixosFlake | NixosClosures = Field(
        description="where the system comes from", json_schema_extra={"position": 2}
    )
    activate: Literal["live", "boot"] = Field(
        default="live",
        description="live: tested, then switched to; boot: made the default and rebooted into, for what "
        "cannot be activated in a running system",
        json_schema_extra={"position": 3},
    )
    reboot: Literal["when_needed", "always", "never"] = Field(
        default="when_needed",
        description="when_needed: if kernel, initrd or modules differ",
        json_schema_extra={"position": 4},
    )

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.hosts

    @property
    def watched(self) -> str | None:
        """The application whose users would notice: its hosts are resolved with their own block."""
        return None

    @property
    def pointer(self) -> str:
        """What people call it; each host's profile points to a system of its own."""
        return self.release

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and source.

        Hosts differ from environment to environment, and so do the systems that are built for them.
        """
        match self.source:
            case NixosChannel():
                content = "channel"
            case NixosFlake():
                content = self.source.flake
            case NixosClosures():
                paths = json.dumps(self.source.paths, sort_keys=True).encode()
                content = hashlib.sha256(paths).hexdigest()[:16]
        return f"{self.component}:{self.release}:{content}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"nixos-{self.hosts}"

    def reboots(self, facts: HostFacts) -> bool:
        """Return whether it reboots a host that these facts are about."""
        if self.activate == "boot" or self.reboot == "always":
            return True
        return self.reboot == "when_needed" and bool(facts.reboot_for)
