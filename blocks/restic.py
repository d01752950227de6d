"""A Restic repository that files are backed up to."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, model_validator

from rules.backup import ZfsDataset
from rules.frozen import AbsolutePath, Frozen, PositiveSeconds
from rules.hosts import HostAddress

_READ_DATA = r"^(full|([1-9][0-9]?|100)(\.[0-9]+)?%|[1-9][0-9]*/[1-9][0-9]*)$"


class ResticAccess(Frozen):
    """All that is needed to reach a repository. Its secrets show in no text that is made of it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    repository: Annotated[str, Field(pattern=r"^[^\s-][^\n]*$")]
    password: SecretStr
    paths: Annotated[tuple[AbsolutePath, ...], Field(min_length=1)]
    host: HostAddress = HostAddress()
    source: ZfsDataset | None = None
    environment: dict[str, SecretStr] = Field(default_factory=dict)
    read_data: Annotated[str, Field(pattern=_READ_DATA)] = "5%"
    offsite: bool = False
    restore_directory: AbsolutePath = "/var/tmp"  # noqa: S108 - what is restored there is made anew, mode 0700
    timeout_s: PositiveSeconds = 3600.0

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        before_host, at, _ = self.repository.partition("@")
        if at and "://" in before_host and ":" in before_host.partition("://")[2]:
            raise ValueError(
                "the repository's address holds a password, which would be shown: give it by the environment "
                "(RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD for a REST server)"
            )
        if self.source and self.source.host != self.host:
            raise ValueError("the ZFS block that is the source lies on another host than restic runs on")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether the repository is elsewhere than in a directory of the host."""
        return not self.repository.startswith("/")


class ResticRepository(Block):
    """A Restic repository: files are backed up to it, encrypted, and read back."""

    _block_type_name: ClassVar[str] = "Sovereign Restic Repository"
    _block_type_slug: ClassVar[str] = "sovereign-restic-repository"
    _description: ClassVar[str] = "A Restic repository that files are backed up to before each deployment."

    repository: str = Field(
        description="Its address as restic takes it, such as s3:https://host/bucket or /srv/restic. A user's "
        "password does not belong here but in the environment."
    )
    password: SecretStr = Field(description="The repository's password.")
    paths: list[str] = Field(description="Absolute paths of what is backed up.")
    host: str = Field(
        default="",
        description="Name of the Sovereign Host block of restic's machine. Empty: the worker's own.",
    )
    source: str = Field(
        default="",
        description="Name of a Sovereign ZFS Snapshots block of the same machine: the paths lie in its "
        "dataset and are read from a snapshot, all as of one moment. Empty: they are read as they are.",
    )
    environment: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="What else restic finds in its environment, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY.",
    )
    read_data: str = Field(
        default="5%",
        description="How much of the repository is read back each time: 5%, a part such as 1/10, or full.",
    )
    offsite: bool = Field(
        default=False, description="It is at another site, so that it outlives the loss of this one."
    )
    restore_directory: str = Field(
        default="/var/tmp",  # noqa: S108 - see ResticAccess
        description="Absolute path of a directory with room for a sample of files that is restored there and "
        "removed again.",
    )
    timeout_s: float = Field(
        default=3600.0, description="Seconds that a backup, or reading it back, may take."
    )

    def data(self, host: HostAddress, source: ZfsDataset | None) -> ResticAccess:
        """Return these fields as a value, with `host` and `source` for the blocks that they name.

        Raises:
            pydantic.ValidationError: a field is not what restic can take.
        """
        return ResticAccess(
            repository=self.repository,
            password=self.password,
            paths=tuple(self.paths),
            host=host,
            source=source,
            environment=self.environment,
            read_data=self.read_data,
            offsite=self.offsite,
            restore_directory=self.restore_directory,
            timeout_s=self.timeout_s,
        )
