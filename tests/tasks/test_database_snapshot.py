"""A real cluster on a real ZFS pool, taken back through its snapshot: what it loses, and killed anywhere."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from lab.database import LabDatabase
from lab.postgres import Postgres, programs
from lab.processes import wait_until
from rules.cluster_loss import LossNotAcceptedError
from rules.database_undo import RestoreSnapshot
from rules.errors import InvalidRequestError, StepFailedError, UndoFailedError
from rules.fleet import CommandService
from rules.migration import Migration, VersionTable
from tasks import cluster_server, zfs
from tasks.base_backup import server_is_stopped
from tasks.cluster_prune import prune_cluster_snapshots
from tasks.database_snapshot import cluster_loss, loss_to_accept, restore_cluster, take_cluster_snapshot
from tasks.postgres import application_name
from tasks.settings import Settings
from tests.tasks.backing_up import one_at_a_time, pool
from tests.tasks.deploying import settings_in

__all__ = ["pool"]
pytestmark = one_at_a_time
ROOT = Path(__file__).parents[2]
DEPLOYMENT = "d1"
TABLE = VersionTable(table="public.schema_version", column="name")
#: Takes something away that no way down brings back.
MIGRATION = Migration(
    revision="002_forget_sources",
    title="forget sources",
    up=("ALTER TABLE memories DROP COLUMN source", "DELETE FROM memories WHERE id % 2 = 0"),
    record=("INSERT INTO schema_version VALUES ('002_forget_sources')",),
    unrecord=("DELETE FROM schema_version WHERE name = '002_forget_sources'",),
)
CHECKSUM = "SELECT count(*), md5(string_agg(m::text, ',' ORDER BY id)) FROM memories m"
#: Nobody commits but the tests.
SETTINGS = {"autovacuum": "off", "max_prepared_transactions": "5"}

#: Takes the cluster back, says when it tells the loss, and waits there if it is to.
RESTORER = """
import sys, time
from rules.database import Database
from rules.database_undo import RestoreSnapshot
from tasks.database_snapshot import restore_cluster
from tasks.settings import Settings
def tell(loss):
    print(loss.model_dump_json(), flush=True)
    time.sleep(float(sys.argv[3]))
