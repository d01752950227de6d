"""The lab's database: its service, its content, its migrations, and the look at all of it."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from lab import database_migrations as migrations
from lab.database import LabDatabase
from lab.database_content import INDEX
from lab.database_observed import Observer
from lab.identity import started_ticks
from lab.ports import is_listening
from lab.postgres import as_nobody
from lab.processes import LabError, marked
from lab.zfs import LabZfs
from rules.hosts import HostAddress
from tasks.host import run
from tests.requirements import need_zfs

HERE = HostAddress()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, lab_cache):
    """A database whose content no test changes for good."""
    with LabDatabase(tmp_path_factory.mktemp("database"), cache=lab_cache) as running:
        yield running


@pytest.fixture
def lab(tmp_path, lab_cache):
    """A database of one test's own."""
    with LabDatabase(tmp_path / "database", cache=lab_cache) as running:
        yield running


def postmaster(lab: LabDatabase) -> int:
    return int((lab.cluster / "postmaster.pid").read_text().split()[0])


def test_it_is_as_durable_as_in_production(shared):
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "wal_level": "replica"}
    names = ("fsync", "synchronous_commit", "full_page_writes", "wal_level", "data_checksums")
    shown = {name: shared.query(f"SHOW {name}")[0][0] for name in names}
    assert shown == {**wanted, "data_checksums": "on"}


def test_its_content_is_what_was_asked_for(tmp_path):
    small = LabDatabase(tmp_path / "own", rows=300, vectors=240, dimensions=5, months=14)
    with small:
        assert small.query("SELECT count(*) FROM memories") == [(300,)]
        found = small.query(
            "SELECT count(*), count(DISTINCT embedding), min(vector_dims(embedding)) FROM episodic_memories"
        )
        assert found == [(240, 240, 5)]
        leaves = small.query(
            "SELECT relid::text FROM pg_partition_tree('episodic_memories') WHERE isleaf ORDER BY 1"
        )
        assert tuple(row[0] for row in leaves) == small.content.partitions
        assert small.content.partitions[-1] == "episodic_memories_2027_02"
        newest = small.query("SELECT count(*), min(occurred_at AT TIME ZONE 'UTC') FROM current_episodes")
        assert newest[0][0] == 17
        assert newest[0][1].date().isoformat() == "2027-02-01"


def test_neighbours_are_of_one_cloud_as_those_of_real_embeddings(shared):
    near, far = shared.query(
        "WITH numbered AS (SELECT substr(content, 9)::int AS n, embedding AS e FROM episodic_memories) "
        "SELECT avg(m.e <-> one.e) FILTER (WHERE m.n % 10 = 1), "
        "avg(m.e <-> one.e) FILTER (WHERE m.n % 10 <> 1) "
        "FROM numbered m, numbered one WHERE one.n = 11 AND m.n <> 11"
    )[0]
    assert near < 0.75 * far


def test_its_index_is_the_parents_and_valid_on_each_partition(shared):
    rows = shared.query(
        "SELECT indexrelid::regclass::text, indisvalid, pg_get_indexdef(indexrelid) FROM pg_index "
        "WHERE pg_get_indexdef(indexrelid) LIKE '%hnsw%'"
    )
    assert len(rows) == 4
    assert INDEX in {row[0] for row in rows}
    assert all(valid and "m='8', ef_construction='32'" in text for _, valid, text in rows)


def test_declared_queries_answer_and_declared_tables_are_there(shared):
    declared = shared.database
    assert all(len(shared.query(query.sql)) >= 1 for query in declared.queries)
    assert len(shared.query(declared.queries[-1].sql)) == 10
    for table in declared.tables:
        query = sql.SQL("SELECT count({}) FROM {}")
        names = (sql.Identifier(table.append_only_by or "key"), sql.Identifier(*table.name.split(".")))
        assert shared.query(query.format(*names))[0][0] >= 20


def test_its_service_starts_stops_and_says_so_also_when_it_is_so_already(lab):
    service, timeout_s = lab.service, 60
    for _ in range(2):
        run(HERE, service.stop, timeout_s=timeout_s)
        assert run(HERE, service.status, check=False).returncode == 3
    assert not is_listening(lab.port)
    for _ in range(2):
        run(HERE, service.start, timeout_s=timeout_s)
        assert run(HERE, service.status, check=False).returncode == 0
    assert lab.query("SELECT count(*) FROM memories") == [(2_000,)]


