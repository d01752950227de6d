"""What PostgreSQL's programs print, and what it means for going back to a snapshot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from rules.backup import Stored
from rules.cluster_loss import (
    ClusterLoss,
    Commits,
    Control,
    WalEnd,
    WalRecord,
    commits_after,
    expired_ways_back,
    parse_control,
    parse_record,
    position,
)

TAKEN_AT = datetime(2026, 11, 25, 18, 5, 30, tzinfo=UTC)
PRINTED = """\
pg_control version number:            1800
Database system identifier:           7712171851089771692
Database cluster state:               in production
pg_control last modified:             Wed Nov 25 18:05:36 2026
Latest checkpoint location:           0/16EF458
Latest checkpoint's REDO location:    0/16EF420
Latest checkpoint's REDO WAL file:    000000010000000000000001
Latest checkpoint's TimeLineID:       1
Latest checkpoint's NextXID:          2:752
"""
BEFORE = Control(system="7", checkpoint="0/100", redo="0/100", timeline=1, next_transaction=750)
ENDED = WalEnd(control=BEFORE, last=WalRecord(position="0/00000300", is_commit=True))


def line(where, what, *, manager="Transaction"):
    return (
        f"rmgr: {manager:11} len (rec/tot):     34/    34, tx:        752, lsn: {where}, prev 0/0170FDC8, "
        f"desc: {what}"
    )


COMMIT = line("0/00000400", "COMMIT 2026-11-25 18:05:36.676283 UTC")


def control(**changes):
    return BEFORE.model_copy(update={"checkpoint": "0/500", "next_transaction": 760, **changes})


def checkpoint(where):
    return line(where, "CHECKPOINT_SHUTDOWN redo 0/500; tli 1; prev tli 1", manager="XLOG")


def test_a_control_file_says_where_recovery_begins_and_which_transaction_is_next():
    read = parse_control(PRINTED)
    assert read == Control(
        system="7712171851089771692",
        checkpoint="0/16EF458",
        redo="0/16EF420",
        timeline=1,
        next_transaction=(2 << 32) + 752,
    )


@pytest.mark.parametrize("missing", ["REDO location", "NextXID", "TimeLineID", "system identifier"])
def test_half_a_control_file_is_refused(missing):
    kept = "\n".join(row for row in PRINTED.splitlines() if missing not in row)
    with pytest.raises(ValueError, match=missing):
        parse_control(kept)


@given(some.integers(0, 2**64 - 1))
def test_positions_are_read_with_and_without_leading_zeros(number):
    assert position(f"{number >> 32:X}/{number & 0xFFFFFFFF:X}") == number
    assert position(f"{number >> 32:X}/{number & 0xFFFFFFFF:08X}") == number


@pytest.mark.parametrize(
    ("what", "is_commit"),
    [
        ("COMMIT 2026-11-25 18:05:36.676283 UTC", True),
        ("COMMIT 2026-11-25 18:05:36.676283 UTC; rels: base/5/16384; dropped stats: 2/5/16384", True),
        ("COMMIT_PREPARED 758: 2026-11-25 18:05:36.676283 UTC", True),
        ("PREPARE gid x: 2026-11-25 18:05:36.676283 UTC", False),
        ("ABORT_PREPARED 759: 2026-11-25 18:05:36.676283 UTC", False),
        ("ABORT 2026-11-25 18:05:36.676283 UTC", False),
    ],
)
def test_of_the_records_of_transactions_commits_count(what, is_commit):
    read = parse_record(line("0/01710190", what))
    assert read.is_commit is is_commit
    assert read.position == "0/01710190"
    assert read.at == (datetime(2026, 11, 25, 18, 5, 36, 676283, UTC) if is_commit else None)


def test_a_user_s_message_that_looks_like_a_commit_is_none():
    message = 'MESSAGE transactional, prefix ", desc: COMMIT 2026", payload'
    assert not parse_record(line("0/2", message, manager="LogicalMsg")).is_commit


@pytest.mark.parametrize("text", ["", "pg_waldump: error", "rmgr: XLOG len"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ValueError, match="not a record"):
        parse_record(text)


def test_commits_are_known_when_the_wal_was_read_up_to_the_server_s_checkpoint():
    listed = "\n".join((COMMIT, checkpoint("0/00000500")))
    read = commits_after(ENDED, listed, count=4, now=control())
    assert (read.count, read.at_most) == (4, 10)
    assert read.last_at == datetime(2026, 11, 25, 18, 5, 36, 676283, UTC)


def test_without_a_checkpoint_since_the_wal_is_all_there():
    assert commits_after(ENDED, COMMIT, count=1, now=control(checkpoint="0/100")).count == 1
    assert commits_after(ENDED, "", count=0, now=control(checkpoint="0/300")).count == 0


@pytest.mark.parametrize(
    ("listed", "now", "why"),
    [
        ("", control(), "recycled"),
        (COMMIT, control(), "recycled"),
        (checkpoint("0/00000450"), control(), "recycled"),
        (checkpoint("0/00000500"), control(timeline=2), "timeline 2"),
        (checkpoint("0/00000500"), control(system="8"), "another cluster"),
    ],
)
def test_commits_are_not_known_otherwise_and_the_reason_is(listed, now, why):
    read = commits_after(ENDED, listed, count=4, now=now)
    assert read.count is None
    assert why in read.why_not


def loss(commits, **changes):
    known = {"lost_bytes": 1_234_567, "discarded": (), "now": TAKEN_AT + timedelta(hours=1)}
    return ClusterLoss.of("tank/pg@sovereign-d1", commits, taken_at=TAKEN_AT, **{**known, **changes})


def test_time_is_lost_up_to_the_last_commit():
    lost = loss(Commits(count=41, last_at=TAKEN_AT + timedelta(seconds=12.5), at_most=50))
    assert (lost.commits, lost.lost_s) == (41, 12.5)
    assert "41 commits of 12.5 s" in lost.in_words
    assert "1,234,567 bytes" in lost.in_words


def test_without_a_commit_nothing_is_lost_however_long_it_was():
    lost = loss(Commits(count=0))
    assert (lost.commits, lost.lost_s) == (0, 0)
    assert "no commit" in lost.in_words


def test_where_commits_are_not_known_all_the_time_counts_and_the_words_say_so():
    lost = loss(Commits.unknown("the WAL was recycled", at_most=90), lost_bytes=None)
    assert (lost.commits, lost.commits_at_most, lost.lost_s) == (None, 90, 3600)
    assert "not known (the WAL was recycled), at most 90" in lost.in_words
    assert "how many bytes is not known" in lost.in_words


def test_snapshots_that_go_are_named():
    assert "tank/pg@hourly" in loss(Commits(count=1), discarded=("tank/pg@hourly",)).in_words


def test_a_clock_that_went_back_loses_no_negative_time():
    assert loss(Commits(count=1, last_at=TAKEN_AT - timedelta(seconds=3))).lost_s == 0


def test_a_loss_survives_json():
    lost = loss(Commits(count=1, last_at=TAKEN_AT), discarded=("tank/pg@hourly",))
    assert ClusterLoss.model_validate_json(lost.model_dump_json()) == lost


# --- the snapshots ---------------------------------------------------------------------------------

WEEK_S = 7 * 86_400.0
LABELS = ("sovereign-d1-schema", "sovereign-d2-schema", "sovereign-d1", "hourly", "hourly-schema")


def kept(label: str, *, days: float, held: bool = False) -> Stored:
    taken_at = TAKEN_AT - timedelta(days=days)
    return Stored(identity=f"tank/pg@{label}", label=label, taken_at=taken_at, is_held=held)


def gone(*stored: Stored, keep=frozenset()) -> list[str]:
    return [each.label for each in expired_ways_back(stored, keep=keep, now=TAKEN_AT, keep_s=WEEK_S)]


def test_ways_back_go_after_their_time_oldest_first_and_also_the_newest():
    found = [kept(LABELS[1], days=8), kept(LABELS[0], days=9), kept("sovereign-d9", days=10)]
    assert gone(*found) == ["sovereign-d1-schema", "sovereign-d2-schema"]


def test_a_way_back_of_exactly_that_age_stays():
    assert gone(kept(LABELS[0], days=7)) == []


def test_a_way_back_that_a_deployment_needs_stays_however_old():
    found = [kept(LABELS[0], days=90), kept(LABELS[1], days=90)]
    assert gone(*found, keep={"tank/pg@sovereign-d1-schema"}) == ["sovereign-d2-schema"]


@given(
    some.lists(
        some.builds(kept, some.sampled_from(LABELS), days=some.floats(0, 30), held=some.booleans()),
        max_size=12,
    ),
    some.sets(some.sampled_from([f"tank/pg@{label}" for label in LABELS])),
)
def test_nothing_goes_that_is_needed_or_held_or_young_or_no_way_back_of_ours(found, keep):
    for each in expired_ways_back(found, keep=keep, now=TAKEN_AT, keep_s=WEEK_S):
        assert each.label in LABELS[:2]
        assert each.identity not in keep
        assert not each.is_held
        assert each.taken_at < TAKEN_AT - timedelta(days=7)
