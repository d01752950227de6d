"""Backups: what was taken, what going back to it would lose, and which ones may go."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from rules.environment import BlockReference
from rules.frozen import AbsolutePath, Count, Frozen, Name, Seconds, slug
from rules.hosts import HostAddress

#: All that we make bears it, and nothing else is ever removed.
PREFIX = "sovereign-"
#: Taken for a moment to measure what was written since another one; no backup, so not with our prefix.
MEASURING = "sovereign_measure"
#: Ends the names of the snapshots that schema changes go back through.
SCHEMA_SUFFIX = "-schema"

_LEVEL = r"[A-Za-z0-9_][A-Za-z0-9_.:-]*"

#: A ZFS file system, such as `tank/web`: no option, no snapshot, no way up.
DatasetName = Annotated[
    str, Field(pattern=rf"^[A-Za-z][A-Za-z0-9_.:-]*(/{_LEVEL})*$", max_length=150, examples=["tank/web"])
]


class ZfsDataset(Frozen):
    """A ZFS file system that snapshots are taken of."""

    dataset: DatasetName
    host: HostAddress = HostAddress()
    recursive: bool = False
    read_directory: AbsolutePath = "/run/sovereign-deploy"

    @property
    def pool(self) -> str:
        """The pool it lies in."""
        return self.dataset.partition("/")[0]

    @property
    def reading_place(self) -> str:
        """Where its snapshots are mounted to be read: always there, so that Restic knows the paths again."""
        return f"{self.read_directory.rstrip('/')}/{_short(self.dataset)}"

    @property
    def reading_prefix(self) -> str:
        """How the names of the clones begin that its snapshots are read by."""
        return f"{self.pool}/sovereign_read_{_short(self.dataset)}_"


class BtrfsSubvolume(Frozen):
    """A btrfs subvolume that snapshots are taken of."""

    subvolume: AbsolutePath
    snapshots: AbsolutePath
    host: HostAddress = HostAddress()


class BackupTaken(Frozen):
    """A backup that is there."""

    source: BlockReference = Field(description="block that it was taken by")
    kind: Literal["zfs_snapshot", "btrfs_snapshot", "restic", "base_backup"]
    identity: str = Field(description="a snapshot, a Restic snapshot's id, or a directory")
    taken_at: AwareDatetime
    size_bytes: Count | None = None
    position: str = Field(default="", description="createtxg, generation or WAL position")
    details: dict[str, str] = Field(default_factory=dict)


class Loss(Frozen):
    """What going back to a backup would lose."""

    source: BlockReference
    lost_s: Seconds
    lost_bytes: Count | None
    in_words: str

    @classmethod
    def of(cls, taken: BackupTaken, *, now: datetime, lost_bytes: int | None, what: str) -> Loss:
        """Return the loss from the time and the bytes written since `taken`; `what` names the bytes."""
        lost_s = max(0.0, (now - taken.taken_at).total_seconds())
        amount = f"how much {what} is not known" if lost_bytes is None else f"{lost_bytes} bytes {what}"
        words = f"Going back to {taken.identity} loses the last {lost_s:.0f} s: {amount}."
        return cls(source=taken.source, lost_s=lost_s, lost_bytes=lost_bytes, in_words=words)


class Stored(Frozen):
    """A backup as its store lists it."""

    identity: str
    label: str = Field(description="the name it was given: ours begin with sovereign-")
    taken_at: AwareDatetime
    is_held: bool = Field(default=False, description="a hold or a clone needs it")


def backup_name(deployment: Name) -> str:
    """Return the name of a deployment's backups, the same each time, so that a retry finds the first one."""
    return f"{PREFIX}{deployment}"


def is_way_back(label: str) -> bool:
    """Return whether a snapshot is a schema change's way back, and so no backup: no retention counts it."""
    return label.startswith(PREFIX) and label.removeprefix(PREFIX).endswith(SCHEMA_SUFFIX)