def test_a_server_that_another_started_is_ended_and_was_marked_as_the_labs(lab, monkeypatch):
    lab.run(lab.service.stop)
    assert not list(marked(lab.directory))
    monkeypatch.setenv("SOVEREIGN_LAB", "/somewhere/else")
    run(HERE, lab.service.start, timeout_s=60)
    pid = postmaster(lab)
    assert pid in list(marked(lab.directory))
    lab.stop()
    assert not list(marked(lab.directory))
    assert started_ticks(pid) is None


def test_it_comes_up_again_after_a_power_cut_and_keeps_what_was_committed(lab):
    lab.query("INSERT INTO memories (kind, content) VALUES ('mine', 'kept')")
    pid = postmaster(lab)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # what has ended counts as running until the machine's first process has noticed
    assert not lab.is_running()
    lab.stop()
    lab.start()
    assert lab.query("SELECT content FROM memories WHERE kind = 'mine'") == [("kept",)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_it_runs_as_nobody_where_user_namespaces_are_forbidden(tmp_path, lab_cache, monkeypatch):
    monkeypatch.setattr("lab.database.unprivileged", as_nobody)
    with LabDatabase(tmp_path / "database", cache=lab_cache) as lab:
        assert lab.cluster.stat().st_uid == 65_534
        assert lab.query("SELECT count(*) FROM settings") == [(20,)]
    assert not is_listening(lab.port)


def test_a_command_that_fails_says_what_the_server_logged(lab):
    lab.run(lab.service.stop)
    with (lab.cluster / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 'x'\n")
    with pytest.raises(LabError, match="no_such_setting"):
        lab.run(lab.service.start)


@pytest.mark.xdist_group("zfs")
def test_on_zfs_the_whole_cluster_comes_back_and_the_log_does_not(tmp_path, lab_cache):
    need_zfs()
    with LabZfs(tmp_path / "zfs") as zfs, LabDatabase(tmp_path / "db", zfs=zfs, cache=lab_cache) as lab:
        server = lab.database.server
        assert server.dataset == f"{zfs.pool}/memories"
        assert lab.cluster.is_relative_to(zfs.mountpoint(server.zfs))
        before = Observer(lab).look()
        observer = Observer(lab)
        lab.run(lab.service.stop)
        zfs.zfs("snapshot", f"{server.dataset}@before")
        lab.run(lab.service.start)
        lab.query("ALTER TABLE memories DROP COLUMN source")
        lab.query("DELETE FROM settings")
        broken = observer.look()
        assert [key for key in before if broken[key] != before[key]] == ["schema", "content"]
        lab.run(lab.service.stop)
        logged = lab.log.read_text()
        zfs.zfs("rollback", f"{server.dataset}@before")
        lab.run(lab.service.start)
        assert observer.look() == before
        assert lab.log.read_text().startswith(logged)


# --- the look ----------------------------------------------------------------------------------------


def test_a_look_sees_what_a_deployment_could_leave(lab):
    observer = Observer(lab)
    before = observer.look()
    lab.query("INSERT INTO memories (kind, content) VALUES ('user', 'a new one does not count')")
    assert observer.look() == before
    changes = {
        "indexes": (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memories_kind_id_idx'::regclass",
            "UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'memories_kind_id_idx'::regclass",
        ),
        "databases": ("CREATE DATABASE rehearsal", "DROP DATABASE rehearsal"),
        "roles_and_slots": ("CREATE ROLE somebody", "DROP ROLE somebody"),
        "schema": (
            "ALTER TABLE settings ALTER value SET DEFAULT 'x'",
            "ALTER TABLE settings ALTER value DROP DEFAULT",
        ),
        "content": (
            "UPDATE memories SET kind = 'other' WHERE id = 5",
            "UPDATE memories SET kind = 'kind-5' WHERE id = 5",
        ),
        "versions": (
            "CREATE TABLE alembic_version AS SELECT 'a' AS version_num",
            "DROP TABLE alembic_version",
        ),
    }
    for key, (change, back) in changes.items():
        lab.query(change)
        differing = {name for name in before if observer.look()[name] != before[name]}
        assert differing in ({key}, {key, "schema"})
        lab.query(back)
    assert observer.look() == before


def test_a_look_does_not_mind_the_names_that_a_deployment_gives(lab):
    observer = Observer(lab)
    looks = []
    for name in ("made_by_d1", "made_by_d2"):
        lab.query(f"CREATE INDEX {name} ON memories (created_at)")
        looks.append(observer.look())
        lab.query(f"DROP INDEX {name}")
    assert looks[0] == looks[1] != observer.look()


def test_a_look_sees_a_session_that_a_deployment_left(lab, monkeypatch):
    monkeypatch.setattr("lab.database_observed._SESSIONS_PATIENCE_S", 0.2)
    observer = Observer(lab)
    with psycopg.connect(lab.url, application_name="sovereign-d1"):
        assert observer.look()["sessions"] == 1
    assert observer.look()["sessions"] == 0


# --- migrations --------------------------------------------------------------------------------------


def apply(lab: LabDatabase, made: migrations.LabMigrations, way: str = "up") -> None:
    """Run a folder's files as anybody would, each statement without comments."""
    names = sorted(Path(made.folder.path).glob(f"*.{way}.sql"), reverse=way == "down")
    with psycopg.connect(lab.url, autocommit=True) as connection:
        for name in names:
            connection.execute(name.read_text())


@pytest.mark.parametrize(
    "make",
    [
        migrations.good_expand,
        migrations.good_contract,
        migrations.bad_half_way,
        migrations.bad_rename,
        migrations.bad_slow,
        migrations.bad_delete,
    ],
)
def test_a_folder_has_the_checksum_that_its_change_names(make, tmp_path):
    made = make(tmp_path / "folder")
    said = subprocess.run(
        ["bash", "-c", 'cat "$1"/*.sql | sha256sum', "-", made.folder.path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.folder.sha256 == said.stdout.split()[0]
    change = made.change("memories", max_loss_s=5)
    assert (change.database, change.max_loss_s, change.migrations) == ("memories", 5, made.folder)
    assert (Path(made.folder.path) / f"{made.release}.up.sql").exists()


def test_the_good_ones_go_up_and_only_the_expansion_comes_down_without_a_loss(lab, tmp_path):
    observer = Observer(lab)
    before = observer.look()
    expand = migrations.good_expand(tmp_path / "expand")
    apply(lab, expand)
    assert observer.look() != before
    apply(lab, expand, "down")
    assert observer.look() == before
    contract = migrations.good_contract(tmp_path / "contract")
    apply(lab, contract)
    apply(lab, contract, "down")
    after = observer.look()
    assert [key for key in before if after[key] != before[key]] == ["content"]


def test_the_half_way_one_fails_in_its_second_migration(lab, tmp_path):
    with pytest.raises(psycopg.errors.UniqueViolation):
        apply(lab, migrations.bad_half_way(tmp_path / "half"))
    assert lab.query("SELECT to_regclass('labels'), count(mood) FROM memories") == [(None, 0)]


def test_the_bad_ones_break_what_is_declared(lab, tmp_path):
    queries = {query.name: query.sql for query in lab.database.queries}

    def median_s(query: str) -> float:
        with psycopg.connect(lab.url, autocommit=True) as connection:
            return statistics.median(timed(connection, query) for _ in range(5))

    def timed(connection: psycopg.Connection, query: str) -> float:
        began = time.perf_counter()
        connection.execute(query, prepare=False).fetchall()
        return time.perf_counter() - began

    quick = median_s(queries["earlier-of-its-kind"])
    apply(lab, migrations.bad_slow(tmp_path / "slow"))
    assert median_s(queries["earlier-of-its-kind"]) > max(4 * quick, quick + 0.05)
    apply(lab, migrations.bad_rename(tmp_path / "rename"))
    with pytest.raises(psycopg.errors.UndefinedColumn):
        lab.query(queries["setting"])
    apply(lab, migrations.bad_delete(tmp_path / "delete"))
    assert lab.query("SELECT count(*) FROM settings") == [(0,)]
