"""What is done to the nodes of a real Ray cluster at work, and how it is taken back."""

from __future__ import annotations

import logging

import pytest

from lab.ports import LOCALHOST, free_port, give_back
from lab.processes import wait_until
from lab.ray_cluster import LabRay
from rules.errors import CommandError, RevokedError, StepFailedError, UndoFailedError
from rules.fleet import Fleet, InstanceState, ReleaseDirectory
from rules.ray_actions import DrainNode, VerifyNode
from rules.undo import RestoreNode
from tasks import host as hosts
from tasks import ray_cluster as ray
from tasks import ray_jobs
from tasks.application import (
    current_release,
    read_instance,
    running_release,
    service_runs,
    wait_until_ready,
)
from tasks.ray_cluster import RayClusterError
from tasks.ray_node import drain_node, restore_node, stop_node, verify_node
from tests.tasks.ray_head import FakeHead, actor, fake_head, node, task, told
from tests.tasks.raying import DRIVER, SETTINGS, bring, change, hold, lab, recorded

__all__ = ["lab", "recorded"]  # fixtures

pytestmark = pytest.mark.xdist_group("ray")

NODE, OTHER, SPARE = "node-1", "node-2", "node-3"


def wanted() -> None:
    """The deployment goes on."""


def node_id(lab: LabRay, name: str = NODE) -> str:
    found = ray.node_of(lab.cluster, name)
    assert found
    return found.node_id


def drain(lab: LabRay, node: str, *, drain_s: float = 60, still_wanted=wanted) -> str:
    action = DrainNode(instance=NODE, node_id=node, drain_s=drain_s, reason="update to r2")
    return drain_node(
        lab.fleet, lab.fleet.instance(NODE), action, still_wanted=still_wanted, settings=SETTINGS
    )


def unfinished(lab: LabRay) -> list[ray_jobs.Job]:
    """Canaries of the node that may still run."""
    known = [job_id for job_id in ray_jobs.known(lab.cluster) if job_id.startswith(f"canary.{NODE}.")]
    jobs = [ray_jobs.job(lab.cluster, job_id) for job_id in known]
    return [job for job in jobs if job and not job.has_ended]


def verify(
    fleet: Fleet, old: str | None, *, release: str, actors: int = 0, accepted: tuple[str, ...] = ()
) -> str:
    action = VerifyNode(
        instance=NODE, old_node_id=old, actors_before=actors, failed_tasks_before=0, accept_lost=accepted
    )
    instance = fleet.instance(NODE)
    return verify_node(fleet, instance, action, release=release, still_wanted=wanted, settings=SETTINGS)


def restore(lab: LabRay, step: RestoreNode) -> None:
    restore_node(lab.fleet, lab.fleet.instance(step.instance), step, settings=SETTINGS)


def with_canary(lab: LabRay, canary: str, timeout_s: float = 60) -> Fleet:
    cluster = lab.cluster.model_copy(update={"canary": canary, "canary_timeout_s": timeout_s})
    return lab.fleet.model_copy(update={"ray": cluster})


# --- an update and its way back ---------------------------------------------------------------------

WORK = """\
import time, ray
ray.init(log_to_driver=False)
here = dict(num_cpus=0, resources={"node-1": 0.01})
Actor = ray.remote(type("Actor", (), {"there": lambda self: "there"}))
mortal = Actor.options(name="mortal", **here).remote()
lasting = Actor.options(name="lasting", max_restarts=-1, max_task_retries=-1, **here).remote()
ray.get([mortal.there.remote(), lasting.there.remote()])
once = ray.remote(lambda: time.sleep(12) or "once").options(name="once", max_retries=0, **here)
print(ray.get(once.remote()), flush=True)
while True:
    time.sleep(1)
    ray.get(lasting.there.remote())
"""


def test_a_node_at_work_is_updated_and_taken_back(lab, recorded):
    back, instance = recorded(NODE), lab.fleet.instance(NODE)
    assert back.node_id
    hold(lab, WORK, task_name="once")
    before = len(ray.actors(lab.cluster))
    words = drain(lab, back.node_id)
    assert "1 task was waited for; actors still there: " in words
    assert "mortal" in words
    wait_until(lambda: "once" in ray_jobs.logs(lab.cluster, DRIVER), timeout_s=20, what="the task's result")
    bring(lab, NODE, change(lab, "r2"))
    wait_until_ready(instance, "r2", timeout_s=60)
    new = node_id(lab)
    assert new != back.node_id
    lost = rf"{before - 1} actors, {before} before; mortal \(NODE_DIED\) are lost"
    with pytest.raises(StepFailedError, match=lost):
        verify(lab.fleet, back.node_id, release="r2", actors=before)
    words = verify(lab.fleet, back.node_id, release="r2", actors=before, accepted=("mortal",))
    assert "none lost that was not accepted" in words
    assert f"node {new[:12]} has r2; canary job done there" in words
    assert "says: r2" in words
    assert not unfinished(lab)
    restore(lab, back)
    assert (current_release(instance), running_release(instance)) == ("r1", "r1")
    restored = node_id(lab)
    assert restored not in (back.node_id, new)
    restore(lab, back)
    assert node_id(lab) == restored


