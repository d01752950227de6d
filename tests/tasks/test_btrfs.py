"""btrfs snapshots on a real file system in a file, and PostgreSQL brought back by one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from lab.btrfs import LabBtrfs, done
from lab.postgres import Postgres
from rules.backup import BtrfsSubvolume
from rules.errors import CommandError, UndoFailedError
from rules.finding import Result
from rules.hosts import HostAddress
from tasks import btrfs
from tasks.base_backup import server_is_stopped
from tests.requirements import need_btrfs
from tests.tasks.backing_up import ONE, contents, fill

BLOCK = "sovereign-btrfs-snapshots/web"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabBtrfs]:
    need_btrfs()
    with LabBtrfs(tmp_path) as mounted:
        yield mounted


@pytest.fixture
def web(lab: LabBtrfs) -> BtrfsSubvolume:
    made = lab.create("web")
    fill(Path(made.subvolume))
    return made


@pytest.fixture
def taken(web, settings):
    return btrfs.take(web, BLOCK, deployment="d1", settings=settings)


def stopped() -> bool:
    return True


def test_a_snapshot_is_taken_once_and_holds_the_files(web, taken, settings):
    assert taken.identity == f"{web.snapshots}/sovereign-d1"
    (Path(web.subvolume) / "one").write_text("changed")
    assert btrfs.take(web, BLOCK, deployment="d1", settings=settings) == taken
    assert contents(Path(taken.identity))["one"] == ONE
    assert [path.name for path in Path(taken.identity).iterdir() if path.is_dir()] == ["deep"]


def test_by_ssh_it_is_the_same(web, taken, settings, remote):
    far = web.model_copy(update={"host": remote})
    assert btrfs.take(far, BLOCK, deployment="d1", settings=settings) == taken
    assert btrfs.verify(far, taken, settings=settings).result is Result.PASSED


def test_verification_reads_the_files(web, taken, settings):
    found = btrfs.verify(web, taken, settings=settings)
    assert found.result is Result.PASSED
    assert "2 of its files were read" in found.evidence


def test_a_snapshot_that_was_replaced_or_made_writable_is_not_the_one_that_was_taken(web, taken, settings):
    done("btrfs", "property", "set", "-f", taken.identity, "ro", "false")
    assert "no longer read-only" in btrfs.verify(web, taken, settings=settings).evidence
    done("btrfs", "subvolume", "delete", taken.identity)
    assert "is not there" in btrfs.verify(web, taken, settings=settings).evidence
    btrfs.take(web, BLOCK, deployment="d1", settings=settings)
    assert "another one" in btrfs.verify(web, taken, settings=settings).evidence
    with pytest.raises(UndoFailedError, match="another one"):
        btrfs.roll_back_subvolume(web, taken, proven_stopped=stopped, settings=settings)


def test_the_loss_is_what_was_written_since(web, taken, settings):
    assert btrfs.loss(web, taken, now=taken.taken_at, settings=settings).lost_bytes == 0
    (Path(web.subvolume) / "new").write_bytes(b"n" * 3_000_000)
    lost = btrfs.loss(web, taken, now=taken.taken_at + timedelta(seconds=5), settings=settings)
    assert 3_000_000 <= lost.lost_bytes < 3_100_000
    assert lost.lost_s == 5


def test_pruning_keeps_the_newest_and_what_is_not_ours(web, taken, settings):
    btrfs.take(web, BLOCK, deployment="d2", settings=settings)
    done("btrfs", "subvolume", "snapshot", "-r", web.subvolume, f"{web.snapshots}/hourly")
    late = taken.taken_at + timedelta(days=8)
    removed = btrfs.prune(web, now=late, keep_s=7 * 86_400, settings=settings)
    assert removed == (taken.identity,)
    assert sorted(path.name for path in Path(web.snapshots).iterdir()) == ["hourly", "sovereign-d2"]
    assert btrfs.prune(web, now=late, keep_s=7 * 86_400, settings=settings) == ()


def test_a_rollback_brings_back_every_byte_and_sets_the_broken_one_aside(web, taken, settings):
    place = Path(web.subvolume)
    before = contents(place)
    (place / "one").write_text("broken")
    aside = btrfs.roll_back_subvolume(web, taken, proven_stopped=stopped, settings=settings)
    assert contents(place) == before
    assert (Path(aside) / "one").read_text() == "broken"
    (place / "one").write_text("broken again")
    btrfs.roll_back_subvolume(web, taken, proven_stopped=stopped, settings=settings)
    assert contents(place) == before
    assert (Path(aside) / "one").read_text() == "broken again"


def test_a_rollback_is_refused_while_the_writer_is_not_proven_stopped(web, taken, settings):
    (Path(web.subvolume) / "new").write_text("new")
    with pytest.raises(UndoFailedError, match="not proven to be stopped"):
        btrfs.roll_back_subvolume(web, taken, proven_stopped=lambda: False, settings=settings)
    assert (Path(web.subvolume) / "new").exists()


def test_a_rollback_that_was_interrupted_goes_on_from_there(web, taken, settings):
    before = contents(Path(web.subvolume))
    done("btrfs", "subvolume", "snapshot", taken.identity, web.subvolume + ".sovereign-new")
    done("mv", "-T", web.subvolume, web.subvolume + ".sovereign-aside")
    btrfs.roll_back_subvolume(web, taken, proven_stopped=stopped, settings=settings)
    assert contents(Path(web.subvolume)) == before
    assert not Path(web.subvolume + ".sovereign-new").exists()
    assert Path(web.subvolume + ".sovereign-aside").exists()


def test_a_plan_names_what_stands_in_the_way(web, settings, lab):
    assert btrfs.plan(web, settings=settings).result is Result.PASSED
    plain = Path(web.subvolume) / "deep"
    found = btrfs.plan(web.model_copy(update={"subvolume": str(plain)}), settings=settings)
    assert found.result is Result.FAILED
    top = web.model_copy(update={"subvolume": str(lab.mountpoint)})
    assert "mounted by itself" in btrfs.plan(top, settings=settings).evidence
    done("btrfs", "subvolume", "create", f"{web.subvolume}/nested")
    assert "holds 1 subvolumes" in btrfs.plan(web, settings=settings).evidence


def test_a_subvolume_that_is_not_there_cannot_be_snapshot(web, settings):
    missing = web.model_copy(update={"subvolume": web.subvolume + "x"})
    with pytest.raises(CommandError):
        btrfs.take(missing, BLOCK, deployment="d1", settings=settings)


def test_postgresql_is_back_to_the_same_checksums(lab, settings):
    data = lab.create("pg")
    server = Postgres(Path(data.subvolume))

    def execute(query):
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            answer = connection.execute(query)
            return answer.fetchone() if answer.description else None

    total = "SELECT count(*), md5(string_agg(v, ',' ORDER BY v)) FROM t"
    with server:
        execute("CREATE TABLE t AS SELECT md5(g::text) AS v FROM generate_series(1, 20000) g")
        before = execute(total)
        server.stop()
        taken = btrfs.take(data, BLOCK, deployment="d1", settings=settings)
        server.start()
        execute("DELETE FROM t")

        def is_stopped() -> bool:
            return server_is_stopped(HostAddress(), str(server.cluster))

        with pytest.raises(UndoFailedError, match="not proven to be stopped"):
            btrfs.roll_back_subvolume(data, taken, proven_stopped=is_stopped, settings=settings)
        server.stop()
        btrfs.roll_back_subvolume(data, taken, proven_stopped=is_stopped, settings=settings)
        server.start()
        assert execute(total) == before
