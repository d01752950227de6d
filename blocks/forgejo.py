"""A repository in a Forgejo: where reviews and checks are read, and incidents are written down."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class Forgejo(Block):
    """One repository of a Forgejo, by its API."""

    _block_type_name: ClassVar[str] = "Sovereign Forgejo"
    _block_type_slug: ClassVar[str] = "sovereign-forgejo"
    _description: ClassVar[str] = "A Forgejo repository: its reviews, its checks and its issues."

    # a password in the URL would be shown wherever the URL is
    url: str = Field(
        pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
        description="Address of the Forgejo, such as https://git.example.org. Without /api/v1.",
    )
    owner: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="User or organisation.")
    repository: str = Field(pattern=r"^[A-Za-z0-9_.-]*[A-Za-z0-9_-]$", description="Name of the repository.")
    token: SecretStr | None = Field(
        default=None,
        description="Access token with the scopes read:repository and write:issue. Empty: a public "
        "repository is only read.",
    )
    timeout_s: float = Field(default=10.0, gt=0, description="Seconds that one request may take.")

    @property
    def api_url(self) -> str:
        """The address of this repository in the API, without a slash at its end."""
        return f"{self.url.rstrip('/')}/api/v1/repos/{self.owner}/{self.repository}"