def test_a_bad_release_comes_up_but_is_not_verified(lab, recorded):
    back = recorded(NODE)
    bring(lab, NODE, change(lab, "r3", "wrong version"))
    wait_until_ready(lab.fleet.instance(NODE), "r3", timeout_s=60)
    with pytest.raises(
        StepFailedError, match=r"canary job ended as FAILED: .* exit code 1[\s\S]* It wrote: "
    ):
        verify(lab.fleet, back.node_id, release="r3")
    assert not unfinished(lab)
    with pytest.raises(StepFailedError, match=r"has the label release=r3, not r2"):
        verify(lab.fleet, back.node_id, release="r2")
    with pytest.raises(StepFailedError, match="still the old one"):
        verify(lab.fleet, node_id(lab), release="r3")
    # without an entrypoint of the user's, the job says only where it runs and what is linked there. Fewer
    # actors than before are no loss where none died with the node: their users have ended them
    words = verify(with_canary(lab, ""), back.node_id, release="r3", actors=50)
    assert "linked r3" in words
    assert "50 before, none lost that was not accepted" in words


def test_an_idle_node_ends_by_itself_and_a_release_that_does_not_start_is_taken_back(lab, recorded):
    back, instance = recorded(NODE), lab.fleet.instance(NODE)
    assert "no task ran; the node ended by itself" in drain(lab, back.node_id)
    assert service_runs(instance)  # its `ray start --block` stays, so a start alone would do nothing
    assert "dead already" in drain(lab, back.node_id)
    with pytest.raises(CommandError, match="the node ended and was stopped"):
        bring(lab, NODE, change(lab, "r4", "crash at start"))
    assert read_instance(instance).running is None
    with pytest.raises(StepFailedError, match="lists no node with the label host=node-1"):
        verify(lab.fleet, back.node_id, release="r4")
    restore(lab, back)
    assert (current_release(instance), running_release(instance)) == ("r1", "r1")


def test_a_node_that_was_added_is_drained_and_stopped_when_taken_back(lab, recorded, tmp_path):
    step, instance, mark = recorded(SPARE), lab.fleet.instance(SPARE), tmp_path / "mark"
    assert (step.release, step.running, step.node_id) == (None, None, None)
    # the canary of a deployment that was killed: it waits for such a node, and would run on it
    job_id = f"canary.{SPARE}.0123"
    ray_jobs.submit(lab.cluster, f"sleep 5; touch {mark}", job_id=job_id, host=SPARE, env={})
    restore(lab, step)
    bring(lab, SPARE, change(lab, "r2"))
    wait_until_ready(instance, "r2", timeout_s=60)
    assert ray_jobs.wait_for(lab.cluster, job_id, timeout_s=60).status == "STOPPED"
    assert not mark.exists()
    restore(lab, step)
    assert read_instance(instance) == InstanceState(release=None, running=None, releases=("r2",))
    assert not service_runs(instance)
    restore(lab, step)
    stop_node(lab.fleet, instance, settings=SETTINGS)
    assert lab.alive().keys() == {NODE, OTHER}


# --- drain -------------------------------------------------------------------------------------------

LONG = """\
import time, ray
ray.init(log_to_driver=False)
here = dict(num_cpus=0, resources={"node-1": 0.01}, max_retries=0)
ray.get(ray.remote(lambda: time.sleep(300)).options(name="long-work", **here).remote())
"""


def test_an_unknown_node_is_no_drain_though_ray_calls_it_a_success(lab):
    unknown, cluster = "ab" * 28, lab.cluster
    argv = (cluster.program, "drain-node", "--address", cluster.gcs, "--node-id", unknown)
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test")
    assert hosts.run(lab.fleet.instance(NODE).host, (*argv, *why), check=False).returncode == 0
    with pytest.raises(
        StepFailedError, match=r"node abababababab is unknown to the cluster; nothing was drained"
    ):
        drain(lab, unknown)
    with pytest.raises(StepFailedError, match=r"is the node of node-2; nothing was drained"):
        drain(lab, node_id(lab, OTHER))
    assert lab.alive().keys() == {NODE, OTHER}


