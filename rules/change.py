"""What is to be changed: one model for each component, told apart by `component`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import AbsolutePath, Frozen, Name, ReleaseId, Sha256


class ReleaseArchive(Frozen):
    """A release as a tar archive (optionally compressed) on the worker's host."""

    artefact: Literal["archive"] = Field(default="archive", json_schema_extra={"position": 2})
    path: AbsolutePath = Field(
        description="absolute path of the archive on the worker's host", json_schema_extra={"position": 0}
    )
    sha256: Sha256 = Field(
        description="of the archive, 64 hexadecimal digits: sha256sum prints it",
        json_schema_extra={"position": 1},
    )


class NixStorePath(Frozen):
    """A release as a Nix store path, present or substitutable on each host."""

    artefact: Literal["nix_store_path"] = Field(default="nix_store_path", json_schema_extra={"position": 1})
    path: Annotated[str, Field(pattern=r"^/[^\s]*/[0-9a-z]{32}-[^/\s]+$")] = Field(
        description="such as /nix/store/…-web-2.0", json_schema_extra={"position": 0}
    )


class ApplicationRelease(Frozen):
    """A new release of an application.

    `release` is what the running instances must report once they run it.
    """

    component: Literal["application"] = Field(default="application", json_schema_extra={"position": 3})
    application: Name = Field(
        description="name of the Sovereign Application block", json_schema_extra={"position": 0}
    )
    release: ReleaseId = Field(
        description="what the instances' probe must report once they run it",
        json_schema_extra={"position": 1},
    )
    artefact: ReleaseArchive | NixStorePath = Field(
        description="where the release comes from", json_schema_extra={"position": 2}
    )

    @property
    def pointer(self) -> str:
        """What an instance's link (release id) or Nix profile (store path) points to."""
        return self.release if isinstance(self.artefact, ReleaseArchive) else self.artefact.path

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and content."""
        content = self.artefact.sha256 if isinstance(self.artefact, ReleaseArchive) else self.artefact.path
        return f"{self.component}:{self.release}:{content}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"application-{self.application}"


Change = ApplicationRelease
