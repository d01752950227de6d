"""Backups: which may go, what zfs, btrfs and restic print, and what a loss is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.backup import (
    BackedUpFile,
    BackupTaken,
    Loss,
    Stored,
    ZfsDataset,
    backup_name,
    end_of_backup,
    expired,
    is_way_back,
    may_snapshot,
    moved,
    overlapping,
    parse_files,
    parse_mounts,
    parse_properties,
    parse_snapshots,
    parse_subvolume,
    parse_summary,
    sample,
    written_bytes,
    zfs_stored,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
WEEK_S = 7 * 86_400.0


def kept(label: str, *, days: float, held: bool = False) -> Stored:
    return Stored(identity=f"tank@{label}", label=label, taken_at=NOW - timedelta(days=days), is_held=held)


def test_what_is_older_than_a_week_goes_oldest_first():
    backups = [kept("sovereign-b", days=8), kept("sovereign-new", days=1), kept("sovereign-a", days=9)]
    labels = [each.label for each in expired(backups, now=NOW, keep_s=WEEK_S)]
    assert labels == ["sovereign-a", "sovereign-b"]


def test_exactly_a_week_is_kept():
    backups = [kept("sovereign-a", days=7), kept("sovereign-new", days=1)]
    assert expired(backups, now=NOW, keep_s=WEEK_S) == ()


def test_the_newest_of_ours_stays_however_old_and_a_strangers_newer_one_does_not_count():
    backups = [kept("sovereign-a", days=90), kept("hourly-new", days=0)]
    assert expired(backups, now=NOW, keep_s=WEEK_S) == ()


labels = st.sampled_from(
    ["sovereign-a", "sovereign-b", "hourly", "sovereign", "sovereignty", "sovereign_measure"]
)


@given(
    st.lists(st.builds(kept, labels, days=st.floats(0, 30), held=st.booleans()), max_size=12),
    st.floats(0, 1e6),
)
def test_never_the_newest_nor_a_held_one_nor_one_that_is_not_ours(backups, keep_s):
    gone = expired(backups, now=NOW, keep_s=keep_s)
    assert all(each.label.startswith("sovereign-") and not each.is_held for each in gone)
    ours = [each for each in backups if each.label.startswith("sovereign-")]
    if ours:
        newest_at = max(each.taken_at for each in ours)
        left = [each for each in ours if not any(each is other for other in gone)]
        assert any(each.taken_at == newest_at for each in left)


@pytest.mark.parametrize(
    ("label", "is_one"),
    [
        ("sovereign-memories-0001-schema", True),
        ("sovereign-memories-0001", False),
        ("sovereign-schema", False),  # a backup of the deployment `schema`
        ("hourly-schema", False),
        ("sovereign-schema-0001", False),
    ],
)
def test_a_schema_change_s_way_back_is_told_from_backups_by_its_name(label, is_one):
    assert is_way_back(label) is is_one


@pytest.mark.parametrize(
    "name",
    ["-r", "tank/../x", "tank/-x", "tank@x", "/tank", "tank/", "", "tank//x", "tank/a b", "tank/x\n", "1x"],
)
def test_what_zfs_would_take_for_something_else_is_no_dataset(name):
    with pytest.raises(ValidationError):
        ZfsDataset(dataset=name)


@pytest.mark.parametrize("name", ["tank", "tank/web", "zroot/var/data_1.x:y-z"])
def test_a_dataset_may_be_called_so(name):
    assert ZfsDataset(dataset=name).pool == name.split("/")[0]


def test_places_and_names_of_clones_tell_datasets_apart():
    one, other = ZfsDataset(dataset="tank/a/b"), ZfsDataset(dataset="tank/a-b")
    assert one.reading_place != other.reading_place
    assert not other.reading_prefix.startswith(one.reading_prefix)
    assert one.reading_place.startswith("/run/sovereign-deploy/")


def test_a_backup_is_named_after_its_deployment():
    assert backup_name("web-20260601") == "sovereign-web-20260601"


PROPERTIES = (
    "tank/web\tcreation\t1795616592\ntank/web\tuserrefs\t-\ntank/web\tcreatetxg\t7\n"
    "tank/web@b\tcreation\t1795616600\ntank/web@b\tuserrefs\t0\ntank/web@b\tcreatetxg\t20\n"
    "tank/web@a\tcreation\t1795616600\ntank/web@a\tuserrefs\t2\ntank/web@a\tcreatetxg\t18\n"
    "tank/web@c\tcreation\t1795616600\ntank/web@c\tuserrefs\t0\ntank/web@c\tcreatetxg\t22\n"
    "tank/web/sub@c\tcreation\t1795616600\ntank/web/sub@c\tuserrefs\t1\ntank/web/sub@c\tcreatetxg\t22\n"
)


def test_snapshots_come_in_the_order_of_their_making_also_within_a_second():
    found = zfs_stored("tank/web", parse_properties(PROPERTIES), cloned=["tank/web@b"])
    assert [each.label for each in found] == ["a", "b", "c"]
    assert found[0].taken_at == datetime.fromtimestamp(1795616600, UTC)


def test_what_a_hold_a_clone_or_a_hold_further_down_needs_is_held():
    properties = parse_properties(PROPERTIES)
    held = [each.label for each in zfs_stored("tank/web", properties, cloned=[]) if each.is_held]
    assert held == ["a", "c"]
    held = [each.label for each in zfs_stored("tank/web", properties, cloned=["tank/web@b"]) if each.is_held]
    assert held == ["a", "b", "c"]


ALLOWED = """\
---- Permissions on tank/web -----------------------------------------
Local+Descendent permissions:
\tuser deploy clone,mount,snapshot
\tgroup backup snapshot
\teveryone mount
"""


@pytest.mark.parametrize(
    ("user", "groups", "may"),
    [("deploy", [], True), ("other", ["backup"], True), ("other", ["users"], False), ("backup", [], False)],
)
def test_who_may_snapshot_is_read_from_what_was_delegated(user, groups, may):
    assert may_snapshot(ALLOWED, user=user, groups=groups) is may


def test_mounts_of_zfs_are_told_from_others_and_spaces_are_read():
    table = "proc /proc proc rw 0 0\ntank/web /srv/my\\040web zfs rw 0 0\ntank/fuse /f fuse.zfs rw 0 0\n"
    assert parse_mounts(table) == {"tank/web": "/srv/my web", "tank/fuse": "/f"}


def test_a_path_moves_with_its_mountpoint_and_no_other_does():
    assert moved("/srv/web/a/b", "/srv/web", "/run/x") == "/run/x/a/b"
    assert moved("/srv/web", "/srv/web/", "/run/x") == "/run/x"
    with pytest.raises(ValueError, match="does not lie in"):
        moved("/srv/website", "/srv/web", "/run/x")


def test_a_path_overlaps_with_what_lies_above_and_below_it():
    places = {"t/a": "/srv/a", "t/b": "/srv/b/deep", "t/c": "/srvc"}
    assert overlapping("/srv/a/x", places) == ("t/a",)
    assert overlapping("/srv", places) == ("t/a", "t/b")
    assert overlapping("/srv/ab", places) == ()


def test_a_subvolumes_fields_are_read():
    shown = "snaps/s1\n\tUUID: \t\t5bc0-1\n\tCreation time: \t\t2026-11-25 14:23:13 +0000\n\tFlags: \t-\n"
    fields = parse_subvolume(shown)
    assert (fields["UUID"], fields["Creation time"]) == ("5bc0-1", "2026-11-25 14:23:13 +0000")


def test_extents_are_summed():
    listed = (
        "inode 257 file offset 0 len 4096 disk start 1 offset 0 gen 9 flags NONE len 7\n"
        "inode 258 file offset 0 len 12 disk start 0 offset 0 gen 9 flags INLINE x\n"
        "transid marker was 9\n"
    )
    assert written_bytes(listed) == 4108


def test_restics_snapshots_come_oldest_first_and_none_is_none():
    row = {"paths": ["/srv"], "hostname": "db", "tags": None, "tree": "x"}
    text = json.dumps(
        [
            {**row, "id": "b" * 64, "time": "2026-06-01T10:00:00.123456789Z"},
            {**row, "id": "a" * 64, "time": "2026-05-01T10:00:00+02:00", "tags": ["sovereign-d1"]},
        ]
    )
    first, second = parse_snapshots(text)
    assert (first.id[0], first.tags, second.tags) == ("a", ("sovereign-d1",), ())
    assert parse_snapshots("null") == ()


def test_a_summary_that_is_missing_means_that_the_backup_did_not_end():
    status = '{"message_type":"status","percent_done":0.5}\n'
    summary = '{"message_type":"summary","snapshot_id":"53ca1c78","total_bytes_processed":600000}\n'
    assert parse_summary(status + summary) == ("53ca1c78", 600_000)
    for torn in (status, ""):
        with pytest.raises(ValueError, match="no summary"):
            parse_summary(torn)


def test_files_are_read_to_the_nanosecond_and_directories_left_out():
    lines = [
        '{"struct_type":"snapshot"}',
        '{"name":"d","type":"dir","path":"/d","mtime":"2026-11-25T14:23:13Z"}',
        '{"name":"f","type":"file","path":"/d/f","size":7,"mtime":"2026-11-25T14:23:13.31317363Z"}',
        '{"name":"g","type":"file","path":"/d/g","mtime":"2026-11-25T15:23:13+01:00"}',
    ]
    first, second = parse_files("\n".join(lines))
    assert first == BackedUpFile(path="/d/f", size_bytes=7, modified_ns=1795616593_313173630)
    assert (second.size_bytes, second.modified_ns) == (0, 1795616593_000000000)


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 20), st.integers(1, 500))
def test_a_sample_is_within_its_bounds_and_is_there_when_it_can_be(sizes, count, max_bytes):
    files = [BackedUpFile(path=f"/{n}", size_bytes=size, modified_ns=0) for n, size in enumerate(sizes)]
    chosen = sample(files, count=count, max_bytes=max_bytes)
    assert len(chosen) <= count
    assert sum(file.size_bytes for file in chosen) <= max_bytes
    if sizes and min(sizes) > 0 and max(sizes) <= max_bytes:
        assert chosen


def test_a_sample_leaves_out_what_restic_reads_as_a_pattern():
    names = ["/a*", "/b?", "/[c]", "/d\\", "/e"]
    files = [BackedUpFile(path=name, size_bytes=1, modified_ns=0) for name in names]
    assert [file.path for file in sample(files, count=9, max_bytes=9)] == ["/e"]


def test_the_end_of_a_base_backup_is_in_its_manifest():
    ranges = [{"Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120"}]
    assert end_of_backup(json.dumps({"WAL-Ranges": ranges})) == "0/2000120"
    with pytest.raises(ValueError, match="no WAL"):
        end_of_backup("{}")


def test_a_loss_says_how_long_and_how_much():
    taken = BackupTaken(
        source="sovereign-zfs-snapshots/web",
        kind="zfs_snapshot",
        identity="tank/web@sovereign-d1",
        taken_at=NOW,
    )
    lost = Loss.of(taken, now=NOW + timedelta(seconds=90), lost_bytes=7, what="written since")
    assert lost.in_words == "Going back to tank/web@sovereign-d1 loses the last 90 s: 7 bytes written since."
    early = Loss.of(taken, now=NOW - timedelta(seconds=1), lost_bytes=None, what="was written since")
    assert (early.lost_s, early.lost_bytes) == (0, None)
    assert "how much was written since is not known" in early.in_words


def test_what_was_taken_survives_json():
    taken = BackupTaken(
        source="sovereign-restic-repository/offsite",
        kind="restic",
        identity="a" * 64,
        taken_at=NOW,
        size_bytes=1,
    )
    assert BackupTaken.model_validate_json(taken.model_dump_json()) == taken