def test_at_the_deadline_nothing_is_stopped_and_the_tasks_are_named(lab, recorded, caplog):
    back = recorded(NODE)
    hold(lab, LONG, task_name="long-work")
    with pytest.raises(
        StepFailedError, match=r"still runs tasks after 3 s .*: long-work\. It was not stopped"
    ):
        drain(lab, back.node_id, drain_s=2.5)
    assert [task.name for task in ray.tasks(lab.cluster, back.node_id)] == ["long-work"]
    assert node_id(lab) == back.node_id  # listed as if nothing was: Ray does not tell that it drains
    # a job for it would wait for ever, and run once another node of that name is there
    with pytest.raises(StepFailedError, match="is PENDING after 3 s and was stopped"):
        verify(with_canary(lab, "echo here", timeout_s=3), "another", release="r1")
    with caplog.at_level(logging.WARNING):
        restore(lab, back)
    assert "node-1 is stopped although it still runs tasks" in caplog.text
    assert "long-work" in caplog.text
    assert node_id(lab) != back.node_id


# --- interruptions -----------------------------------------------------------------------------------


def test_a_killed_node_is_missed_before_another_is_started_in_its_place(lab, recorded):
    """Ray lists a killed node as alive for 17 s more."""
    back = recorded(NODE)
    lab.kill(NODE)
    assert node_id(lab) == back.node_id
    restore(lab, back)
    assert node_id(lab) != back.node_id
    found = ray.node(lab.cluster, back.node_id)
    assert found
    assert not found.is_alive


def test_without_its_head_a_way_back_says_so_and_stops_nothing(lab):
    now, port, instance = node_id(lab), free_port(), lab.fleet.instance(NODE)
    cluster = lab.cluster.model_copy(update={"dashboard": f"http://{LOCALHOST}:{port}"})
    away = lab.fleet.model_copy(update={"ray": cluster})
    step = RestoreNode(instance=NODE, release="r1", running="r1", node_id=now)
    with pytest.raises(RayClusterError, match="The Ray head does not answer"):
        restore_node(away, instance, step, settings=SETTINGS)
    give_back(port)
    assert service_runs(instance)
    assert node_id(lab) == now


# --- drain, by a head that says what a real one cannot be brought to say ------------------------------


def drain_told(fleet: Fleet, *, drain_s: float, between=wanted) -> str:
    action = DrainNode(instance=NODE, node_id="n1", drain_s=drain_s, reason="test")
    return drain_node(fleet, fleet.instance(NODE), action, still_wanted=between, settings=SETTINGS)


def test_three_readings_in_a_row_must_show_no_task():
    """What Ray knows of a task is a second old."""
    with fake_head() as head:
        head.rows["nodes"], head.rows["actors"] = [node("n1", NODE)], [actor("a1")]
        script = [[], [task("t1", "late")], [], [], [task("t2", "later")], [], [], [], []]

        def between() -> None:
            head.rows["tasks"] = script.pop(0)

        words = drain_told(told(head), drain_s=60, between=between)
    assert len(script) == 1
    assert "2 tasks were waited for" in words


def test_a_node_that_holds_no_actor_has_longer_to_end_by_itself():
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", NODE)]
        readings: list[None] = []

        def between() -> None:
            readings.append(None)
            if len(readings) == 5:
                head.rows["nodes"] = [node("n1", NODE, state="DEAD")]

        assert "the node ended by itself" in drain_told(told(head), drain_s=60, between=between)
        assert len(readings) == 5
        # what else may keep it, such as objects in its memory, is not waited for to the deadline
        head.rows["nodes"] = [node("n1", NODE)]
        assert "actors still there: none" in drain_told(told(head), drain_s=4)


def test_a_node_that_was_replaced_since_the_plan_is_not_taken_for_gone():
    """The one in its place would be stopped with all that runs there."""
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", NODE, state="DEAD"), node("n7", NODE, started=2)]
        with pytest.raises(StepFailedError, match=r"node n1 is dead, and n7 .*nothing was drained"):
            drain_told(told(head), drain_s=5)


def verify_told(head: FakeHead, **before) -> str:
    """Prove n2, in whose place n1 was; nothing is waited for."""
    fleet = told(head)
    head.rows["nodes"], head.jobs_ran_on = [node("n2", NODE, "r2")], "n2"
    known = {"old_node_id": "n1", "actors_before": 0, "failed_tasks_before": 0, **before}
    return verify_node(
        fleet,
        fleet.instance(NODE).model_copy(update={"start_timeout_s": 0.1}),
        VerifyNode(instance=NODE, **known),
        release="r2",
        still_wanted=wanted,
        settings=SETTINGS,
    )


