"""What bringing a whole cluster back to a snapshot loses: the commits, the time and the bytes since.

And which of these snapshots may go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import AwareDatetime, Field

from rules.backup import Stored, is_way_back
from rules.errors import DeployError
from rules.frozen import Count, Frozen, Seconds

_RECORD = re.compile(r"^rmgr: (\S+) .* lsn: ([0-9A-F]+/[0-9A-F]+), .* desc: (\S+)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")
_CONTROL = {
    "system": "Database system identifier",
    "checkpoint": "Latest checkpoint location",
    "redo": "Latest checkpoint's REDO location",
    "timeline": "Latest checkpoint's TimeLineID",
    "next_transaction": "Latest checkpoint's NextXID",
}


class LossNotAcceptedError(DeployError):
    """Going back would lose more than may be lost without asking: a person has to accept it first."""


# --- what PostgreSQL's programs print --------------------------------------------------------------


class Control(Frozen):
    """What a cluster's control file says, as of its latest checkpoint."""

    system: str = Field(description="the cluster's identifier")
    checkpoint: str = Field(description="position of the checkpoint's record, such as 0/16EF458")
    redo: str = Field(description="position from which a crashed cluster recovers")
    timeline: Count
    next_transaction: Count = Field(description="the next transaction's number, its epoch included")


class WalRecord(Frozen):
    """One record of the write-ahead log."""

    position: str
    is_commit: bool
    at: AwareDatetime | None = Field(default=None, description="of a commit")


class WalEnd(Frozen):
    """Where the write-ahead log of a cluster ends that is not running, such as a snapshot's."""

    control: Control
    last: WalRecord


class Commits(Frozen):
    """The commits in a part of the write-ahead log."""

    count: Count | None = Field(description="None: that part is no longer all there")
    last_at: AwareDatetime | None = None
    at_most: Count | None = Field(default=None, description="transactions begun meanwhile, also failed ones")
    why_not: str = Field(default="", description="why they could not be counted")

    @classmethod
    def unknown(cls, why_not: str, *, at_most: int | None = None) -> Self:
        """Return that they could not be counted."""
        return cls(count=None, at_most=at_most, why_not=why_not)


