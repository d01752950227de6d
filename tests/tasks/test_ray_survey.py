"""What is read of a real Ray cluster before a plan is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.processes import wait_until
from lab.ray_workload import RayWorkload
from rules.change import RayRelease, ReleaseArchive
from rules.errors import InvalidRequestError
from rules.fleet import FleetState, InstanceState
from tasks import ray_cluster as ray
from tasks import ray_jobs
from tasks.fleet import observe_fleet
from tasks.ray_cluster import RayClusterError
from tasks.ray_survey import survey_ray
from tests.tasks.ray_head import fake_head, node, task, told
from tests.tasks.raying import change, lab

__all__ = ["lab"]  # a fixture

pytestmark = pytest.mark.xdist_group("ray")
ARCHIVE = ReleaseArchive(path="/srv/code.tar.gz", sha256="c" * 64)


def test_a_cluster_at_work_is_read_whole(lab):
    before = observe_fleet(lab.fleet)
    assert before.instances["node-1"] == InstanceState(release="r1", running="r1", releases=("r1",))
    assert before.instances["node-3"] == InstanceState(release=None, running=None)
    with RayWorkload(lab, parallel=2, task_s=2.0, actors=1, mortal=True):
        found = survey_ray(change(lab, "r2"), lab.fleet, before)
    assert found.head_version == "2.60.0"
    assert found.versions == {"node-1": "2.60.0", "node-2": "2.60.0"}
    assert {name: node.release for name, node in found.nodes.items()} == {"node-1": "r1", "node-2": "r1"}
    assert found.strangers == ()
    assert {task.name for task in found.tasks} == {"repeatable"}
    assert {task.node_id for task in found.tasks} <= {node.node_id for node in found.nodes.values()}
    # a job that another test has left waiting may run late, and its driver counts as an actor
    own = [actor for actor in found.actors if not actor.name.startswith("job ")]
    lives = {actor.name: (actor.max_restarts, actor.is_last_life) for actor in own}
    assert lives == {"counter-1": (-1, False), "mortal": (0, True)}


def test_the_program_on_each_host_that_will_run_is_asked_for_its_version(lab, tmp_path: Path):
    old = tmp_path / "ray"
    old.write_text("#!/bin/sh\necho 'ray, version 2.59.1'\n")
    old.chmod(0o755)
    before = observe_fleet(lab.fleet)
    wanted = change(lab, "r2").model_copy(update={"nodes": ("node-1", "node-3")})
    for program, versions in (
        (str(old), dict.fromkeys(("node-1", "node-2", "node-3"), "2.59.1")),
        (str(tmp_path / "none"), {}),
        ("false", {}),
    ):
        fleet = lab.fleet.model_copy(update={"ray": lab.cluster.model_copy(update={"program": program})})
        found = survey_ray(wanted, fleet, before)
        assert (found.head_version, found.versions) == ("2.60.0", versions)


def test_a_node_that_nobody_declared_is_a_stranger(lab):
    one = lab.fleet.model_copy(update={"instances": lab.fleet.instances[:1]})
    found = survey_ray(change(lab, "r2"), one, observe_fleet(one))
    assert [node.host for node in found.strangers] == ["node-2"]
    assert list(found.nodes) == ["node-1"]


@pytest.mark.parametrize("release", ["1.0+build7", "r" * 64, "r2-", "2.0."])
def test_a_release_that_ray_takes_as_no_label_is_refused(lab, release):
    wanted = RayRelease(cluster="ray", release=release, artefact=lab.archive("r2"))
    with pytest.raises(InvalidRequestError, match="Ray takes no label release="):
        survey_ray(wanted, lab.fleet, observe_fleet(lab.fleet))


def test_a_node_that_does_not_run_what_is_linked_is_refused(lab):
    apart = FleetState(instances={"node-1": InstanceState(release="r2", running="r1")})
    with pytest.raises(InvalidRequestError, match="node-1 runs r1, linked is r2"):
        survey_ray(change(lab, "r2"), lab.fleet, apart)


def test_a_node_whose_release_could_not_be_read_is_not_taken_for_one_to_be_added():
    """It would be stopped undrained, and left stopped by the way back."""
    wanted = RayRelease(cluster="ray", release="r2", artefact=ARCHIVE)
    with fake_head() as head:
        fleet, absent = (
            told(head),
            FleetState(instances={"node-1": InstanceState(release="r1", running=None)}),
        )
        head.rows["nodes"] = [node("n1", "node-1", "")]
        with pytest.raises(InvalidRequestError, match=r"could be read: node-1; .*any more: none"):
            survey_ray(wanted, fleet, absent)
        head.rows["nodes"] = []
        there = FleetState(instances={"node-1": InstanceState(release="r1", running="r1")})
        with pytest.raises(InvalidRequestError, match=r"could be read: none; not there any more: node-1"):
            survey_ray(wanted, fleet, there)


def test_a_node_that_does_not_say_whose_it_is_may_be_the_one_to_be_added():
    wanted = RayRelease(cluster="ray", release="r2", artefact=ARCHIVE, nodes=("node-1",))
    with fake_head() as head:
        fleet, absent = (
            told(head),
            FleetState(instances={"node-1": InstanceState(release=None, running=None)}),
        )
        assert survey_ray(wanted, fleet, absent).strangers == ()
        head.rows["nodes"] = [node("n1")]
        with pytest.raises(InvalidRequestError, match=r"service of node-1 runs already, .*\(10\.77\.0\.2\)"):
            survey_ray(wanted, fleet, absent)
        assert survey_ray(wanted.model_copy(update={"nodes": ()}), fleet, absent).strangers[0].node_id == "n1"


def test_failures_are_counted_by_node_without_those_that_are_accepted():
    wanted = RayRelease(cluster="ray", release="r2", artefact=ARCHIVE, accept_lost=("mine",))
    failed = {"state": "FAILED", "error_type": "OUT_OF_MEMORY"}
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", "node-1")]
        head.rows["tasks"] = [task("t1", **failed), task("t2", "mine", **failed)]
        before = FleetState(instances={"node-1": InstanceState(release="r1", running="r1")})
        assert survey_ray(wanted, told(head), before).failed_tasks == {"n1": 1}


# --- jobs ----------------------------------------------------------------------------------------------


def test_a_job_runs_where_it_is_pinned_with_its_environment(lab):
    cluster, node = lab.cluster, ray.node_of(lab.cluster, "node-2")
    ray_jobs.submit(cluster, 'echo "it is $WHAT"', job_id="test.pinned", host="node-2", env={"WHAT": "here"})
    job = ray_jobs.wait_for(cluster, "test.pinned", timeout_s=60)
    assert node
    assert (job.status, job.node_id) == ("SUCCEEDED", node.node_id)
    assert "it is here" in ray_jobs.logs(cluster, "test.pinned")
    with pytest.raises(RayClusterError, match=r"answered 500 .*test\.pinned already exists"):
        ray_jobs.submit(cluster, "true", job_id="test.pinned", host=None, env={})
    ray_jobs.discard(cluster, "test.pinned")
    assert ray_jobs.job(cluster, "test.pinned") is None
    ray_jobs.discard(cluster, "test.pinned")
    assert ray_jobs.logs(cluster, "test.unknown") == ""


def test_a_job_that_nothing_can_run_waits_whatever_it_is_told(lab):
    """See test_ray_node for what becomes of it once the node is there."""
    cluster = lab.cluster
    ray_jobs.submit(cluster, "true", job_id="test.nowhere", host="no-such-node", env={})
    job = ray_jobs.wait_for(cluster, "test.nowhere", timeout_s=2)
    assert (job.status, job.node_id, job.has_ended) == ("PENDING", None, False)
    ray_jobs.discard(cluster, "test.nowhere")
    job = ray_jobs.wait_for(cluster, "test.nowhere", timeout_s=2)
    assert job.is_waiting


def test_a_job_that_runs_is_ended_when_it_is_discarded(lab, tmp_path):
    cluster, mark = lab.cluster, tmp_path / "mark"
    ray_jobs.submit(cluster, f"touch {mark}; sleep 60", job_id="test.long", host=None, env={})
    wait_until(mark.exists, timeout_s=60, what="the job to run")
    ray_jobs.discard(cluster, "test.long")
    left = ray_jobs.job(cluster, "test.long")  # for a moment it may be listed once more
    assert left is None or left.has_ended
    with pytest.raises(RayClusterError, match=r"does not know job test\.unknown"):
        ray_jobs.wait_for(cluster, "test.unknown", timeout_s=2)


def test_how_often_actors_may_be_restarted_is_not_known_where_no_job_ends_in_time(lab):
    dead = lab.cluster.model_copy(update={"canary_timeout_s": 0.1})
    assert ray_jobs.restart_limits(dead) == {}