restore_cluster(
    Database.model_validate_json(sys.argv[1]),
    RestoreSnapshot.model_validate_json(sys.argv[2]),
    deployment="d1", settings=Settings(), accept_loss=False, tell=tell,
)
"""


class Case:
    """A database with its snapshot, and a migration that destroys data."""

    def __init__(self, lab: LabDatabase, settings: Settings) -> None:
        self.lab, self.settings, self.database = lab, settings, lab.database
        self.dataset = lab.database.server.dataset
        self.snapshot = f"{self.dataset}@sovereign-{DEPLOYMENT}"
        self.cluster = lab.cluster
        self.told = []

    def step(self, **changes) -> RestoreSnapshot:
        known = {"migration": MIGRATION, "version_table": TABLE, "revisions": ("001",), "max_loss_s": 300}
        where = {"dataset": self.dataset, "snapshot": self.snapshot, "schema_sha256": None}
        return RestoreSnapshot(**{**known, **where, **changes})

    def take(self):
        return take_cluster_snapshot(self.database, self.snapshot, settings=self.settings)

    def migrate(self) -> None:
        with psycopg.connect(self.lab.url) as connection:
            for statement in MIGRATION.up + MIGRATION.record:
                connection.execute(statement)

    def restore(self, *, database=None, tell=None, **changes) -> None:
        known = {"deployment": DEPLOYMENT, "settings": self.settings, "accept_loss": False}
        step = changes.pop("step", self.step())
        restore_cluster(
            database or self.database, step, tell=tell or self.told.append, **{**known, **changes}
        )

    def loss(self):
        return cluster_loss(self.database, self.snapshot, settings=self.settings)

    def loss_to_accept(self, **changes):
        step = changes.pop("step", self.step())
        return loss_to_accept(self.database, step, deployment=DEPLOYMENT, settings=self.settings)

    def checksum(self):
        return self.lab.query(CHECKSUM)

    def is_stopped(self) -> bool:
        return server_is_stopped(self.database.server.host, str(self.cluster))

    def notes(self) -> list[str]:
        return sorted(path.name for path in self.cluster.glob("sovereign-*"))


@pytest.fixture(scope="module")
def template(pool, tmp_path_factory, lab_cache) -> str:
    """A snapshot of a dataset with a stopped cluster, which is cloned for each test: copying takes longer."""
    lab = database(pool, tmp_path_factory.mktemp("template"), name="template", cache=lab_cache)
    try:
        lab.start()
        lab.query("CREATE TABLE schema_version (name text PRIMARY KEY)")
        lab.query("INSERT INTO schema_version VALUES ('001')")
        lab.query("CREATE TABLE book (n bigint GENERATED ALWAYS AS IDENTITY)")
    finally:
        lab.stop()
    pool.zfs("snapshot", f"{pool.pool}/template@stopped")
    return f"{pool.pool}/template@stopped"


@pytest.fixture
def case(pool, template, tmp_path, settings) -> Iterator[Case]:
    """A database that runs on a dataset of its own."""
    with running(pool, template, tmp_path) as lab:
        yield Case(lab, settings)


@pytest.fixture(scope="module")
def standing(pool, template, tmp_path_factory) -> Iterator[Case]:
    """The same, which no test changes."""
    directory = tmp_path_factory.mktemp("standing")
    with running(pool, template, directory) as lab:
        yield Case(lab, settings_in(directory))


@contextmanager
def running(pool, template: str, directory: Path) -> Iterator[LabDatabase]:
    lab = database(pool, directory, name=f"pg{secrets.token_hex(4)}")
    try:
        pool.zfs("clone", template, f"{pool.pool}/{lab.name}")
        with (lab.cluster / "postgresql.conf").open("a") as file:
            file.write(f"port = {lab.port}\n")
        lab.start()
        yield lab
    finally:
        lab.stop()
        with suppress(OSError):
            Path("/run/sovereign-deploy").rmdir()  # where snapshots are mounted to be read


def database(pool, directory: Path, *, name: str, cache: Path | None = None) -> LabDatabase:
    return LabDatabase(
        directory / "pg",
        zfs=pool,
        rows=200,
        vectors=50,
        dimensions=4,
        months=1,
        name=name,
        cache=cache,
        settings=SETTINGS,
    )


@pytest.fixture
def migrated(case) -> Case:
    """The same after its snapshot and its migration."""
    case.before = case.checksum()
    case.taken = case.take()
    case.migrate()
    return case


def assert_back(case: Case) -> None:
    assert case.checksum() == case.before
    assert case.lab.query("SELECT name FROM schema_version") == [("001",)]
    assert case.notes() == []


class Writers:
    """Clients that commit one row after the other, each keeping book of what the server confirmed."""

    def __init__(self, url: str, count: int) -> None:
        self.confirmed, self.url = [0] * count, url
        self.threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]

    def _write(self, number: int) -> None:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url, autocommit=True) as connection:
            while True:
                connection.execute("INSERT INTO book DEFAULT VALUES")
                self.confirmed[number] += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        wait_until(lambda: min(self.confirmed) > 5, timeout_s=20, what="writers")
        return self

    def __exit__(self, *args: object) -> None:
        for thread in self.threads:
            thread.join(timeout=60)


# --- the snapshot ----------------------------------------------------------------------------------


def test_a_snapshot_is_taken_once_and_found_again(case):
    taken = case.take()
    assert taken.identity == case.snapshot
    assert taken.source == f"sovereign-database/{case.lab.name}"
    case.lab.query("INSERT INTO memories (kind, content) VALUES ('later', 'x')")
    assert case.take() == taken
    assert case.notes() == [f"sovereign-{DEPLOYMENT}.snapshot"]


def test_a_snapshot_that_was_destroyed_is_not_taken_again_after_the_change(migrated, pool):
    pool.zfs("destroy", migrated.snapshot)
    with pytest.raises(StepFailedError, match="may hold the change already"):
        migrated.take()
    with pytest.raises(UndoFailedError, match="is not there"):
        migrated.restore()
    assert migrated.lab.is_running()


def test_notes_on_snapshots_that_are_gone_are_removed(case, pool):
    case.take()
    pool.zfs("destroy", case.snapshot)
    take_cluster_snapshot(case.database, f"{case.dataset}@sovereign-d2", settings=case.settings)
    assert case.notes() == ["sovereign-d2.snapshot"]


def test_a_cluster_whose_wal_lies_elsewhere_is_refused(case, tmp_path, pool):
    case.lab.stop()
    outside = tmp_path / "wal"
    shutil.move(case.cluster / "pg_wal", outside)
    (case.cluster / "pg_wal").symlink_to(outside)
    case.lab.start()
    with pytest.raises(StepFailedError, match=r"wal \(on .*would not be in a snapshot"):
        case.take()
    assert case.snapshot not in pool.zfs("list", "-H", "-t", "snapshot", "-o", "name")


def test_a_cluster_with_a_part_on_another_dataset_is_refused(case, pool):
    pool.zfs("create", f"{case.dataset}/child")
    place = pool.directory / case.dataset / "child" / "space"
    place.mkdir(mode=0o700)
    case.lab.query(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    with pytest.raises(StepFailedError, match=r"child/space \(on .*would not be in a snapshot"):
        case.take()


def test_the_wal_may_lie_beside_the_cluster_on_the_dataset(case):
    case.lab.stop()
    beside = case.cluster.with_name("wal")
    shutil.move(case.cluster / "pg_wal", beside)
    (case.cluster / "pg_wal").symlink_to(beside)
    case.lab.start()
    case.before = case.checksum()
    case.take()
    case.migrate()
    # the link within the mounted snapshot leads to the live WAL, where nothing would be lost
    assert case.loss().commits == 1
    case.restore()
    assert_back(case)


def test_a_server_of_another_cluster_is_refused(standing, pool, tmp_path):
    with Postgres(tmp_path / "other") as other:
        address = standing.database.address.model_copy(update={"port": other.port, "database": "postgres"})
        wrong = standing.database.model_copy(update={"address": address})
        with pytest.raises(StepFailedError, match="lies cluster"):
            take_cluster_snapshot(wrong, standing.snapshot, settings=standing.settings)
    assert standing.snapshot not in pool.zfs("list", "-H", "-t", "snapshot", "-o", "name")


def test_a_server_that_does_not_sync_is_refused(case):
    case.lab.query("ALTER SYSTEM SET fsync = off")
    case.lab.query("SELECT pg_reload_conf()")
    wait_until(lambda: case.lab.query("SHOW fsync") == [("off",)], timeout_s=10, what="fsync off")
    with pytest.raises(StepFailedError, match="fsync off"):
        case.take()


def test_a_dataset_that_holds_our_journal_is_refused(standing, pool):
    inside = standing.settings.model_copy(
        update={"journal_dir": pool.directory / standing.dataset / "a" / "journal"}
    )
    with pytest.raises(StepFailedError, match="Our own journal"):
        take_cluster_snapshot(standing.database, standing.snapshot, settings=inside)


def test_names_that_are_not_ours_and_databases_without_a_dataset_are_refused(standing):
    with pytest.raises(StepFailedError, match="ours are named"):
        take_cluster_snapshot(standing.database, f"{standing.dataset}@hourly", settings=standing.settings)
    with pytest.raises(InvalidRequestError, match="no snapshot of"):
        take_cluster_snapshot(standing.database, "tank/other@sovereign-d1", settings=standing.settings)
    bare = standing.database.model_copy(update={"server": None})
    with pytest.raises(InvalidRequestError, match="no ZFS dataset"):
        take_cluster_snapshot(bare, standing.snapshot, settings=standing.settings)


# --- what it would lose, asked beforehand ----------------------------------------------------------


def later_migration(case: Case) -> None:
    """Apply a newer migration as Alembic does, whose table holds the newest revision alone."""
    with psycopg.connect(case.lab.url) as connection:
        connection.execute("CREATE INDEX later ON memories (kind)")
        connection.execute("UPDATE schema_version SET name = '003_later' WHERE name LIKE '002%'")


def test_under_a_newer_migration_that_hides_it_the_loss_is_told_before_anything_is_taken_back(migrated):
    migrated.lab.query("DELETE FROM schema_version WHERE name = '001'")
    later_migration(migrated)
    assert migrated.lab.query("SELECT name FROM schema_version") == [("003_later",)]
    assert migrated.loss_to_accept().commits == 3
    # by itself it still has nothing to do until the newer one is back
    migrated.restore()
    assert migrated.told == []
    migrated.lab.query("UPDATE schema_version SET name = '002_forget_sources'")
    migrated.restore()
    assert_back(migrated)


def test_before_any_migration_there_is_nothing_to_lose_whatever_was_written(case):
    case.take()
    case.lab.query("INSERT INTO book DEFAULT VALUES")
    assert case.loss_to_accept() is None


def test_what_somebody_migrates_after_the_way_back_is_no_loss(migrated):
    migrated.restore()
    migrated.lab.query("INSERT INTO schema_version VALUES ('004_of_somebody')")
    assert migrated.loss_to_accept() is None
    migrated.restore()
    assert migrated.lab.query("SELECT count(*) FROM schema_version") == [(2,)]


def test_a_loss_through_a_snapshot_that_is_gone_is_refused_and_not_passed_over(migrated, pool):
    later_migration(migrated)
    pool.zfs("destroy", migrated.snapshot)
    for note in migrated.cluster.glob("sovereign-*"):
        note.unlink()
    with pytest.raises(UndoFailedError, match="is not there"):
        migrated.loss_to_accept()


def test_of_a_server_that_is_stopped_the_loss_is_measured_and_not_waited_for(migrated, pool):
    migrated.lab.query("INSERT INTO book DEFAULT VALUES")
    migrated.lab.run(migrated.database.server.service.stop)
    assert migrated.loss_to_accept().commits == 2
    pool.zfs("unmount", migrated.dataset)  # as after a start of the machine that did not mount it
    assert migrated.loss_to_accept().commits == 2
    assert migrated.is_stopped()
    migrated.restore()
    assert [loss.commits for loss in migrated.told] == [2]
    assert_back(migrated)


def damage(case: Case, file: str) -> None:
    case.lab.run(case.database.server.service.stop)
    place = case.cluster / file
    place.write_bytes(bytes(place.stat().st_size))


@pytest.mark.parametrize("file", ["global/pg_control", "PG_VERSION"])
def test_a_server_that_does_not_come_up_is_brought_back_at_a_loss_that_was_told(migrated, file):
    damage(migrated, file)
    told = migrated.loss_to_accept()
    assert told.commits is None
    assert told.lost_bytes > 0
    time.sleep(1.1)  # all the time counts where commits are not known, not only that up to the last one
    with pytest.raises(LossNotAcceptedError, match="how many commits is not known"):
        migrated.restore(step=migrated.step(max_loss_s=1))
    migrated.restore()
    assert [loss.commits for loss in migrated.told] == [None]
    assert_back(migrated)


def test_a_server_that_runs_and_lets_nobody_in_is_given_up_by_a_person_who_was_told_the_loss(migrated):
    damage(migrated, "global/pg_filenode.map")
    server = migrated.database.server.model_copy(update={"start_timeout_s": 5})
    hasty = migrated.database.model_copy(update={"server": server})
    with pytest.raises(UndoFailedError, match=r"runs, but does not answer.*\(accept_loss\)"):
        migrated.restore(database=hasty)
    assert not migrated.is_stopped()
    assert migrated.loss_to_accept().commits == 1
    migrated.restore(database=hasty, accept_loss=True)
    assert [loss.commits for loss in migrated.told] == [1]
    assert_back(migrated)


# --- snapshots that are needed no more -------------------------------------------------------------


def test_snapshots_that_no_deployment_needs_go_with_their_notes_and_nothing_else_does(case, pool):
    for name in ("needed", "old", "held", "cloned"):
        wanted = f"{case.dataset}@sovereign-{name}-schema"
        taken = take_cluster_snapshot(case.database, wanted, settings=case.settings)
    pool.zfs("snapshot", f"{case.dataset}@sovereign-backup")
    pool.zfs("snapshot", f"{case.dataset}@hourly-schema")
    pool.zfs("hold", "keep", f"{case.dataset}@sovereign-held-schema")
    clone = f"{case.dataset}-clone"
    pool.zfs("clone", "-o", "mountpoint=none", f"{case.dataset}@sovereign-cloned-schema", clone)
    (case.cluster / "sovereign-old-schema.going-back").touch()

    def prune(now: datetime, *, database=case.database) -> tuple[str, ...]:
        keep = iter([f"{case.dataset}@sovereign-needed-schema"])
        return prune_cluster_snapshots(
            database, keep=keep, now=now, keep_s=7 * 86_400.0, settings=case.settings
        )

    late = taken.taken_at + timedelta(days=8)
    try:
        assert prune(datetime.now(UTC)) == ()
        assert prune(late, database=case.database.model_copy(update={"server": None})) == ()
        assert prune(late) == (f"{case.dataset}@sovereign-old-schema",)
        assert prune(late) == ()
        left = [each.label for each in zfs.stored(case.database.zfs, settings=case.settings)]
    finally:
        pool.zfs("release", "keep", f"{case.dataset}@sovereign-held-schema")
        pool.zfs("destroy", clone)
    names = ("needed", "held", "cloned")
    ours = [f"sovereign-{name}-schema" for name in names]
    assert [label for label in left if label != "stopped"] == [*ours, "sovereign-backup", "hourly-schema"]
    assert case.notes() == sorted(f"{label}.snapshot" for label in ours)


# --- the way back ----------------------------------------------------------------------------------


def test_under_load_the_commits_told_are_the_commits_lost_and_all_else_is_back(case, tmp_path):
    case.before = case.checksum()
    copy = Postgres(tmp_path / "copy")

    def tell(loss) -> None:
        """Keep the cluster as it is right before it is taken back, for another server to count in."""
        assert case.is_stopped()
        case.told.append(loss)
        shutil.copytree(case.cluster, copy.cluster)

    with Writers(case.lab.url, 3) as writers:
        confirmed_before = sum(writers.confirmed)
        case.take()
        confirmed_after = sum(writers.confirmed)
        case.migrate()
        case.lab.query("BEGIN; INSERT INTO book DEFAULT VALUES; PREPARE TRANSACTION 'x'")
        case.lab.query("COMMIT PREPARED 'x'")
        shown = case.loss()
        case.restore(tell=tell)
    assert_back(case)
    kept = case.lab.query("SELECT count(*) FROM book")[0][0]
    with copy, psycopg.connect(copy.url("sovereign")) as connection:
        held = connection.execute("SELECT count(*) FROM book").fetchone()[0]
    # the migration is one more, and clients may have been cut off before they heard of their last one
    (told,) = case.told
    assert told.commits == held - kept + 1
    assert confirmed_before <= kept <= confirmed_after + 3
    assert sum(writers.confirmed) + 1 <= held <= sum(writers.confirmed) + 1 + 3
    assert 20 < shown.commits < told.commits
    assert 0 < told.lost_s < 60
    assert told.lost_bytes > 10_000
    assert f"{told.commits} commits" in told.in_words
    argv = [str(programs() / "pg_amcheck"), "--host=127.0.0.1", f"--port={case.lab.port}"]
    argv += ["--username=postgres", "--heapallindexed", "--install-missing", "--database=sovereign"]
    checked = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_repeating_it_changes_nothing_and_keeps_what_was_written_meanwhile(migrated):
    assert migrated.loss().commits == 1
    migrated.restore()
    assert_back(migrated)
    migrated.lab.query("INSERT INTO book DEFAULT VALUES")
    for step in (migrated.step(), half_applied(migrated)):
        assert migrated.loss_to_accept(step=step) is None
        migrated.restore(step=step)
    assert migrated.lab.query("SELECT count(*) FROM book") == [(1,)]
    assert [loss.commits for loss in migrated.told] == [1]


def half_applied(case, **changes) -> RestoreSnapshot:
    """The step of a migration that runs without a transaction: what the version table says proves nothing."""
    return case.step(migration=MIGRATION.model_copy(update={"is_transactional": False}), **changes)


def test_a_migration_that_never_happened_loses_nothing_and_nobody_is_cut_off(case):
    case.take()
    case.lab.query("INSERT INTO book DEFAULT VALUES")
    with psycopg.connect(case.lab.url) as client:
        case.restore()
        assert client.execute("SELECT count(*) FROM book").fetchone() == (1,)
    assert case.told == []


def test_one_without_a_transaction_is_taken_back_though_the_version_table_does_not_have_it(case):
    case.before = case.checksum()
    case.take()
    case.lab.query(MIGRATION.up[1])
    step = half_applied(case)
    assert case.loss_to_accept(step=step).commits == 1
    case.restore(step=step)
    assert_back(case)


def test_a_session_that_the_dead_deployer_left_cannot_apply_it_afterwards(case):
    case.take()
    name = application_name(DEPLOYMENT)
    with psycopg.connect(case.lab.url, application_name=name) as ghost:
        for statement in MIGRATION.record:
            ghost.execute(statement)
        case.restore()
        with pytest.raises(psycopg.OperationalError):
            ghost.commit()
    assert case.told == []


def test_more_loss_than_may_be_is_refused_and_nothing_is_changed(migrated):
    time.sleep(1.1)
    migrated.lab.query("INSERT INTO book DEFAULT VALUES")
    step = migrated.step(max_loss_s=1)
    with psycopg.connect(migrated.lab.url) as client:
        with pytest.raises(LossNotAcceptedError, match=r"2 commits of .* more than the 1 s"):
            migrated.restore(step=step)
        assert client.execute("SELECT count(*) FROM book").fetchone() == (1,)
    assert migrated.told == []
    assert migrated.notes() == [f"sovereign-{DEPLOYMENT}.snapshot"]
    migrated.restore(step=step, accept_loss=True)
    assert [loss.commits for loss in migrated.told] == [2]
    assert_back(migrated)


def test_a_long_time_without_commits_is_no_loss(migrated, pool):
    migrated.lab.query("SELECT 1")
    time.sleep(2.1)
    migrated.restore(step=migrated.step(max_loss_s=2))
    assert_back(migrated)


def test_users_hourly_snapshots_do_not_forbid_it_and_are_named(migrated, pool):
    pool.zfs("snapshot", f"{migrated.dataset}@hourly")
    migrated.restore()
    assert_back(migrated)
    assert migrated.told[0].discarded == (f"{migrated.dataset}@hourly",)
    assert "@hourly" in migrated.told[0].in_words


def test_later_snapshots_that_are_held_or_cloned_forbid_it_before_anybody_is_cut_off(migrated, pool):
    hourly = f"{migrated.dataset}@hourly"
    pool.zfs("snapshot", hourly)
    pool.zfs("hold", "keep", hourly)
    with psycopg.connect(migrated.lab.url) as client:
        with pytest.raises(UndoFailedError, match=r"@hourly: .*zfs release"):
            migrated.restore()
        pool.zfs("release", "keep", hourly)
        pool.zfs("clone", "-o", "mountpoint=none", hourly, f"{migrated.dataset}-clone")
        with pytest.raises(UndoFailedError, match="promote their clones"):
            migrated.restore()
        assert client.execute("SELECT 1").fetchone() == (1,)
    pool.zfs("destroy", f"{migrated.dataset}-clone")
    migrated.restore()
    assert_back(migrated)


def test_a_snapshot_that_is_being_read_forbids_it_in_words(migrated, monkeypatch, pool):
    monkeypatch.setattr(zfs, "BUSY_PATIENCE_S", 1.0)
    with (
        zfs.reading(migrated.database.zfs, migrated.snapshot, settings=migrated.settings) as place,
        subprocess.Popen(["sleep", "60"], cwd=place) as reader,
    ):
        try:
            with pytest.raises(UndoFailedError, match="still being read"):
                migrated.restore()
        finally:
            reader.kill()
    assert migrated.lab.query("SELECT name FROM schema_version ORDER BY name")[1] == ("002_forget_sources",)
    migrated.restore()
    assert_back(migrated)


def test_a_server_that_the_service_does_not_know_of_is_never_rolled_back_under(migrated, monkeypatch):
    monkeypatch.setattr(cluster_server, "_STOP_PATIENCE_S", 1.0)
    blind = CommandService(start=("true",), stop=("true",), status=("sh", "-c", "exit 3"))
    server = migrated.database.server.model_copy(update={"service": blind})
    wrong = migrated.database.model_copy(update={"server": server})
    with psycopg.connect(migrated.lab.url) as client:
        with pytest.raises(UndoFailedError, match="does not know of"):
            migrated.restore(database=wrong)
        assert client.execute("SELECT count(*) FROM schema_version").fetchone() == (2,)
    assert migrated.told == []
    migrated.restore()
    assert_back(migrated)


def test_a_server_that_runs_but_has_no_connection_left_is_given_up_by_a_person_only(migrated):
    server = migrated.database.server.model_copy(update={"start_timeout_s": 1})
    hasty = migrated.database.model_copy(update={"server": server})
    everybody = []
    with suppress(psycopg.OperationalError):
        while True:
            everybody.append(psycopg.connect(migrated.lab.url))
    with pytest.raises(UndoFailedError, match="runs, but does not answer"):
        migrated.restore(database=hasty)
    assert everybody[0].execute("SELECT count(*) FROM schema_version").fetchone() == (2,)
    for client in everybody:
        client.close()
    migrated.restore()
    assert_back(migrated)


def test_a_rollback_that_fails_leaves_the_server_running_as_it_was(migrated, pool):
    def hold_a_snapshot(loss) -> None:
        migrated.told.append(loss)
        pool.zfs("snapshot", f"{migrated.dataset}@later")
        clone = f"{migrated.dataset}-clone"
        pool.zfs("clone", "-o", "mountpoint=none", f"{migrated.dataset}@later", clone)

    with pytest.raises(UndoFailedError, match=r"are clones of newer.*started again as it was"):
        migrated.restore(tell=hold_a_snapshot)
    assert migrated.lab.query("SELECT count(*) FROM schema_version") == [(2,)]
    assert migrated.notes() == [f"sovereign-{DEPLOYMENT}.snapshot"]
    pool.zfs("destroy", f"{migrated.dataset}-clone")
    migrated.restore()
    assert_back(migrated)


# --- killed, and taken up by another process -------------------------------------------------------


@contextmanager
def restorer(case: Case, *, database=None, waits_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Another process that takes the cluster back; it is killed at the end if it still runs."""
    target = (database or case.database).model_dump_json()
    argv = [sys.executable, "-c", textwrap.dedent(RESTORER), target, case.step().model_dump_json()]
    with subprocess.Popen([*argv, str(waits_s)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def test_killed_after_the_stop_it_goes_on_without_asking_again(migrated):
    with restorer(migrated, waits_s=60) as killed:
        assert '"commits":1' in killed.stdout.readline()
    assert migrated.is_stopped()
    assert migrated.notes() == [f"sovereign-{DEPLOYMENT}.{kind}" for kind in ("going-back", "snapshot")]
    assert migrated.loss_to_accept() is None
    # decided on already, and a server that stands still loses no more by waiting
    migrated.restore(step=migrated.step(max_loss_s=0))
    assert [loss.commits for loss in migrated.told] == [1]
    assert_back(migrated)


def test_killed_after_the_stop_and_started_by_somebody_else_it_decides_anew(migrated):
    with restorer(migrated, waits_s=60) as killed:
        killed.stdout.readline()
    migrated.lab.start()
    time.sleep(1.1)
    migrated.lab.query("INSERT INTO book DEFAULT VALUES")
    with pytest.raises(LossNotAcceptedError, match="2 commits"):
        migrated.restore(step=migrated.step(max_loss_s=1))
    assert migrated.notes() == [f"sovereign-{DEPLOYMENT}.snapshot"]


def rollback_runs(dataset: str) -> bool:
    """Whether a `zfs rollback` of the dataset runs at this moment."""
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if words[:2] == [b"zfs", b"rollback"] and dataset.encode() in b" ".join(words):
                return True
    return False


def test_killed_during_the_rollback_it_ends_right(migrated, pool):
    # what there is to destroy makes it last
    for number in range(8):
        (pool.directory / migrated.dataset / f"fill{number}").write_bytes(os.urandom(2_000_000))
        pool.zfs("snapshot", f"{migrated.dataset}@hourly{number}")
    with restorer(migrated) as killed:
        killed.stdout.readline()
        while not rollback_runs(migrated.dataset):
            assert killed.poll() is None, "it was over before it could be killed"
    assert killed.returncode == -signal.SIGKILL
    migrated.restore()
    assert_back(migrated)
    assert not list((pool.directory / migrated.dataset).glob("fill*"))
    # whether it had happened already or not, nothing but the migration was lost
    assert [loss.commits for loss in migrated.told] in ([], [1])


def test_killed_before_the_start_it_starts_what_is_back_and_brings_nothing_back_twice(migrated, tmp_path):
    service = migrated.database.server.service
    hangs = service.model_copy(update={"start": ("sh", "-c", f"touch {tmp_path}/started; exec sleep 60")})
    server = migrated.database.server.model_copy(update={"service": hangs})
    with restorer(migrated, database=migrated.database.model_copy(update={"server": server})) as killed:
        wait_until((tmp_path / "started").exists, timeout_s=60, what="the start")
        assert killed.poll() is None
    assert migrated.is_stopped()
    assert migrated.notes() == []
    # the snapshot is one of a running server: its pid file is there again
    (migrated.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{migrated.cluster}\n")
    migrated.restore()
    assert migrated.told == []
    assert_back(migrated)


def test_a_dataset_that_a_killed_rollback_left_unmounted_is_mounted(migrated, pool):
    with restorer(migrated, waits_s=60) as killed:
        killed.stdout.readline()
    pool.zfs("unmount", migrated.dataset)
    # what is noted lies in the dataset: that it was decided on already, for instance
    assert migrated.loss_to_accept() is None
    migrated.restore()
    assert [loss.commits for loss in migrated.told] == [1]
    assert_back(migrated)


def test_a_server_that_stands_still_for_its_own_reasons_is_asked_before_anything_is_lost(case):
    case.take()
    case.lab.query("INSERT INTO book DEFAULT VALUES")
    case.lab.run(case.database.server.service.stop)
    case.restore()
    assert case.told == []
    assert case.lab.query("SELECT count(*) FROM book") == [(1,)]


def test_a_server_that_the_migration_has_broken_is_brought_back_by_its_snapshot(migrated):
    migrated.lab.query("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    migrated.lab.run(migrated.database.server.service.stop)
    migrated.restore()
    assert [loss.commits for loss in migrated.told] == [1]
    assert_back(migrated)


def test_by_ssh_it_is_the_same(migrated, remote):
    server = migrated.database.server.model_copy(update={"host": remote})
    far = migrated.database.model_copy(update={"server": server})
    migrated.restore(database=far, accept_loss=True)  # one measurement less, as each connection takes time
    assert [loss.commits for loss in migrated.told] == [1]
    assert_back(migrated)
