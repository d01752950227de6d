"""A new release of content in IPFS: what is to be changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rules.frozen import AbsolutePath, Frozen, Name, ReleaseId, Sha256
from rules.ipfs import ContentPath


class ContentFiles(Frozen):
    """Content as a directory, or one file, on the worker's host."""

    artefact: Literal["content_files"] = Field(default="content_files", json_schema_extra={"position": 2})
    path: AbsolutePath = Field(
        description="of the directory or file on the worker's host", json_schema_extra={"position": 0}
    )
    sha256: Sha256 = Field(
        description="of a file: sha256sum prints it; of a directory, of its files by name: (cd DIR && find . "
        "-type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)",
        json_schema_extra={"position": 1},
    )


class ContentRelease(Frozen):
    """New content, and the rows that are to refer to it."""

    component: Literal["ipfs_content"] = Field(default="ipfs_content", json_schema_extra={"position": 5})
    content: Name = Field(
        description="name of the Sovereign IPFS Content block", json_schema_extra={"position": 0}
    )
    release: ReleaseId = Field(
        description="what this content is called in the books", json_schema_extra={"position": 1}
    )
    artefact: ContentFiles = Field(
        description="where the content comes from", json_schema_extra={"position": 2}
    )
    references: Annotated[dict[str, ContentPath], Field(min_length=1)] = Field(
        description="row's key -> path in the content that it is to refer to; an empty path: all of it",
        json_schema_extra={"position": 3},
    )
    application: Name | None = Field(
        default=None,
        description="name of the Sovereign Application block whose users are watched",
        json_schema_extra={"position": 4},
    )

    @property
    def subject(self) -> str:
        """What it changes, by name."""
        return self.content

    @property
    def watched(self) -> str | None:
        """The application whose users would notice; None: nobody declared one."""
        return self.application

    @property
    def id(self) -> str:
        """What makes it the same change in another environment: component, release and content."""
        return f"{self.component}:{self.release}:{self.artefact.sha256}"

    @property
    def target(self) -> str:
        """What is locked while this change is deployed."""
        return f"ipfs-{self.content}"