def expired(backups: Iterable[Stored], *, now: datetime, keep_s: float) -> tuple[Stored, ...]:
    """Return the backups that may go, oldest first.

    Never the newest of ours, never one that is held or cloned, never one that is not ours.
    """
    ours = sorted((b for b in backups if b.label.startswith(PREFIX)), key=lambda b: b.taken_at)
    oldest_kept = now - timedelta(seconds=keep_s)
    return tuple(b for b in ours[:-1] if b.taken_at < oldest_kept and not b.is_held)


# --- ZFS -------------------------------------------------------------------------------------------


def parse_properties(output: str) -> dict[str, dict[str, str]]:
    """Return dataset -> property -> value from `zfs get -Hp -o name,property,value`."""
    properties: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        name, _, rest = line.partition("\t")
        key, _, value = rest.partition("\t")
        properties.setdefault(name, {})[key] = value
    return properties


def zfs_stored(
    dataset: DatasetName, properties: Mapping[str, Mapping[str, str]], *, cloned: Iterable[str]
) -> tuple[Stored, ...]:
    """Return the dataset's own snapshots, oldest first.

    Args:
        dataset: whose; those of datasets below it only say what is held.
        properties: snapshot -> `creation`, `createtxg` and `userrefs`.
        cloned: snapshots that a clone depends on.
    """
    held = {*cloned, *(n for n, v in properties.items() if v.get("userrefs", "-") not in {"0", "-"})}
    # destroying a snapshot of the dataset destroys those of the same label below it
    held_labels = {name.partition("@")[2] for name in held if name.startswith((f"{dataset}@", f"{dataset}/"))}
    # of snapshots within one second only the transaction group tells which came first
    ordered = sorted(
        (int(values["createtxg"]), name, values)
        for name, values in properties.items()
        if name.startswith(f"{dataset}@")
    )
    return tuple(
        Stored(
            identity=name,
            label=name.partition("@")[2],
            taken_at=from_epoch(values["creation"]),
            is_held=name.partition("@")[2] in held_labels,
        )
        for _, name, values in ordered
    )


def parse_mounts(mounts: str) -> dict[str, str]:
    """Return dataset -> mountpoint from the kernel's table of mounts, which writes spaces in octal."""
    rows = (line.split() for line in mounts.splitlines())
    zfs = {row[0]: row[1] for row in rows if row[2] in {"zfs", "fuse.zfs"}}
    return {name: re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), place) for name, place in zfs.items()}


def overlapping(path: str, places: Mapping[str, str]) -> tuple[str, ...]:
    """Return the datasets of `places` (name -> mountpoint) that hold a part of what is at `path`, sorted."""
    return tuple(
        sorted(name for name, place in places.items() if _is_within(path, place) or _is_within(place, path))
    )


def moved(path: str, old: str, new: str) -> str:
    """Return where `path`, which lies in the directory `old`, lies in its copy `new`.

    Raises:
        ValueError: it does not lie in `old`.
    """
    if not _is_within(path, old):
        raise ValueError(f"{path} does not lie in {old}")
    rest = path.rstrip("/")[len(old.rstrip("/")) :].strip("/")
    return f"{new.rstrip('/')}/{rest}" if rest else new


def from_epoch(seconds: str) -> datetime:
    """Return a time from whole seconds since 1970."""
    return datetime.fromtimestamp(int(seconds), UTC)


def may_snapshot(allowed: str, *, user: str, groups: Iterable[str]) -> bool:
    """Return whether `zfs allow DATASET` lets `user` take, clone and destroy snapshots."""
    who = {("user", user), ("group", ""), *(("group", group) for group in groups)}
    granted: set[str] = {""}
    for line in allowed.splitlines():
        words = line.split()
        if words[:1] == ["everyone"]:
            granted |= set(words[1].split(","))
        elif len(words) == 3 and (words[0], words[1]) in who:  # noqa: PLR2004 - kind, name, rights
            granted |= set(words[2].split(","))
    return {"snapshot", "mount"} <= granted


# --- btrfs -----------------------------------------------------------------------------------------


def parse_subvolume(output: str) -> dict[str, str]:
    """Return the fields of `btrfs subvolume show`, by their names there, such as `UUID`."""
    fields = (line.strip().partition(":") for line in output.splitlines()[1:])
    return {name: value.strip() for name, colon, value in fields if colon}


