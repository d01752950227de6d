"""What tests need beyond Python: without it they are skipped, except where it could be installed."""

from __future__ import annotations

import os
import shutil

import pytest

#: Where Debian keeps programs that only root has on PATH.
_SYSTEM_PROGRAMS = ":/usr/local/sbin:/usr/sbin:/sbin"


def need(*programs: str, package: str) -> None:
    """Skip the calling test when one of `programs` is missing, and name the Debian `package` that has it.

    Under continuous integration as root it fails instead: nobody reads there what was skipped.
    """
    path = os.environ.get("PATH", os.defpath) + _SYSTEM_PROGRAMS
    missing = [program for program in programs if not shutil.which(program, path=path)]
    if not missing:
        return
    words = f"no {', '.join(missing)}: install the Debian package {package}"
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(words)
    pytest.skip(words)


def need_zfs() -> None:
    """Skip the calling test where zfs-fuse cannot run, and say what is missing."""
    from lab.zfs import why_not  # noqa: PLC0415 - most tests need no ZFS

    need("zfs-fuse", package="zfs-fuse")
    if words := why_not():
        pytest.skip(words)


def need_btrfs() -> None:
    """Skip the calling test where no btrfs file system can be mounted, and say why."""
    from lab.btrfs import why_not  # noqa: PLC0415 - most tests need no btrfs

    need("btrfs", "mkfs.btrfs", package="btrfs-progs")
    if words := why_not():
        pytest.skip(words)


def need_systemd() -> None:
    """Skip the calling test where no systemd can run in a container that is reached by ssh, and say why."""
    from lab.systemd import forbidden  # noqa: PLC0415 - most tests need no systemd

    need("systemd-nspawn", package="systemd-container")
    need("ssh", "ssh-keygen", package="openssh-client")
    need("sshd", package="openssh-server")
    if words := forbidden():
        pytest.skip(words)


def need_ray() -> None:
    """Skip the calling test where Ray cannot be had, and say why; under continuous integration it must be."""
    from lab.processes import LabError  # noqa: PLC0415 - most tests need no Ray
    from lab.ray_install import ray_program, why_not  # noqa: PLC0415

    if words := why_not():
        pytest.skip(words)
    try:
        ray_program()
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
