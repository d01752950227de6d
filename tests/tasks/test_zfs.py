"""ZFS snapshots on a real pool, and PostgreSQL brought back by one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

import lab.postgres
from lab.postgres import Postgres, programs
from lab.zfs import LabZfs
from rules.errors import CommandError, UndoFailedError
from rules.finding import Result
from rules.hosts import HostAddress
from tasks import zfs
from tasks.base_backup import remove_stale_pid_file, server_is_stopped
from tasks.zfs_rollback import roll_back_dataset
from tests.tasks.backing_up import BLOCK, contents, dataset, one_at_a_time, pool

__all__ = ["dataset", "pool"]
pytestmark = one_at_a_time
ROOT = Path(__file__).parents[2]
HERE = HostAddress()


def stopped() -> bool:
    return True


@pytest.fixture
def web(dataset, settings, request):
    """The dataset's snapshot for the deployment d1."""
    return zfs.take(dataset, BLOCK, deployment="d1", settings=settings)


def test_a_snapshot_is_named_after_its_deployment_and_says_which_one_it_is(dataset, web, pool):
    assert web.identity == f"{dataset.dataset}@sovereign-d1"
    assert web.size_bytes >= 100_000
    guid = pool.zfs("get", "-Hp", "-o", "value", "guid", web.identity).strip()
    assert (web.details["guid"], web.details["deployment"]) == (guid, "d1")


def test_taking_it_twice_finds_the_first_one(dataset, web, settings, pool):
    (pool.mountpoint(dataset) / "later").write_text("x")
    assert zfs.take(dataset, BLOCK, deployment="d1", settings=settings) == web


def test_by_ssh_it_is_the_same(dataset, settings, remote):
    far = dataset.model_copy(update={"host": remote})
    taken = zfs.take(far, BLOCK, deployment="d1", settings=settings)
    assert zfs.take(dataset, BLOCK, deployment="d1", settings=settings) == taken
    assert zfs.verify(far, taken, settings=settings).result is Result.PASSED
    assert zfs.plan(far, settings=settings).result is Result.PASSED


def test_a_dataset_that_is_not_there_cannot_be_snapshot(dataset, settings):
    missing = dataset.model_copy(update={"dataset": dataset.dataset + "x"})
    with pytest.raises(CommandError, match="does not exist"):
        zfs.take(missing, BLOCK, deployment="d1", settings=settings)
    assert "does not exist" in zfs.plan(missing, settings=settings).evidence


def test_verification_reads_the_files_on_a_clone_and_leaves_none(dataset, web, settings, pool):
    (pool.mountpoint(dataset) / "one").unlink()
    found = zfs.verify(dataset, web, settings=settings)
    assert found.result is Result.PASSED
    assert "2 of its files were read" in found.evidence
    assert "sovereign_read" not in pool.zfs("list", "-H", "-o", "name")
    assert not Path(dataset.reading_place).exists()


def test_an_empty_dataset_proves_nothing(pool, settings):
    empty = pool.create("empty")
    taken = zfs.take(empty, BLOCK, deployment="d1", settings=settings)
    assert zfs.verify(empty, taken, settings=settings).result is Result.UNKNOWN


def test_another_snapshot_of_the_same_name_is_not_the_one_that_was_taken(dataset, web, settings, pool):
    pool.zfs("destroy", web.identity)
    assert "is not there" in zfs.verify(dataset, web, settings=settings).evidence
    zfs.take(dataset, BLOCK, deployment="d1", settings=settings)
    found = zfs.verify(dataset, web, settings=settings)
    assert found.result is Result.FAILED
    assert "is another one" in found.evidence
    with pytest.raises(UndoFailedError, match="another one"):
        roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings)


def test_a_verification_that_was_killed_leaves_nothing_after_the_next(dataset, web, settings, pool):
    script = f"""
        import sys, time
        from rules.backup import ZfsDataset
        from tasks import zfs
        from tasks.settings import Settings
        data = ZfsDataset.model_validate_json(sys.argv[1])
        with zfs.reading(data, {web.identity!r}, settings=Settings()):
            print("reading", flush=True)
            time.sleep(60)
    """
    argv = [sys.executable, "-c", textwrap.dedent(script), dataset.model_dump_json()]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "reading\n"
        killed.send_signal(signal.SIGKILL)
    assert "sovereign_read" in pool.zfs("list", "-H", "-o", "name")
    assert zfs.verify(dataset, web, settings=settings).result is Result.PASSED
    assert "sovereign_read" not in pool.zfs("list", "-H", "-o", "name")


def test_the_loss_is_what_was_written_since(dataset, web, settings, pool):
    quiet = zfs.loss(dataset, web, now=web.taken_at + timedelta(seconds=90), settings=settings)
    assert quiet.lost_s == 90
    assert quiet.lost_bytes < 50_000
    with (pool.mountpoint(dataset) / "new").open("wb") as file:
        file.write(b"".join(bytes([n % 251]) * 1000 for n in range(3000)))
    busy = zfs.loss(dataset, web, now=web.taken_at, settings=settings)
    assert 3_000_000 <= busy.lost_bytes < 3_300_000
    assert str(busy.lost_bytes) in busy.in_words
    assert "measure" not in pool.zfs("list", "-H", "-t", "snapshot", "-o", "name")


