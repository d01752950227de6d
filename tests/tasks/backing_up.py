"""What tests of backups share: a ZFS pool, and what is written there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.zfs import LabZfs
from rules.backup import ZfsDataset
from tests.requirements import need_zfs

#: Does not get smaller by compression.
ONE = random.Random(1).randbytes(100_000)
BLOCK = "sovereign-zfs-snapshots/web"
#: The machine's one zfs-fuse is taken by one process at a time: keep its tests in one.
one_at_a_time = pytest.mark.xdist_group("zfs")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabZfs]:
    need_zfs()
    with LabZfs(tmp_path_factory.mktemp("zfs")) as running:
        yield running


@pytest.fixture
def dataset(pool: LabZfs, request: pytest.FixtureRequest) -> ZfsDataset:
    """A fresh dataset with two files."""
    name = f"d{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
    made = pool.create(name)
    fill(pool.mountpoint(made))
    return made


def fill(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "one").write_bytes(ONE)
    (directory / "deep" / "two words").write_text("two\n")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
