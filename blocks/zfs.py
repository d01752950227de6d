"""A ZFS dataset that is backed up by snapshots."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from rules.backup import ZfsDataset
from rules.hosts import HostAddress


class ZfsSnapshots(Block):
    """Snapshots of a ZFS dataset, named `sovereign-<deployment>`. Others are never touched."""

    _block_type_name: ClassVar[str] = "Sovereign ZFS Snapshots"
    _block_type_slug: ClassVar[str] = "sovereign-zfs-snapshots"
    _description: ClassVar[str] = "A ZFS dataset that is backed up by a snapshot before each deployment."

    dataset: str = Field(description="The file system, such as tank/web; no volume.")
    host: str = Field(
        default="", description="Name of the Sovereign Host block of its machine. Empty: the worker's own."
    )
    recursive: bool = Field(default=False, description="With all datasets below it, at one moment.")
    read_directory: str = Field(
        default="/run/sovereign-deploy",
        description="Absolute path of a directory on its machine. A snapshot is mounted below it, read-only, "
        "as long as it is read.",
    )

    def data(self, host: HostAddress) -> ZfsDataset:
        """Return these fields as a value, with `host` for the host block that they name.

        Raises:
            pydantic.ValidationError: a field is not what zfs can take.
        """
        return ZfsDataset(
            dataset=self.dataset, host=host, recursive=self.recursive, read_directory=self.read_directory
        )
