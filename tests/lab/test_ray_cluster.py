"""The lab's Ray cluster is real: nodes come, work, drain, die and come back, and nothing is left."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import httpx
import pytest

from lab.processes import LabError, marked, wait_until
from lab.ray_cluster import FIRST_RELEASE, LabRay
from lab.ray_node import STOPPED, _inhabitants
from lab.ray_releases import build_ray_release
from lab.ray_workload import RayWorkload
from lab.releases import unpack
from tests.requirements import need_ray

pytestmark = pytest.mark.xdist_group("ray")
NODES = ("node-1", "node-2")
R1 = {"link": "releases/r1", "staged": ["r1"], "service": True}


@pytest.fixture(scope="module")
def _ray():
    need_ray()


@pytest.fixture(scope="module")
def running(_ray, tmp_path_factory):
    with LabRay(tmp_path_factory.mktemp("ray") / "lab", spares=1, drain_s=2.0) as lab:
        yield lab


@pytest.fixture
def ray(running):
    """The cluster with both nodes alive in their first release, whatever the last test did to them."""
    yield running
    for name in NODES:
        link = running.root(name) / "current"
        if link.readlink().name != FIRST_RELEASE or name not in running.alive():
            link.unlink()
            link.symlink_to(f"releases/{FIRST_RELEASE}")
            running.command_all("stop", name)
            running.command_all("start", name)
    wait_until(lambda: set(running.alive()) == set(NODES), timeout_s=30, what="both nodes")


def labels(node, release):
    return {"host": node, "release": release}


def gone(ray, node):
    wait_until(lambda: node not in ray.alive(), timeout_s=40, what=f"{node} to be seen dead")


def update(ray, node, release, behaviour):
    ray.command_all("stop", node)
    ray.stage(node, ray.archive(release, behaviour), release)
    ray.command_all("start", node)
    wait_until(lambda: node in ray.alive(), timeout_s=10, what=node)


def canary(ray, node, release):
    """Return how the canary job ended on a node."""
    job = {
        "entrypoint": ray.cluster.canary,
        "entrypoint_resources": {node: 0.01},
        "submission_id": f"canary-{release}",
        "runtime_env": {"env_vars": {"RELEASE": release}},
    }
    httpx.post(f"{ray.dashboard}/api/jobs/", json=job, trust_env=False, timeout=30).raise_for_status()
    found = {}

    def ended():
        found.update(ray.ask(f"/api/jobs/canary-{release}"))
        return found["status"] in {"SUCCEEDED", "FAILED"}

    wait_until(ended, timeout_s=60, what="the canary job")
    assert found["driver_node_id"] == ray.alive()[node]["node_id"]
    return found["status"]


def at_work(work, node):
    """Return whether a task began on a node within the last second, and takes longer than that."""
    begun = [e["at"] for e in work.events() if e["event"] == "task-started" and e["host"] == node]
    return bool(begun) and time.time() - begun[-1] < 1


def inhabitants(ray, node):
    return _inhabitants(json.loads((ray.root(node) / "node.json").read_text()))


def test_nodes_are_alive_with_their_labels_and_a_spare_has_nothing(ray):
    seen = ray.snapshot()
    assert seen["node-3"] == {"link": None, "staged": [], "labels": None, "service": False}
    for name in NODES:
        assert {**seen[name], "staged": ["r1"]} == {**R1, "labels": labels(name, "r1")}
    assert [instance.name for instance in ray.fleet.instances] == ["node-1", "node-2", "node-3"]
    probe = ray.fleet.instance("node-1").probe
    assert httpx.get(probe.url, trust_env=False).json()["result"] is True


def test_the_program_that_deployments_run_reaches_the_cluster(ray):
    argv = (ray.cluster.program, "health-check", "--address", ray.cluster.gcs)
    assert subprocess.run(argv, check=False, capture_output=True, timeout=30).returncode == 0


def test_starting_twice_and_stopping_twice_change_nothing(ray):
    before = ray.alive()["node-1"]["node_id"]
    assert ray.command("node-1", "start").returncode == 0
    assert ray.alive()["node-1"]["node_id"] == before
    assert ray.command("node-1", "stop").returncode == ray.command("node-1", "stop").returncode == 0
    assert ray.command("node-1", "status").returncode == STOPPED
    assert inhabitants(ray, "node-1") == ()
    gone(ray, "node-1")
    assert "node-2" in ray.alive(), "only its own processes were ended"


def test_a_node_comes_back_under_another_id_in_the_release_that_its_link_names(ray):
    before = ray.alive()["node-2"]["node_id"]
    update(ray, "node-2", "r2", "good")
    assert ray.alive()["node-2"]["node_id"] != before
    assert ray.snapshot()["node-2"]["labels"] == labels("node-2", "r2")
    assert canary(ray, "node-2", "r2") == "SUCCEEDED"


def test_the_canary_job_fails_on_a_node_that_starts_well_and_imports_another_version(ray):
    update(ray, "node-2", "r3", "wrong version")
    assert ray.snapshot()["node-2"]["labels"] == labels("node-2", "r3")
    assert canary(ray, "node-2", "r3") == "FAILED"


def test_a_release_with_an_import_error_is_one(tmp_path):
    with tarfile.open(build_ray_release(tmp_path, "r4", "import error").path) as packed:
        unpack(packed, tmp_path)
    argv = (sys.executable, "-c", "import appcode")
    failed = subprocess.run(argv, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert "No module named 'a_package_that_is_not_there'" in failed.stderr


def test_a_node_that_was_drained_is_gone_while_its_service_still_runs(ray):
    node_id = ray.alive()["node-1"]["node_id"]
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test")
    argv = (ray.cluster.program, "drain-node", "--address", ray.cluster.gcs, "--node-id", node_id, *why)
    subprocess.run(argv, check=True, timeout=30)
    gone(ray, "node-1")
    assert ray.command("node-1", "status").returncode == 0
    assert ray.command("node-1", "start").returncode == 0
    assert "node-1" not in ray.alive(), "it needs a stop first, as under systemd"


def test_a_release_that_crashes_at_start_fails_and_leaves_nothing_running(ray):
    ray.command_all("stop", "node-1")
    ray.stage("node-1", ray.archive("crashing", "crash at start"), "crashing")
    began = time.monotonic()
    failed = ray.command("node-1", "start")
    assert (failed.returncode, "the node ended and was stopped" in failed.stderr) == (1, True)
    assert time.monotonic() - began < 20
    assert ray.command("node-1", "status").returncode == STOPPED
    assert inhabitants(ray, "node-1") == ()


def test_without_a_head_or_a_release_a_node_is_not_started_and_says_why(ray):
    ray.command_all("stop", "node-2")
    file = ray.root("node-2") / "node.json"
    settings = file.read_text()
    try:
        file.write_text(settings.replace(ray.gcs, f"{ray.gcs}9"))
        began = time.monotonic()
        failed = ray.command("node-2", "start")
        assert failed.returncode == 1
        assert "head does not answer" in failed.stderr
        assert "nothing was started" in failed.stderr
        assert time.monotonic() - began < 15
    finally:
        file.write_text(settings)
    failed = ray.command("node-3", "start")
    assert (failed.returncode, "labels.yaml is missing" in failed.stderr) == (1, True)


def test_a_killed_node_loses_no_task_that_may_be_repeated(ray):
    with RayWorkload(ray, task_s=2.0, actors=2, mortal=True) as work:
        wait_until(lambda: at_work(work, "node-1"), timeout_s=40, what="a task on node-1")
        ray.kill("node-1")
        assert ray.command("node-1", "status").returncode == STOPPED
        gone(ray, "node-1")
        ray.command_all("start", "node-1")
        wait_until(lambda: "node-1" in ray.alive(), timeout_s=20, what="node-1")
        back_at = time.time()

        def works_again():
            return any(e["at"] > back_at and e.get("host") == "node-1" for e in work.events())

        wait_until(works_again, timeout_s=40, what="work on the node that came back")
        found = work.finish()
    assert (found.errors, found.missing, found.done) == ((), 0, found.submitted)
    assert found.repeated
    assert set(found.by_host) == set(NODES)
    assert found.longest_gap_s < 30
    assert set(found.actors_restarted) == {"counter-1", "counter-2", "mortal"}


def test_stopped_work_is_gone_at_once(ray):
    work = RayWorkload(ray)
    work.start()
    began = time.monotonic()
    work.stop()
    assert time.monotonic() - began < 2
    with pytest.raises(LabError, match="no work was begun"):
        work.finish()


@pytest.mark.usefixtures("_ray")
def test_where_hosts_cannot_be_apart_a_node_still_stops_only_itself(tmp_path):
    lab = LabRay(tmp_path / "lab", drain_s=2.0, apart=False)
    with lab:
        assert not lab.hosts.are_apart
        before = lab.alive()["node-2"]["node_id"]
        temporary = Path(lab.hosts.temporary("head")).parent
        lab.command_all("stop", "node-1")
        gone(lab, "node-1")
        assert lab.alive()["node-2"]["node_id"] == before
        lab.command_all("start", "node-1")
        lab.kill("node-1")
        assert lab.command("node-1", "status").returncode == STOPPED
        assert lab.command("node-2", "status").returncode == 0
    assert list(marked(lab.directory)) == []
    assert not temporary.exists()