def parse_control(output: str) -> Control:
    """Return what `pg_controldata` says, with messages in English.

    Raises:
        ValueError: it does not say all that is needed.
    """
    lines = (line.partition(":") for line in output.splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    if missing := [name for name in _CONTROL.values() if name not in said]:
        raise ValueError(f"pg_controldata does not say {missing}")
    values = {field: said[name] for field, name in _CONTROL.items()}
    epoch, _, number = values.pop("next_transaction").rpartition(":")
    return Control.model_validate({**values, "next_transaction": (int(epoch or 0) << 32) + int(number)})


def position(text: str) -> int:
    """Return a WAL position as a number of bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def parse_record(line: str) -> WalRecord:
    """Return the record from a line of `pg_waldump`, its times in UTC.

    Raises:
        ValueError: it is no such line.
    """
    read = _RECORD.match(line)
    if not read:
        raise ValueError(f"not a record of the WAL: {line[:200]!r}")
    manager, where, what = read.groups()
    # a prepared transaction is committed by a record of its own
    is_commit = manager == "Transaction" and what in {"COMMIT", "COMMIT_PREPARED"}
    time = _TIME.search(line) if is_commit else None
    at = datetime.fromisoformat(time[1]).replace(tzinfo=UTC) if time else None
    return WalRecord(position=where, is_commit=is_commit, at=at)


def commits_after(ended: WalEnd, listed: str, *, count: int, now: Control) -> Commits:
    """Return the commits after a snapshot's own WAL has `ended`, from what was read of the live WAL.

    Args:
        ended: where the snapshot's own WAL ends.
        listed: the checkpoints' lines that `pg_waldump` printed from there on, and the last commit's.
        count: how many commits it printed after `ended`.
        now: the live cluster's, read before its WAL was: nothing was skipped if its checkpoint was seen.
    """
    before, end = ended.control, ended.last
    at_most = max(0, now.next_transaction - before.next_transaction)
    if now.system != before.system:
        return Commits.unknown("the snapshot holds another cluster")
    if now.timeline != before.timeline:
        return Commits.unknown(f"the server went over to timeline {now.timeline} meanwhile", at_most=at_most)
    records = [parse_record(line) for line in listed.splitlines() if line.strip()]
    reached = position(now.checkpoint)
    if reached > position(end.position) and all(position(r.position) != reached for r in records):
        return Commits.unknown("the server has recycled a part of its WAL meanwhile", at_most=at_most)
    last = next((r.at for r in reversed(records) if r.is_commit and r.position != end.position), None)
    return Commits(count=count, last_at=last if count else None, at_most=at_most)


# --- the loss --------------------------------------------------------------------------------------


class ClusterLoss(Frozen):
    """What bringing a cluster back to a snapshot loses."""

    snapshot: str
    lost_s: Seconds = Field(
        description="from the snapshot to the last commit; to now where commits are not known"
    )
    lost_bytes: Count | None = Field(description="written to the dataset since; None: not known")
    commits: Count | None = Field(
        description="the change's own and the server's background work included; None: not known"
    )
    commits_at_most: Count | None = None
    discarded: tuple[str, ...] = Field(default=(), description="later snapshots, which are destroyed by it")
    in_words: str

    @classmethod
    def of(
        cls,
        snapshot: str,
        commits: Commits,
        *,
        taken_at: datetime,
        now: datetime,
        lost_bytes: int | None,
        discarded: tuple[str, ...],
    ) -> Self:
        """Return the loss from what was measured; without a commit no time is lost, however much went by."""
        if commits.count is None:
            until = now
        else:
            until = commits.last_at if commits.count and commits.last_at else taken_at
        lost_s = max(0.0, (until - taken_at).total_seconds())
        words = [f"Going back to {snapshot} loses {_commits_in_words(commits, lost_s)}"]
        words.append("how many bytes is not known" if lost_bytes is None else f"{lost_bytes:,} bytes written")
        if discarded:
            words.append(f"and destroys the later snapshots {', '.join(discarded)}")
        return cls(
            snapshot=snapshot,
            lost_s=lost_s,
            lost_bytes=lost_bytes,
            commits=commits.count,
            commits_at_most=commits.at_most,
            discarded=discarded,
            in_words=", ".join(words) + ".",
        )


def _commits_in_words(commits: Commits, lost_s: float) -> str:
    if commits.count is None:
        limit = "" if commits.at_most is None else f", at most {commits.at_most}"
        return f"the last {lost_s:.0f} s: how many commits is not known ({commits.why_not}){limit}"
    if commits.count == 0:
        return "no commit"
    many = "1 commit" if commits.count == 1 else f"{commits.count} commits"
    return f"{many} of {lost_s:.1f} s (the change's own and the server's background work included)"


# --- the snapshots ---------------------------------------------------------------------------------


def expired_ways_back(
    stored: Iterable[Stored], *, keep: Collection[str], now: datetime, keep_s: float
) -> tuple[Stored, ...]:
    """Return the snapshots that no schema change goes back through any more, oldest first.

    Never one that is held or cloned, never a backup, never one that is not ours. Unlike of backups the
    newest may go too: it is worth nothing without the change that it was taken for.

    Args:
        stored: the dataset's snapshots.
        keep: names, dataset@label, of those that are still needed, however old.
        now: the time.
        keep_s: seconds for which any other one is kept.
    """
    oldest_kept = now - timedelta(seconds=keep_s)
    old = (each for each in stored if is_way_back(each.label) and each.taken_at < oldest_kept)
    free = (each for each in old if each.identity not in keep and not each.is_held)
    return tuple(sorted(free, key=lambda each: each.taken_at))