def test_pruning_removes_old_ones_of_ours_and_nothing_else(dataset, settings, pool):
    for name in ("d1", "d2", "held", "cloned", "newest"):
        taken = zfs.take(dataset, BLOCK, deployment=name, settings=settings)
    pool.zfs("snapshot", f"{dataset.dataset}@hourly")
    pool.zfs("hold", "keep", f"{dataset.dataset}@sovereign-held")
    pool.zfs("clone", f"{dataset.dataset}@sovereign-cloned", f"{dataset.dataset}-clone")
    soon, late = taken.taken_at, taken.taken_at + timedelta(days=8)
    try:
        assert zfs.prune(dataset, now=soon, keep_s=7 * 86_400, settings=settings) == ()
        removed = zfs.prune(dataset, now=late, keep_s=7 * 86_400, settings=settings)
        assert [name.partition("@")[2] for name in removed] == ["sovereign-d1", "sovereign-d2"]
        left = [each.label for each in zfs.stored(dataset, settings=settings)]
        assert left == ["sovereign-held", "sovereign-cloned", "sovereign-newest", "hourly"]
    finally:
        pool.zfs("release", "keep", f"{dataset.dataset}@sovereign-held")


def test_pruning_backups_leaves_every_way_back_of_a_schema_change_and_does_not_count_it(
    dataset, settings, pool
):
    for name in ("d1", "d2", "d1-schema", "d2-schema"):
        taken = zfs.take(dataset, BLOCK, deployment=name, settings=settings)
    late = taken.taken_at + timedelta(hours=2)
    assert zfs.prune(dataset, now=late, keep_s=3600, settings=settings) == (
        f"{dataset.dataset}@sovereign-d1",
    )
    left = [each.label for each in zfs.stored(dataset, settings=settings)]
    assert left == ["sovereign-d2", "sovereign-d1-schema", "sovereign-d2-schema"]


def test_a_plan_passes_for_a_healthy_file_system_with_room(dataset, settings):
    found = zfs.plan(dataset, settings=settings)
    assert found.result is Result.PASSED
    assert "ONLINE" in found.evidence
    assert 0.5 < zfs.free_ratio(dataset, settings=settings) <= 1


# --- going back ------------------------------------------------------------------------------------


def test_a_rollback_brings_back_every_byte_and_can_be_repeated(dataset, web, settings, pool):
    place = pool.mountpoint(dataset)
    before = contents(place)
    (place / "one").write_text("broken")
    (place / "new").write_text("new")
    for _ in range(2):
        roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings)
        assert contents(place) == before


def test_a_rollback_is_refused_while_the_writer_is_not_proven_stopped(dataset, web, settings, pool):
    (pool.mountpoint(dataset) / "new").write_text("new")
    with pytest.raises(UndoFailedError, match="not proven to be stopped"):
        roll_back_dataset(dataset, web, proven_stopped=lambda: False, settings=settings)
    assert (pool.mountpoint(dataset) / "new").exists()


def test_a_rollback_over_newer_snapshots_must_be_asked_for(dataset, web, settings, pool):
    (pool.mountpoint(dataset) / "new").write_text("new")
    pool.zfs("snapshot", f"{dataset.dataset}@hourly")
    with pytest.raises(UndoFailedError, match="@hourly"):
        roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings)
    assert (pool.mountpoint(dataset) / "new").exists()
    pool.zfs("clone", f"{dataset.dataset}@hourly", f"{dataset.dataset}-kept")
    with pytest.raises(UndoFailedError, match="-kept"):
        roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings, discard_newer=True)
    assert (pool.mountpoint(dataset) / "new").exists()
    time.sleep(0.5)
    zfs._patiently(dataset, ("destroy", f"{dataset.dataset}-kept"), settings)
    roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings, discard_newer=True)
    assert not (pool.mountpoint(dataset) / "new").exists()


def test_a_snapshot_taken_by_another_while_we_go_back_is_not_destroyed(dataset, web, settings, pool):
    asked = []

    def stopped_but_somebody_takes_a_snapshot() -> bool:
        asked.append(1)
        if len(asked) == 2:  # after the look for newer ones, right before the rollback
            pool.zfs("snapshot", f"{dataset.dataset}@hourly")
        return True

    with pytest.raises(UndoFailedError, match="more recent snapshots"):
        roll_back_dataset(
            dataset, web, proven_stopped=stopped_but_somebody_takes_a_snapshot, settings=settings
        )
    assert [each.label for each in zfs.stored(dataset, settings=settings)] == ["sovereign-d1", "hourly"]


def test_a_busy_dataset_is_tried_again_until_it_is_free(dataset, web, settings, pool):
    place = pool.mountpoint(dataset)
    (place / "new").write_text("new")
    with subprocess.Popen(["sleep", "30"], cwd=place) as user:
        threading.Timer(1.0, user.kill).start()
        roll_back_dataset(dataset, web, proven_stopped=stopped, settings=settings)
    assert not (place / "new").exists()


