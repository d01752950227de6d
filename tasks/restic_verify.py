"""Restic: read a backup back, a part of the whole repository and a sample of the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from blocks.restic import ResticAccess
from rules.backup import BackedUpFile, BackupTaken, parse_files, sample
from rules.finding import Finding
from tasks.host import run
from tasks.restic import command, readable
from tasks.settings import Settings

_SAMPLE_FILES, _SAMPLE_BYTES = 20, 64 << 20


def verify(restic: ResticAccess, taken: BackupTaken, *, settings: Settings) -> Finding:
    """Read a part of the repository back, restore a sample of the snapshot and compare it with its source.

    Files that have changed since are restored but not compared; with a ZFS source there are none.

    Raises:
        CommandError: restic could not be run, or its source not be read.
    """
    listed = command(restic, ("ls", "--json", taken.identity), check=False)
    # of a snapshot that is gone it says "ignoring" on the other output, and exits 0
    is_there = listed.dropped_bytes or f'"id":"{taken.identity}"' in listed.stdout
    if listed.returncode or not is_there:
        said = listed.stderr.strip()[-500:] or "it is not there"
        return Finding.failed(f"snapshot {taken.identity[:8]} of {restic.repository}: {said}")
    # plain `check` sees the lists alone, and not a byte that has gone bad
    part = ("--read-data",) if restic.read_data == "full" else (f"--read-data-subset={restic.read_data}",)
    checked = command(restic, ("check", *part), check=False)
    if checked.returncode:
        return Finding.failed(f"restic check of {restic.repository}: {checked.output.strip()[-800:]}")
    restored = _restore_sample(restic, taken, listed.stdout, settings)
    return Finding(
        result=restored.result,
        evidence=f"snapshot {taken.identity[:8]} in {restic.repository}: {restic.read_data} of the repository"
        f" read without error; {restored.evidence}",
    )


class _Seen(NamedTuple):
    """How many files of a sample were compared with their source, and which are other ones."""

    compared: int
    different: list[str]


def _restore_sample(restic: ResticAccess, taken: BackupTaken, listed: str, settings: Settings) -> Finding:
    files = sample(parse_files(listed), count=_SAMPLE_FILES, max_bytes=_SAMPLE_BYTES)
    if not files:
        return Finding.unknown("it has no file with any content, so nothing could be restored as a sample")
    directory = f"{restic.restore_directory.rstrip('/')}/sovereign-restore-{taken.identity[:16]}"
    # the same name each time: what a killed process left is removed here
    run(restic.host, ("rm", "-rf", "--", directory))
    run(restic.host, ("mkdir", "-m", "0700", "--", directory))
    try:
        including = [word for file in files for word in ("--include", file.path)]
        command(restic, ("restore", taken.identity, "--target", directory, *including))
        restored = _checksums(restic, {file.path: directory + file.path for file in files})
        if missing := [file.path for file in files if file.path not in restored]:
            return Finding.failed(f"{missing[:5]} could not be restored")
        with readable(restic, _origin(restic, taken), settings):
            seen = _compare(restic, files, restored)
    finally:
        run(restic.host, ("rm", "-rf", "--", directory))
    if seen.different:
        return Finding.failed(f"restored, {seen.different[:5]} are not what their source holds")
    words = (
        f"{len(files)} files restored, {seen.compared} of them compared with their source and found the same"
    )
    changed = len(files) - seen.compared
    return Finding.passed(words + (f" ({changed} have changed since)" if changed else ""))


def _compare(restic: ResticAccess, files: tuple[BackedUpFile, ...], restored: Mapping[str, str]) -> _Seen:
    argv = ("env", "LC_ALL=C", "stat", "--printf", r"%s %.9Y %n\0", "--", *(file.path for file in files))
    rows = (row.split(" ", 2) for row in run(restic.host, argv, check=False).stdout.split("\0") if row)
    now = {path: (int(size), int(modified.replace(".", ""))) for size, modified, path in rows}
    same = {f.path: f.path for f in files if now.get(f.path) == (f.size_bytes, f.modified_ns)}
    originals = _checksums(restic, same)
    different = [path for path, checksum in originals.items() if checksum != restored[path]]
    return _Seen(len(originals), different)


def _checksums(restic: ResticAccess, places: Mapping[str, str]) -> dict[str, str]:
    """Return name -> SHA-256 of the file that lies at its place; those that cannot be read are left out."""
    if not places:
        return {}
    argv = ("sha256sum", "--zero", "--", *places.values())
    ended = run(restic.host, argv, timeout_s=restic.timeout_s, check=False)
    # 64 digits, two characters, the place
    found = {row[66:]: row[:64] for row in ended.stdout.split("\0") if row}
    return {name: found[place] for name, place in places.items() if place in found}


def _origin(restic: ResticAccess, taken: BackupTaken) -> BackupTaken | None:
    return taken.model_copy(update={"identity": taken.position}) if restic.source and taken.position else None