def test_failures_of_before_and_on_other_nodes_are_not_laid_to_a_nodes_account():
    failed = {"state": "FAILED", "error_type": "OUT_OF_MEMORY"}
    with fake_head() as head:
        head.rows["tasks"] = [task("t1", "eats", **failed), task("t2", node_id="n3", **failed)]
        assert "1 failed tasks on this node, 1 before" in verify_told(head, failed_tasks_before=1)
        assert "0 failed tasks on this node" in verify_told(head, accept_lost=("eats",))
        head.rows["tasks"].append(task("t3", "cut", node_id="n2", state="FAILED", error_type="NODE_DIED"))
        with pytest.raises(StepFailedError, match=r"2 failed tasks on this .*cut \(NODE_DIED\)"):
            verify_told(head, failed_tasks_before=1)


def test_an_actor_that_was_on_its_way_before_is_not_waited_for():
    with fake_head() as head:
        head.rows["actors"] = [actor("a1", "waits", state="RESTARTING", node_id=None), actor("a2")]
        assert "2 actors, 2 before" in verify_told(head, actors_before=2, unsettled_before=("a1",))
        with pytest.raises(StepFailedError, match=r"waits do not come back within 0\.1 s"):
            verify_told(head, actors_before=2)


def test_what_is_taken_back_is_drained_before_its_link_changes(tmp_path):
    """A task that is waited for imports by the link."""
    program, seen = tmp_path / "ray", tmp_path / "seen"
    (tmp_path / "current").symlink_to("releases/r2")
    program.write_text(f"#!/bin/sh\nreadlink {tmp_path}/current >{seen}; exit 1\n")
    program.chmod(0o755)
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", NODE, "r2")]
        fleet = told(head, str(program))
        layout = ReleaseDirectory(root=str(tmp_path))
        instance = fleet.instance(NODE).model_copy(update={"layout": layout, "start_timeout_s": 0.1})
        # its service's commands do nothing, so no node comes back
        step = RestoreNode(instance=NODE, release="r1", running="r1", node_id="n1")
        head.dead_once = seen
        with pytest.raises(UndoFailedError, match="does not come back on r1"):
            restore_node(fleet, instance, step, settings=SETTINGS)
    assert seen.read_text() == "releases/r2\n"
    assert current_release(instance) == "r1"


def test_a_drain_ends_when_the_deployment_may_not_go_on():
    def revoked() -> None:
        raise RevokedError("the run was cancelled")

    with fake_head() as head:
        head.rows["nodes"], head.rows["tasks"] = [node("n1", NODE)], [task("t1")]
        with pytest.raises(RevokedError):
            drain_told(told(head), drain_s=60, between=revoked)


def test_a_head_that_does_not_answer_is_never_taken_for_no_tasks():
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", NODE)]

        def between() -> None:
            head.extra = {"warnings": ["Failed to query data from GCS"]}

        with pytest.raises(StepFailedError, match=r"still runs tasks.*Failed to query data from GCS"):
            drain_told(told(head), drain_s=5, between=between)


def test_a_head_that_forgot_the_node_in_mid_drain_proves_nothing():
    with fake_head() as head:
        head.rows["nodes"] = [node("n1", NODE)]
        with pytest.raises(StepFailedError, match="its head was restarted"):
            drain_told(told(head), drain_s=5, between=head.rows["nodes"].clear)


def test_the_token_goes_to_ray_by_its_environment_not_as_an_argument(tmp_path):
    program, seen, token_file = tmp_path / "ray", tmp_path / "seen", tmp_path / "token"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "$RAY_AUTH_MODE=$RAY_AUTH_TOKEN" >{seen}\n')
    program.chmod(0o755)
    token_file.write_text("a-secret\n")
    with fake_head() as head:
        head.token, head.rows["nodes"] = "a-secret", [node("n1", NODE)]
        head.rows["actors"] = [actor("a1")]
        fleet = told(head, str(program))
        with_token = fleet.ray_cluster.model_copy(update={"token_file": str(token_file)})
        drain_told(fleet.model_copy(update={"ray": with_token}), drain_s=60)
    assert seen.read_text().splitlines() == [
        *("drain-node", "--address", "127.0.0.1:6379", "--node-id", "n1"),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"),
        *("--deadline-remaining-seconds", "60", "token=a-secret"),
    ]
