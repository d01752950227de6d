"""Restic on real repositories in directories, with and without a ZFS snapshot as its source."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks.restic import ResticAccess
from rules.errors import CommandError
from rules.finding import Result
from rules.hosts import HostAddress
from tasks import restic, restic_verify, zfs
from tests.requirements import need
from tests.tasks.backing_up import contents, dataset, fill, one_at_a_time, pool

__all__ = ["dataset", "pool"]
BLOCK = "sovereign-restic-repository/offsite"
PASSWORD = "sesame-4711-open"  # noqa: S105 - of repositories in temporary directories
ROOT = Path(__file__).parents[2]


def access(directory: Path, *paths: Path, **more) -> ResticAccess:
    fields = {
        "repository": str(directory / "repository"),
        "password": SecretStr(PASSWORD),
        "paths": tuple(map(str, paths)),
        "environment": {"RESTIC_CACHE_DIR": SecretStr(str(directory / "cache"))},
        "read_data": "full",
        "restore_directory": str(directory),
        "timeout_s": 120,
    }
    return ResticAccess(**{**fields, **more})


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    fill(directory)
    return directory


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """An empty repository, to be copied: making one takes seconds, for the sake of its key."""
    need("restic", package="restic")
    directory = tmp_path_factory.mktemp("template")
    made = access(directory, Path("/"))
    restic.initialise(made)
    restic.initialise(made)
    return Path(made.repository)


@pytest.fixture
def repository(tmp_path, source, template):
    made = access(tmp_path, source)
    shutil.copytree(template, made.repository)
    return made


@pytest.fixture
def taken(repository, settings):
    return restic.take(repository, BLOCK, deployment="d1", settings=settings)


def listed(repository):
    said = restic.command(repository, ("snapshots", "--json")).stdout
    return [row["tags"] for row in json.loads(said) or []]


def test_a_backup_is_taken_once_and_can_be_restored(repository, taken, settings, source, tmp_path):  # noqa: PLR0917
    assert taken.size_bytes == 100_004
    assert listed(repository) == [["sovereign-d1"]]
    again = restic.take(repository, BLOCK, deployment="d1", settings=settings)
    assert (again.identity, again.taken_at) == (taken.identity, taken.taken_at)
    assert listed(repository) == [["sovereign-d1"]]
    restic.command(repository, ("restore", taken.identity, "--target", str(tmp_path / "out")))
    assert contents(tmp_path / "out" / source.relative_to("/")) == contents(source)


def test_a_missing_path_beside_a_good_one_is_refused(repository, settings, source):
    both = repository.model_copy(update={"paths": (str(source), str(source) + "-missing")})
    with pytest.raises(restic.BackupError, match="source-missing"):
        restic.take(both, BLOCK, deployment="d1", settings=settings)
    assert listed(repository) == []
    found = restic.plan(both, settings=settings)
    assert found.result is Result.FAILED
    assert "source-missing" in found.evidence


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that root cannot read")
def test_an_unreadable_file_leaves_no_snapshot_behind(repository, settings, tmp_path):
    # not even root can read a process's memory from its beginning
    unreadable = repository.model_copy(update={"paths": (*repository.paths, f"/proc/{os.getpid()}/mem")})
    with pytest.raises(restic.BackupError, match="could not read all"):
        restic.take(unreadable, BLOCK, deployment="d1", settings=settings)
    assert listed(repository) == []


def test_half_a_snapshot_of_a_killed_backup_is_not_taken_for_the_backup(repository, settings):
    words = ("backup", "--host", "local", "--tag", "unproven-d1", *repository.paths)
    restic.command(repository, words)
    restic.take(repository, BLOCK, deployment="d1", settings=settings)
    assert listed(repository) == [["sovereign-d1"]]


def test_a_lock_that_a_killed_restic_left_is_removed(repository, taken, settings, tmp_path):
    big = tmp_path / "source" / "big"
    with big.open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
    environment = {
        **os.environ,
        "RESTIC_REPOSITORY": repository.repository,
        "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }
    locks = Path(repository.repository) / "locks"
    argv = ["restic", "backup", "--limit-upload", "100", str(big)]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 120
        while not list(locks.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
    assert list(locks.iterdir())
    big.unlink()
    assert restic_verify.verify(repository, taken, settings=settings).result is Result.PASSED
    assert not list(locks.iterdir())


def test_verification_reads_the_repository_and_compares_a_restored_sample(
    repository, taken, settings, tmp_path
):
    found = restic_verify.verify(repository, taken, settings=settings)
    assert found.result is Result.PASSED
    assert "2 files restored, 2 of them compared" in found.evidence
    assert not list(tmp_path.glob("sovereign-restore-*"))


def test_files_that_have_changed_since_are_not_compared(repository, taken, settings, source):
    (source / "one").write_text("changed")
    found = restic_verify.verify(repository, taken, settings=settings)
    assert found.result is Result.PASSED
    assert "1 of them compared" in found.evidence
    assert "1 have changed since" in found.evidence


def test_a_source_that_rots_under_the_same_time_and_size_is_seen(repository, taken, settings, source):
    was = (source / "one").stat()
    (source / "one").write_bytes(b"2" * 100_000)
    os.utime(source / "one", ns=(was.st_atime_ns, was.st_mtime_ns))
    found = restic_verify.verify(repository, taken, settings=settings)
    assert found.result is Result.FAILED
    assert "source/one" in found.evidence


def test_bit_rot_in_the_repository_is_found_though_a_plain_check_passes(repository, taken, settings):
    packs = [path for path in (Path(repository.repository) / "data").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    rotten = bytearray(largest.read_bytes())
    rotten[len(rotten) // 4] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(rotten)
    assert restic.command(repository, ("check",), check=False).returncode == 0
    found = restic_verify.verify(repository, taken, settings=settings)
    assert found.result is Result.FAILED
    assert "restic check" in found.evidence


def test_a_snapshot_that_is_gone_fails(repository, taken, settings):
    restic.command(repository, ("forget", taken.identity))
    assert "no matching ID" in restic_verify.verify(repository, taken, settings=settings).evidence


def test_a_wrong_password_and_no_repository_are_told(repository, settings, tmp_path):
    wrong = repository.model_copy(update={"password": SecretStr("wrong")})
    found = restic.plan(wrong, settings=settings)
    assert (found.result, "wrong password" in found.evidence) == (Result.FAILED, True)
    away = repository.model_copy(update={"repository": str(tmp_path / "nowhere")})
    assert restic.answers(away).result is Result.FAILED
    assert restic.answers(repository).result is Result.PASSED
    with pytest.raises(CommandError):
        restic.take(away, BLOCK, deployment="d1", settings=settings)


def test_pruning_lets_old_ones_of_ours_go_and_nothing_else(repository, settings, source, tmp_path):
    now = datetime.now(UTC)
    old = (now - timedelta(days=8)).strftime("%Y-%m-%d %H:%M:%S")
    older = (now - timedelta(days=9)).strftime("%Y-%m-%d %H:%M:%S")
    other = tmp_path / "other"
    fill_other(other)
    for tag, when, path in (
        ("sovereign-d1", older, source),
        ("sovereign-d2", old, source),
        ("hourly", older, source),
        ("unproven-d0", older, source),
        ("sovereign-d1", older, other),
    ):
        words = ("backup", "--host", "local", "--tag", tag, "--time", when, str(path))
        restic.command(repository, words)
    assert len(restic.prune(repository, now=now, keep_s=7 * 86_400, settings=settings)) == 1
    assert sorted(listed(repository)) == [["hourly"], ["sovereign-d1"], ["sovereign-d2"]]
    restic.take(repository, BLOCK, deployment="d3", settings=settings)
    assert len(restic.prune(repository, now=now, keep_s=7 * 86_400, settings=settings)) == 1
    assert sorted(listed(repository)) == [["hourly"], ["sovereign-d1"], ["sovereign-d3"]]


def fill_other(directory):
    directory.mkdir()
    fill(directory)


def test_storage_is_compared_with_what_the_paths_hold(repository):
    assert restic.storage(repository).result is Result.PASSED
    away = repository.model_copy(update={"repository": "s3:https://s3.example.org/bucket"})
    assert restic.storage(away).result is Result.NOT_APPLICABLE


def test_the_loss_is_the_time_since(repository, taken, settings):
    lost = restic.loss(repository, taken, now=taken.taken_at + timedelta(seconds=60), settings=settings)
    assert (lost.lost_s, lost.lost_bytes) == (60, None)
    assert "not known" in lost.in_words


# --- secrets ---------------------------------------------------------------------------------------


def test_no_text_shows_a_secret(repository, settings):
    wrong = repository.model_copy(update={"repository": "/nowhere"})
    with pytest.raises(CommandError) as caught:
        restic.take(wrong, BLOCK, deployment="d1", settings=settings)
    texts = (str(caught.value), repr(repository), repository.model_dump_json(), str(repository))
    assert not any(PASSWORD in text for text in texts)


@pytest.mark.parametrize("where", ["here", "by ssh"])
def test_no_command_line_of_any_process_shows_it(where, repository, tmp_path, request, settings):  # noqa: PLR0917
    host = HostAddress() if where == "here" else request.getfixturevalue("remote")
    seen = tmp_path / "seen"
    # stands where restic is looked for, and writes down what everybody on the machine could read
    spy = tmp_path / "programs" / "restic"
    spy.parent.mkdir()
    spy.write_text(
        f'#!/bin/sh\ncat /proc/[0-9]*/cmdline >>{seen} 2>/dev/null\nexec {shutil.which("restic")} "$@"\n'
    )
    spy.chmod(0o755)
    environment = {**repository.environment, "PATH": SecretStr(f"{spy.parent}:{os.environ['PATH']}")}
    made = repository.model_copy(update={"environment": environment, "host": host})
    restic.take(made, BLOCK, deployment="d1", settings=settings)
    read = seen.read_bytes()
    assert b"backup" in read
    assert PASSWORD.encode() not in read


# --- with a ZFS source -----------------------------------------------------------------------------


@pytest.fixture
def consistent(dataset, pool, tmp_path, template):
    place = pool.mountpoint(dataset)
    made = access(tmp_path, place / "deep", place / "one", source=dataset)
    shutil.copytree(template, made.repository)
    return made


@one_at_a_time
def test_a_source_is_read_from_its_snapshot_though_it_goes_on_changing(consistent, dataset, pool, settings):
    place = pool.mountpoint(dataset)
    zfs.take(dataset, BLOCK, deployment="d1", settings=settings)
    (place / "one").write_text("changed after the snapshot")
    taken = restic.take(consistent, BLOCK, deployment="d1", settings=settings)
    assert taken.size_bytes == 100_004
    found = restic_verify.verify(consistent, taken, settings=settings)
    assert found.result is Result.PASSED
    assert "2 of them compared" in found.evidence
    assert "sovereign_read" not in pool.zfs("list", "-H", "-o", "name")
    assert restic.loss(consistent, taken, now=taken.taken_at, settings=settings).lost_bytes > 0


@one_at_a_time
def test_the_next_backup_of_a_source_reads_only_what_has_changed(consistent, dataset, pool, settings):
    restic.take(consistent, BLOCK, deployment="d1", settings=settings)
    (pool.mountpoint(dataset) / "deep" / "third").write_text("third")
    restic.take(consistent, BLOCK, deployment="d2", settings=settings)
    first, second = json.loads(restic.command(consistent, ("snapshots", "--json")).stdout)
    assert first["paths"] == second["paths"]
    assert second["parent"] == first["id"]


@one_at_a_time
def test_a_path_that_reaches_into_another_dataset_is_refused(consistent, dataset, pool, settings):
    pool.zfs("create", f"{dataset.dataset}/child")
    with pytest.raises(restic.BackupError, match="/child"):
        restic.take(
            consistent.model_copy(update={"paths": (str(pool.mountpoint(dataset)),)}),
            BLOCK,
            deployment="d1",
            settings=settings,
        )
    assert restic.take(consistent, BLOCK, deployment="d1", settings=settings).size_bytes == 100_004


@one_at_a_time
def test_pruning_a_source_prunes_its_snapshots_too(consistent, dataset, settings):
    for name in ("d1", "d2"):
        taken = restic.take(consistent, BLOCK, deployment=name, settings=settings)
    late = taken.taken_at + timedelta(days=8)
    removed = restic.prune(consistent, now=late, keep_s=7 * 86_400, settings=settings)
    assert len(removed) == 2
    assert [each.label for each in zfs.stored(dataset, settings=settings)] == ["sovereign-d2"]


@one_at_a_time
def test_a_backup_that_is_killed_at_any_moment_is_repeated_and_is_one(consistent, dataset, pool, settings):
    # it begins a backup in a process of its own for each line it reads: importing takes longer than a backup
    script = """
        import json, os, sys
        from blocks.restic import ResticAccess
        from tasks import restic
        from tasks.settings import Settings
        data = ResticAccess.model_validate_json(sys.stdin.readline())
        while sys.stdin.readline():
            child = os.fork()
            if not child:
                restic.take(data, "sovereign-restic-repository/offsite", deployment="d1", settings=Settings())
                os._exit(0)
            print(child, flush=True)
            os.waitpid(child, 0)
    """
    fields = json.loads(consistent.model_dump_json())
    fields["password"] = PASSWORD
    fields["environment"] = {k: v.get_secret_value() for k, v in consistent.environment.items()}
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        starter.stdin.write(json.dumps(fields) + "\n")
        for after_s in (0.4, 1.2, 2.0):
            starter.stdin.write("\n")
            starter.stdin.flush()
            pid = int(starter.stdout.readline())
            time.sleep(after_s)
            os.kill(pid, signal.SIGKILL)
        starter.stdin.close()
    taken = restic.take(consistent, BLOCK, deployment="d1", settings=settings)
    assert restic_verify.verify(consistent, taken, settings=settings).result is Result.PASSED
    assert listed(consistent) == [["sovereign-d1"]]
    assert "sovereign_read" not in pool.zfs("list", "-H", "-o", "name")