def written_bytes(output: str) -> int:
    """Return the sum of the extents that `btrfs subvolume find-new` lists."""
    lines = (line.split() for line in output.splitlines() if line.startswith("inode "))
    return sum(int(words[words.index("len") + 1]) for words in lines)


# --- Restic ----------------------------------------------------------------------------------------


class ResticSnapshot(Frozen):
    """A snapshot as `restic snapshots --json` lists it."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    time: AwareDatetime
    hostname: str = ""
    paths: tuple[str, ...]
    tags: tuple[str, ...] = ()


class BackedUpFile(Frozen):
    """A file as `restic ls --json` lists it."""

    path: str
    size_bytes: Count
    modified_ns: int = Field(description="nanoseconds since 1970")


def parse_snapshots(output: str) -> tuple[ResticSnapshot, ...]:
    """Return the snapshots, oldest first, from `restic snapshots --json`; `null` is none.

    Raises:
        ValueError: it is not that.
    """
    known = ResticSnapshot.model_fields
    rows: list[dict[str, Any]] = json.loads(output) or []
    found = [ResticSnapshot.model_validate({k: row[k] for k in known if row.get(k)}) for row in rows]
    return tuple(sorted(found, key=lambda snapshot: snapshot.time))


def parse_summary(output: str) -> tuple[str, int]:
    """Return the beginning of the snapshot's id and its bytes, from `restic backup --json`.

    Raises:
        ValueError: its last line is no summary: the backup did not end.
    """
    lines = output.strip().splitlines()
    summary: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if summary.get("message_type") != "summary" or not summary.get("snapshot_id"):
        raise ValueError(f"restic's last word is no summary: {summary}")
    return summary["snapshot_id"], int(summary["total_bytes_processed"])


def parse_files(output: str) -> tuple[BackedUpFile, ...]:
    """Return the regular files from `restic ls --json`; a torn first line is skipped."""
    found = []
    for line in output.splitlines():
        if '"type":"file"' not in line or not line.startswith("{"):
            continue
        row: dict[str, Any] = json.loads(line)
        size = int(row.get("size", 0))
        found.append(BackedUpFile(path=row["path"], size_bytes=size, modified_ns=_nanoseconds(row["mtime"])))
    return tuple(found)


def sample(files: Iterable[BackedUpFile], *, count: int, max_bytes: int) -> tuple[BackedUpFile, ...]:
    """Return up to `count` files of up to `max_bytes` together, spread evenly over all of them.

    Left out are names that Restic would read as a pattern.
    """
    # zero bytes prove nothing
    plain = [f for f in files if f.size_bytes and not set(f.path) & set("*?[]\\$\n")]
    step = max(1, -(-len(plain) // count))
    chosen: list[BackedUpFile] = []
    for file in plain[::step]:
        if sum(f.size_bytes for f in chosen) + file.size_bytes <= max_bytes:
            chosen.append(file)
    return tuple(chosen)


# --- PostgreSQL ------------------------------------------------------------------------------------


def end_of_backup(manifest: str) -> str:
    """Return the WAL position that a base backup is consistent at, from its `backup_manifest`.

    Raises:
        ValueError: it names none.
    """
    ranges = json.loads(manifest).get("WAL-Ranges", [])
    if not ranges:
        raise ValueError("the backup's manifest names no WAL")
    return str(ranges[-1]["End-LSN"])


def _short(dataset: str) -> str:
    """Return the dataset in letters for one level of a path; the digits tell `a/b` from `a-b`."""
    return f"{slug(dataset)[:40]}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"


def _nanoseconds(time: str) -> int:
    """Return nanoseconds since 1970 from an RFC 3339 time with up to nine decimals, as Go writes them."""
    read = re.fullmatch(r"([^.Z+]+?)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", time)
    if not read:
        raise ValueError(f"{time!r} is no time as Restic writes it")
    whole, decimals, zone = read.groups()
    return int(datetime.fromisoformat(whole + zone).timestamp()) * 10**9 + int((decimals or "").ljust(9, "0"))


def _is_within(path: str, directory: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{directory.rstrip('/')}/")
