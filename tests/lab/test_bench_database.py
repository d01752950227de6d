"""What the benchmark of database changes measures, on a small database; and what its crash labs refuse."""

from __future__ import annotations

import re

import pytest

from lab import bench_database, crash_pgvector_index, crash_postgres_schema
from lab.database import LabDatabase
from lab.database_observed import Observer
from lab.processes import LabError


@pytest.fixture(scope="module")
def lab(tmp_path_factory, lab_cache):
    with LabDatabase(tmp_path_factory.mktemp("database"), cache=lab_cache) as running:
        yield running


def test_each_try_for_a_lock_is_short_and_the_table_is_as_before(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_database, "_HELD_S", 1.2)
    observer = Observer(lab)
    before = observer.look()
    tries, held, readers = bench_database.lock_figures(lab, tmp_path)
    assert int(tries.figure.split()[0]) > 1
    longest_ms = int(re.search(r"waited (\d+) ms", tries.figure).group(1))
    assert lab.database.lock.first_ms <= longest_ms < lab.database.lock.longest_ms + 300
    assert held.figure.endswith(" ms")
    assert readers.figure.endswith(", 0 failed")
    assert observer.look() == before


def test_recall_grows_with_the_list_and_ends_near_exact(lab, monkeypatch):
    monkeypatch.setattr(bench_database, "_VECTORS", 1_000)
    exact, *by_length = bench_database.recall_figures(lab)
    assert exact.ratio == "1"
    recalls = [float(re.search(r"recall@10 ([\d.]+)", figure.figure).group(1)) for figure in by_length]
    assert len(recalls) == 5
    assert recalls[-1] >= max(0.95, recalls[0] - 0.01)


@pytest.mark.parametrize("replace", [bench_database.replace_beside, bench_database.replace_dropping_first])
def test_both_ways_end_with_the_new_index_on_every_partition(lab, tmp_path, replace):
    took_s, latency = bench_database._under_load(lab, tmp_path, lambda: replace(lab))
    assert took_s > 0
    assert 0 < latency.p50_s <= latency.longest_s
    found = lab.query(
        "SELECT indisvalid, pg_get_indexdef(indexrelid) LIKE '%m=''16''%' FROM pg_index "
        "WHERE indexrelid = 'episodic_memories_embedding_idx'::regclass "
        "OR indexrelid IN (SELECT inhrelid FROM pg_inherits "
        "WHERE inhparent = 'episodic_memories_embedding_idx'::regclass)"
    )
    assert found == [(True, True)] * 4
    hnsw = lab.query("SELECT count(*) FROM pg_index WHERE pg_get_indexdef(indexrelid) LIKE '%hnsw%'")
    assert hnsw == [(4,)]
    lab.query("DROP INDEX episodic_memories_embedding_idx")
    lab.query(
        "CREATE INDEX episodic_memories_embedding_idx ON episodic_memories "
        "USING hnsw (embedding vector_cosine_ops) WITH (m = 8, ef_construction = 32)"
    )


def test_a_crash_lab_without_what_it_needs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(crash_postgres_schema, "why_not", lambda: "no zfs-fuse here")
    with pytest.raises(LabError, match="no zfs-fuse here"):
        crash_postgres_schema.CrashLab(tmp_path / "schema", "snapshot")
    with pytest.raises(ValueError, match="in_place"):
        crash_pgvector_index.CrashLab(tmp_path / "index", "rolling")
