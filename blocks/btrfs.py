"""A btrfs subvolume that is backed up by snapshots."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from rules.backup import BtrfsSubvolume
from rules.hosts import HostAddress


class BtrfsSnapshots(Block):
    """Read-only snapshots of a btrfs subvolume, named `sovereign-<deployment>`. Others are never touched."""

    _block_type_name: ClassVar[str] = "Sovereign btrfs Snapshots"
    _block_type_slug: ClassVar[str] = "sovereign-btrfs-snapshots"
    _description: ClassVar[str] = "A btrfs subvolume that is backed up by a snapshot before each deployment."

    subvolume: str = Field(
        description="Absolute path of the subvolume, in a file system that is mounted above it: one that is "
        "mounted by itself cannot be renamed, so there would be no way back."
    )
    snapshots: str = Field(
        description="Absolute path of a directory on the same file system, outside the subvolume, for the "
        "snapshots of this subvolume alone."
    )
    host: str = Field(
        default="", description="Name of the Sovereign Host block of its machine. Empty: the worker's own."
    )

    def data(self, host: HostAddress) -> BtrfsSubvolume:
        """Return these fields as a value, with `host` for the host block that they name.

        Raises:
            pydantic.ValidationError: a field is no absolute path.
        """
        return BtrfsSubvolume(subvolume=self.subvolume, snapshots=self.snapshots, host=host)
