"""What people fill in about backups becomes the values that we work with, and shows no secret."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from blocks.btrfs import BtrfsSnapshots
from blocks.postgres import PostgresAccess, PostgresBaseBackup
from blocks.restic import ResticAccess, ResticRepository
from blocks.zfs import ZfsSnapshots
from rules.backup import BtrfsSubvolume, ZfsDataset
from rules.hosts import HostAddress

DB = HostAddress(name="db", address="10.0.0.7")
PASSWORD = "sesame-4711-open"  # noqa: S105 - of nothing
BLOCKS = (ZfsSnapshots, BtrfsSnapshots, ResticRepository, PostgresBaseBackup)


def repository(**more) -> ResticRepository:
    fields = {"repository": "/srv/restic", "password": SecretStr(PASSWORD), "paths": ["/srv/web"]}
    return ResticRepository(**{**fields, **more})


def test_zfs_and_btrfs_give_their_fields_and_the_host_they_name():
    zfs = ZfsSnapshots(dataset="tank/web", host="db", recursive=True, read_directory="/mnt")
    assert zfs.data(DB) == ZfsDataset(dataset="tank/web", host=DB, recursive=True, read_directory="/mnt")
    btrfs = BtrfsSnapshots(subvolume="/srv/web", snapshots="/srv/snapshots", host="db")
    assert btrfs.data(DB) == BtrfsSubvolume(subvolume="/srv/web", snapshots="/srv/snapshots", host=DB)


@pytest.mark.parametrize("dataset", ["-r", "tank/../x", "tank@x"])
def test_a_dataset_that_zfs_would_take_for_something_else_is_refused(dataset):
    with pytest.raises(ValidationError):
        ZfsSnapshots(dataset=dataset).data(DB)


def test_a_relative_subvolume_is_refused():
    with pytest.raises(ValidationError):
        BtrfsSnapshots(subvolume="web", snapshots="/s").data(DB)


def test_a_repository_gives_its_fields_and_what_it_names():
    source = ZfsDataset(dataset="tank/web", host=DB)
    made = repository(offsite=True, read_data="1/10", environment={"AWS_SECRET_ACCESS_KEY": PASSWORD})
    assert made.data(DB, source) == ResticAccess(
        repository="/srv/restic",
        password=SecretStr(PASSWORD),
        paths=("/srv/web",),
        host=DB,
        source=source,
        environment={"AWS_SECRET_ACCESS_KEY": SecretStr(PASSWORD)},
        read_data="1/10",
        offsite=True,
    )


@pytest.mark.parametrize(
    ("address", "is_remote"),
    [("/srv/restic", False), ("s3:https://s3.example.org/bucket", True), ("sftp:me@host:/srv", True)],
)
def test_a_repository_knows_whether_it_is_elsewhere(address, is_remote):
    assert repository(repository=address).data(DB, None).is_remote is is_remote


@pytest.mark.parametrize("address", [f"rest:https://me:{PASSWORD}@host/", f"rest:http://:{PASSWORD}@host/"])
def test_a_password_in_the_address_is_refused_without_showing_it(address):
    with pytest.raises(ValidationError) as caught:
        repository(repository=address).data(DB, None)
    assert "holds a password" in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"repository": "--repo"}, {"paths": []}, {"paths": ["web"]}, {"read_data": "half"}, {"read_data": "0%"}],
)
def test_what_restic_cannot_take_is_refused(wrong):
    with pytest.raises(ValidationError):
        repository(**wrong).data(DB, None)


def test_a_source_on_another_host_is_refused():
    with pytest.raises(ValidationError, match="another host"):
        repository().data(DB, ZfsDataset(dataset="tank/web"))


def test_a_base_backup_gives_its_fields():
    made = PostgresBaseBackup(
        host="db1", port=5433, user="copier", password=PASSWORD, directory="/srv/copies"
    )
    assert made.data() == PostgresAccess(
        host="db1", port=5433, user="copier", password=SecretStr(PASSWORD), directory="/srv/copies"
    )
    with pytest.raises(ValidationError):
        PostgresBaseBackup(host="-h", directory="/srv").data()


def test_no_text_of_a_block_or_value_shows_a_secret():
    block = repository(environment={"AWS_SECRET_ACCESS_KEY": PASSWORD})
    postgres = PostgresBaseBackup(password=PASSWORD, directory="/srv")
    values = (block, block.data(DB, None), postgres, postgres.data())
    assert not any(PASSWORD in text for each in values for text in (repr(each), each.model_dump_json()))


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (ZfsSnapshots, ZfsDataset),
        (BtrfsSnapshots, BtrfsSubvolume),
        (ResticRepository, ResticAccess),
        (PostgresBaseBackup, PostgresAccess),
    ],
)
def test_a_block_has_the_fields_and_defaults_of_its_value(block, value):
    assert set(block.model_fields) == set(value.model_fields)
    for name, field in value.model_fields.items():
        if (
            field.default_factory is None
            and not field.is_required()
            and name not in {"host", "source", "programs"}
        ):
            assert block.model_fields[name].default == field.default


@pytest.mark.parametrize("block", BLOCKS)
def test_every_field_of_a_form_is_explained_and_the_block_has_a_name(block):
    assert all(field.description for field in block.model_fields.values())
    assert block.get_block_type_name().startswith("Sovereign ")
    assert block.get_description()


def test_the_blocks_are_known_by_these_slugs():
    assert [block.get_block_type_slug() for block in BLOCKS] == [
        "sovereign-zfs-snapshots",
        "sovereign-btrfs-snapshots",
        "sovereign-restic-repository",
        "sovereign-postgres-base-backup",
    ]
