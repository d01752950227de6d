"""What holds for a backup of every kind, and what the plan says about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

import lab.postgres
from blocks.host import Host
from blocks.postgres import PostgresAccess, PostgresBaseBackup
from blocks.restic import ResticAccess, ResticRepository
from blocks.zfs import ZfsSnapshots
from lab.btrfs import LabBtrfs
from lab.postgres import Postgres, programs
from rules.backup import ZfsDataset
from rules.environment import GateLimits
from rules.finding import Result
from rules.hosts import HostAddress
from tasks import backup, restic
from tests.requirements import need, need_btrfs
from tests.tasks.backing_up import dataset, fill, one_at_a_time, pool

__all__ = ["dataset", "pool"]
pytestmark = one_at_a_time

KINDS = ("zfs", "btrfs", "restic", "postgres")
REFERENCES = {
    "zfs": "sovereign-zfs-snapshots/web",
    "btrfs": "sovereign-btrfs-snapshots/web",
    "restic": "sovereign-restic-repository/web",
    "postgres": "sovereign-postgres-base-backup/web",
}


@pytest.fixture
def zfs(dataset):
    return dataset


@pytest.fixture
def btrfs(tmp_path):
    need_btrfs()
    with LabBtrfs(tmp_path) as mounted:
        web = mounted.create("web")
        fill(Path(web.subvolume))
        yield web


@pytest.fixture
def repository(tmp_path):
    need("restic", package="restic")
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    made = ResticAccess(
        repository=str(tmp_path / "repository"),
        password=SecretStr("secret"),
        paths=(str(source),),
        environment={"RESTIC_CACHE_DIR": SecretStr(str(tmp_path / "cache"))},
        restore_directory=str(tmp_path),
    )
    restic.initialise(made)
    return made


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setitem(lab.postgres._SETTINGS, "wal_level", "replica")
    monkeypatch.setitem(lab.postgres._SETTINGS, "max_wal_senders", "4")
    with Postgres(tmp_path / "server") as running:
        yield PostgresAccess(
            host="127.0.0.1", port=running.port, directory=str(tmp_path / "copies"), programs=str(programs())
        )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def one(kind, request):
    return request.getfixturevalue({"restic": "repository", "postgres": "server"}.get(kind, kind))


def test_taken_twice_is_once_and_it_is_verified_measured_and_never_pruned_as_the_newest(kind, one, settings):
    reference = REFERENCES[kind]
    taken = backup.take_backup(one, reference, deployment="d1", settings=settings)
    again = backup.take_backup(one, reference, deployment="d1", settings=settings)
    assert (again.identity, again.taken_at, again.source) == (taken.identity, taken.taken_at, reference)
    assert taken.details["deployment"] == "d1"
    found = backup.verify_backup(one, taken, settings=settings)
    assert found.result is Result.PASSED, found.evidence
    later = taken.taken_at + timedelta(days=30)
    lost = backup.loss_of(one, taken, now=later, settings=settings)
    assert (lost.source, lost.lost_s) == (reference, 30 * 86_400)
    assert backup.prune_backups(one, now=later, keep_s=1, settings=settings) == ()
    other = "1" if taken.identity.endswith("0") else "0"
    gone = taken.model_copy(update={"identity": taken.identity[:-1] + other})
    assert backup.verify_backup(one, gone, settings=settings).result is Result.FAILED


def test_a_plan_of_it_passes_and_changes_nothing(kind, one, settings):
    found = backup.plan_findings({REFERENCES[kind]: one}, settings=settings, limits=GateLimits())
    assert found["backup-plan"].result is Result.PASSED, found["backup-plan"].evidence
    assert found["backup-storage"].result is Result.PASSED, found["backup-storage"].evidence
    assert found["offsite-backup"].result is Result.UNKNOWN
    assert REFERENCES[kind] in found["backup-plan"].evidence
    later = datetime.now(UTC) + timedelta(days=99)
    assert backup.prune_backups(one, now=later, keep_s=1, settings=settings) == ()


def test_too_little_room_fails(zfs, btrfs, settings):
    backups = {REFERENCES["zfs"]: zfs, REFERENCES["btrfs"]: btrfs}
    greedy = GateLimits(min_disk_free_ratio=1.0)
    found = backup.plan_findings(backups, settings=settings, limits=greedy)["backup-storage"]
    assert found.result is Result.FAILED
    assert "100% wanted" in found.evidence


def test_no_backup_is_unknown_and_unknown_is_not_passed(settings):
    found = backup.plan_findings({}, settings=settings, limits=GateLimits())
    assert {each.result for each in found.values()} == {Result.UNKNOWN}


def test_offsite_is_a_repository_elsewhere_that_answers(repository, settings):
    reference = REFERENCES["restic"]

    def offsite(one):
        return backup.plan_findings({reference: one}, settings=settings, limits=GateLimits())[
            "offsite-backup"
        ]

    here = offsite(repository.model_copy(update={"offsite": True}))
    assert here.result is Result.FAILED
    assert "not another site" in here.evidence
    dead = {"offsite": True, "repository": "rest:http://127.0.0.1:1/", "timeout_s": 4.0}
    found = offsite(repository.model_copy(update=dead))
    assert found.result is Result.FAILED
    # any other address than a path is elsewhere to restic; this one leads back here
    answered = {"offsite": True, "repository": f"local:{repository.repository}"}
    assert offsite(repository.model_copy(update=answered)).result is Result.PASSED


def test_a_host_that_cannot_be_reached_is_unknown(zfs, settings):
    taken = backup.take_backup(zfs, REFERENCES["zfs"], deployment="d1", settings=settings)
    away = HostAddress(name="away", address="127.0.0.1", port=1, connect_timeout_s=1)
    far = zfs.model_copy(update={"host": away})
    assert backup.verify_backup(far, taken, settings=settings).result is Result.UNKNOWN
    found = backup.plan_findings({REFERENCES["zfs"]: far}, settings=settings, limits=GateLimits())
    assert found["backup-plan"].result is Result.UNKNOWN


# --- blocks ----------------------------------------------------------------------------------------


def test_a_block_is_loaded_with_the_blocks_that_it_names(prefect_api):
    Host(name="db", address="10.0.0.7").save("backup-db", overwrite=True)
    ZfsSnapshots(dataset="tank/web", host="backup-db").save("backup-web", overwrite=True)
    ResticRepository(
        repository="s3:https://s3.example.org/bucket",
        password="secret",
        paths=["/srv/web"],
        host="backup-db",
        source="backup-web",
        environment={"AWS_SECRET_ACCESS_KEY": "key"},
    ).save("backup-web", overwrite=True)
    PostgresBaseBackup(directory="/srv/copies").save("backup-web", overwrite=True)
    host = HostAddress(name="db", address="10.0.0.7")
    zfs = backup.load_backup("sovereign-zfs-snapshots/backup-web")
    assert zfs == ZfsDataset(dataset="tank/web", host=host)
    loaded = backup.load_backup("sovereign-restic-repository/backup-web")
    assert (loaded.source, loaded.host) == (zfs, host)
    assert loaded.password.get_secret_value() == "secret"
    assert loaded.environment["AWS_SECRET_ACCESS_KEY"].get_secret_value() == "key"
    assert backup.load_backup("sovereign-postgres-base-backup/backup-web").directory == "/srv/copies"


def test_a_block_that_is_not_there_or_no_backup_is_told(prefect_api):
    with pytest.raises(ValueError, match="no-such"):
        backup.load_backup("sovereign-zfs-snapshots/no-such")
    with pytest.raises(ValueError, match="is no backup"):
        backup.load_backup("sovereign-host/web")
