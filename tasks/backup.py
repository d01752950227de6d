"""Backups by whichever block they are taken with: taken, verified, measured, pruned, planned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import assert_never, cast

from blocks.btrfs import BtrfsSnapshots
from blocks.host import Host
from blocks.postgres import PostgresAccess, PostgresBaseBackup
from blocks.restic import ResticAccess, ResticRepository
from blocks.zfs import ZfsSnapshots
from rules.backup import BackupTaken, BtrfsSubvolume, Loss, ZfsDataset
from rules.environment import BlockReference, GateLimits
from rules.errors import DeployError
from rules.finding import Finding, worst
from rules.frozen import Name
from rules.hosts import HostAddress
from tasks import base_backup, btrfs, restic, restic_verify, zfs
from tasks.host import HostUnreachableError, free_bytes, run
from tasks.settings import Settings

#: What a backup is taken of, and with what; a block that names others, with them in it.
Backup = ZfsDataset | BtrfsSubvolume | ResticAccess | PostgresAccess

_NO_BACKUP = Finding.unknown("the environment names no backup")


def load_backup(reference: BlockReference) -> Backup:
    """Return what the block `type-slug/name` describes, with the blocks that it names resolved.

    Raises:
        ValueError: there is no such block, it names one that does not exist, or a field makes no sense.
    """
    slug, _, name = reference.partition("/")
    match slug:
        case "sovereign-zfs-snapshots":
            return _zfs_dataset(name)
        case "sovereign-btrfs-snapshots":
            snapshots = cast("BtrfsSnapshots", BtrfsSnapshots.load(name))
            return snapshots.data(_address(snapshots.host))
        case "sovereign-restic-repository":
            repository = cast("ResticRepository", ResticRepository.load(name))
            source = _zfs_dataset(repository.source) if repository.source else None
            return repository.data(_address(repository.host), source)
        case "sovereign-postgres-base-backup":
            return cast("PostgresBaseBackup", PostgresBaseBackup.load(name)).data()
    raise ValueError(
        f"{reference} is no backup: name a block of sovereign-zfs-snapshots, sovereign-btrfs-snapshots, "
        "sovereign-restic-repository or sovereign-postgres-base-backup, such as sovereign-zfs-snapshots/web"
    )


def take_backup(
    backup: Backup, reference: BlockReference, *, deployment: Name, settings: Settings
) -> BackupTaken:
    """Take the deployment's backup, or return the one that it has already.

    Raises:
        DeployError: it could not be taken; what is left does not count as one, and a retry begins anew.
    """
    match backup:
        case ZfsDataset():
            return zfs.take(backup, reference, deployment=deployment, settings=settings)
        case BtrfsSubvolume():
            return btrfs.take(backup, reference, deployment=deployment, settings=settings)
        case ResticAccess():
            return restic.take(backup, reference, deployment=deployment, settings=settings)
        case PostgresAccess():
            return base_backup.take(backup, reference, deployment=deployment)
    assert_never(backup)


def verify_backup(backup: Backup, taken: BackupTaken, *, settings: Settings) -> Finding:
    """Read the backup back, and say whether it is the one that was taken, and whole.

    A host that cannot be reached is unknown; a command that fails is a failed verification.
    """
    try:
        match backup:
            case ZfsDataset():
                return zfs.verify(backup, taken, settings=settings)
            case BtrfsSubvolume():
                return btrfs.verify(backup, taken, settings=settings)
            case ResticAccess():
                return restic_verify.verify(backup, taken, settings=settings)
            case PostgresAccess():
                return base_backup.verify(backup, taken)
    except HostUnreachableError as error:
        return Finding.unknown(f"{taken.identity} could not be looked at: {error}")
    except (DeployError, OSError, ValueError) as error:
        return Finding.failed(f"{taken.identity}: {error}")
    assert_never(backup)


def prune_backups(backup: Backup, *, now: datetime, keep_s: float, settings: Settings) -> tuple[str, ...]:
    """Remove our backups that are older than `keep_s` seconds, never the newest; return which.

    Raises:
        DeployError: one could not be removed; those before it are, and repeating it is harmless.
        OSError: the same, of base backups.
    """
    match backup:
        case ZfsDataset():
            return zfs.prune(backup, now=now, keep_s=keep_s, settings=settings)
        case BtrfsSubvolume():
            return btrfs.prune(backup, now=now, keep_s=keep_s, settings=settings)
        case ResticAccess():
            return restic.prune(backup, now=now, keep_s=keep_s, settings=settings)
        case PostgresAccess():
            return base_backup.prune(backup, now=now, keep_s=keep_s)
    assert_never(backup)


def loss_of(backup: Backup, taken: BackupTaken, *, now: datetime, settings: Settings) -> Loss:
    """Return what going back to the backup would lose, as it stands `now`.

    Raises:
        DeployError: it cannot be measured.
    """
    match backup:
        case ZfsDataset():
            return zfs.loss(backup, taken, now=now, settings=settings)
        case BtrfsSubvolume():
            return btrfs.loss(backup, taken, now=now, settings=settings)
        case ResticAccess():
            return restic.loss(backup, taken, now=now, settings=settings)
        case PostgresAccess():
            return base_backup.loss(backup, taken, now=now)
    assert_never(backup)


def plan_findings(
    backups: Mapping[BlockReference, Backup], *, settings: Settings, limits: GateLimits
) -> dict[str, Finding]:
    """Return the findings of `backup-plan`, `backup-storage` and `offsite-backup`; changes nothing.

    Args:
        backups: block reference -> what it describes.
        settings: for how long a command may take.
        limits: how much disk must be free.
    """
    plans = [_attempt(name, partial(_plan, one, settings)) for name, one in backups.items()]
    rooms = [_attempt(name, partial(_room, one, settings, limits)) for name, one in backups.items()]
    offsite = [
        _attempt(name, partial(_offsite, one))
        for name, one in backups.items()
        if isinstance(one, ResticAccess) and one.offsite
    ]
    elsewhere = Finding.unknown("no Restic repository of the environment is declared to be offsite")
    return {
        "backup-plan": worst(tuple(plans)) if plans else _NO_BACKUP,
        "backup-storage": worst(tuple(rooms)) if rooms else _NO_BACKUP,
        "offsite-backup": worst(tuple(offsite)) if offsite else elsewhere,
    }


def _plan(backup: Backup, settings: Settings) -> Finding:
    match backup:
        case ZfsDataset():
            return zfs.plan(backup, settings=settings)
        case BtrfsSubvolume():
            return btrfs.plan(backup, settings=settings)
        case ResticAccess():
            return restic.plan(backup, settings=settings)
        case PostgresAccess():
            return base_backup.plan(backup)
    assert_never(backup)


def _room(backup: Backup, settings: Settings, limits: GateLimits) -> Finding:
    least = limits.min_disk_free_ratio
    match backup:
        case ZfsDataset():
            return _enough(zfs.free_ratio(backup, settings=settings), least, backup.dataset)
        case BtrfsSubvolume():
            argv = ("df", "-B1", "--output=size", "--", backup.subvolume)
            size = int(run(backup.host, argv, timeout_s=settings.command_timeout_s).stdout.split()[-1])
            return _enough(free_bytes(backup.host, backup.subvolume) / max(1, size), least, backup.subvolume)
        case ResticAccess():
            return restic.storage(backup)
        case PostgresAccess():
            free, needed = base_backup.free_bytes(backup), base_backup.needed_bytes(backup)
            words = f"{backup.directory} has {free} bytes free, the databases have {needed}"
            return Finding.judged(words, ok=free >= needed)
    assert_never(backup)


def _enough(free_ratio: float, least: float, where: str) -> Finding:
    return Finding.judged(f"{free_ratio:.0%} of {where} is free ({least:.0%} wanted)", ok=free_ratio >= least)


def _offsite(backup: ResticAccess) -> Finding:
    if not backup.is_remote:
        return Finding.failed(f"{backup.repository} is a directory of {backup.host.name}, not another site")
    return restic.answers(backup)


def _attempt(reference: BlockReference, look: Callable[[], Finding]) -> Finding:
    """Return what a look found, with the block's name; what cannot be told is unknown."""
    try:
        found = look()
    except HostUnreachableError as error:
        found = Finding.unknown(str(error))
    except DeployError as error:
        found = Finding.failed(str(error))
    return Finding(result=found.result, evidence=f"{reference}: {found.evidence}")


def _zfs_dataset(name: str) -> ZfsDataset:
    snapshots = cast("ZfsSnapshots", ZfsSnapshots.load(name))
    return snapshots.data(_address(snapshots.host))


def _address(host: str) -> HostAddress:
    return cast("Host", Host.load(host)).data() if host else HostAddress()