def test_a_recursive_rollback_takes_all_datasets_back_or_none(pool, settings, tmp_path):
    tree = pool.create("tree", recursive=True)
    pool.zfs("create", f"{tree.dataset}/child")
    top, child = pool.mountpoint(tree), pool.mountpoint(tree) / "child"
    (child / "kept").write_text("kept")
    taken = zfs.take(tree, BLOCK, deployment="d1", settings=settings)
    (top / "new").write_text("new")
    (child / "kept").write_bytes(os.urandom(1_000_000))
    lost = zfs.loss(tree, taken, now=taken.taken_at, settings=settings).lost_bytes
    assert 1_000_000 <= lost < 1_200_000
    roll_back_dataset(tree, taken, proven_stopped=stopped, settings=settings)
    assert (child / "kept").read_text() == "kept"
    assert not (top / "new").exists()
    (top / "new").write_text("new")
    pool.zfs("create", f"{tree.dataset}/later")
    with pytest.raises(UndoFailedError, match="tree/later"):
        roll_back_dataset(tree, taken, proven_stopped=stopped, settings=settings)
    assert (top / "new").exists()


# --- with PostgreSQL -------------------------------------------------------------------------------


@pytest.fixture
def database(pool: LabZfs, request, monkeypatch):
    """A dataset, a server whose cluster lies on it, and a table there."""
    # what the lab leaves out for speed is what a snapshot of a running server recovers by
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        monkeypatch.setitem(lab.postgres._SETTINGS, name, "on")
    data = pool.create("pg" + request.node.name[-6:].strip("_"), options=("-o", "recordsize=8K"))
    server = Postgres(pool.mountpoint(data))
    with server:
        execute(
            server, "CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 20000) g"
        )
        execute(server, "CREATE INDEX ON t (id)")
        yield data, server


def execute(server, query):
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        answer = connection.execute(query)
        return answer.fetchone() if answer.description else None


def checksum(server):
    return execute(server, "SELECT count(*), md5(string_agg(id || v, ',' ORDER BY id)) FROM t")


def break_it(server):
    execute(server, "DELETE FROM t WHERE id % 2 = 0")
    execute(server, "ALTER TABLE t DROP COLUMN v")
    execute(server, "CREATE TABLE junk AS SELECT generate_series(1, 20000)")


def amcheck(server):
    argv = [str(programs() / "pg_amcheck"), "--port", str(server.port), "--host=127.0.0.1"]
    argv += ["--username=postgres", "--install-missing", "--heapallindexed", "--database=postgres"]
    return subprocess.run(argv, check=False, capture_output=True, text=True)


def test_postgresql_is_back_to_the_same_checksums(database, settings):
    data, server = database
    before = checksum(server)
    server.stop()
    taken = zfs.take(data, BLOCK, deployment="d1", settings=settings)
    server.start()
    break_it(server)

    def is_stopped() -> bool:
        return server_is_stopped(HERE, str(server.cluster))

    with pytest.raises(UndoFailedError, match="not proven to be stopped"):
        roll_back_dataset(data, taken, proven_stopped=is_stopped, settings=settings)
    assert execute(server, "SELECT count(*) FROM junk") == (20_000,)
    server.stop()
    roll_back_dataset(data, taken, proven_stopped=is_stopped, settings=settings)
    server.start()
    assert checksum(server) == before
    assert execute(server, "SELECT to_regclass('junk')") == (None,)
    checked = amcheck(server)
    assert checked.returncode == 0, checked.stderr


def test_a_snapshot_of_the_running_server_recovers_and_its_pid_file_is_removed(database, settings):
    data, server = database
    before = checksum(server)
    taken = zfs.take(data, BLOCK, deployment="d1", settings=settings)
    break_it(server)
    cluster = str(server.cluster)
    with pytest.raises(UndoFailedError, match="a server runs"):
        remove_stale_pid_file(HERE, cluster)
    assert (server.cluster / "postmaster.pid").exists()
    server.stop()
    roll_back_dataset(data, taken, proven_stopped=lambda: server_is_stopped(HERE, cluster), settings=settings)
    assert (server.cluster / "postmaster.pid").exists()
    remove_stale_pid_file(HERE, cluster)
    server.start()
    assert checksum(server) == before
    assert amcheck(server).returncode == 0


def test_a_second_server_runs_on_a_copy_of_the_snapshot_while_the_first_goes_on(database, settings, tmp_path):
    data, server = database
    before = checksum(server)
    taken = zfs.take(data, BLOCK, deployment="d1", settings=settings)
    break_it(server)
    with zfs.reading(data, taken.identity, settings=settings) as directory:
        copied = Postgres(tmp_path / "second")
        shutil.copytree(Path(directory) / server.cluster.name, copied.cluster)
        remove_stale_pid_file(HERE, str(copied.cluster))
        with copied:
            assert checksum(copied) == before
    assert zfs.verify(data, taken, settings=settings).result is Result.PASSED
