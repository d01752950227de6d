"""What is to be changed: one model for each component, told apart by `component`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import AbsolutePath, Frozen, Name, ReleaseId, Sha256


class ReleaseArchive(Frozen):
    """A release as a tar archive (optionally compressed) on the worker's host."""

    artefact: Literal["archive"] = "archive"
    path: AbsolutePath
    sha256: Sha256


class NixStorePath(Frozen):
    """A release as a Nix store path, present or substitutable on each host."""

    artefact: Literal["nix_store_path"] = "nix_store_path"
    path: Annotated[str, Field(pattern=r"^/[^\s]*/[0-9a-z]{32}-[^/\s]+$")]


class ApplicationRelease(Frozen):
    """A new release of an application.

    `release` is what the running instances must report once they run it.
    """

    component: Literal["application"] = "application"
    application: Name = Field(description="name of the Application block")
    release: ReleaseId
    artefact: ReleaseArchive | NixStorePath

    @property
    def pointer(self) -> str:
        """What an instance's link (release id) or Nix profile (store path) points to."""
        return self.release if isinstance(self.artefact, ReleaseArchive) else self.artefact.path

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"application-{self.application}"


Change = ApplicationRelease
