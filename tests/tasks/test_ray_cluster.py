"""What a Ray head says, and above all what it leaves out: nothing that is missing is taken for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lab.ports import LOCALHOST, free_port, give_back
from rules.ray_cluster import RayCluster, RayNodeProbe
from tasks import ray_cluster as ray
from tasks.ray_api import ask
from tasks.ray_cluster import RayClusterError
from tests.tasks.ray_head import LIMIT, FakeHead, actor, dead, fake_head, node, task


@pytest.fixture
def head() -> Iterator[FakeHead]:
    with fake_head() as running:
        yield running


@pytest.fixture
def nowhere() -> Iterator[str]:
    port = free_port()
    yield f"http://{LOCALHOST}:{port}"
    give_back(port)


# --- nodes -----------------------------------------------------------------------------------------


def test_a_node_is_found_by_its_label(head):
    head.rows["nodes"] = [
        node("n0", is_head_node=True),
        node("n1", "node-1"),
        node("n2", "node-2", "r2"),
        node("n3", "node-2", "r3", state="DEAD"),
    ]
    assert [each.node_id for each in ray.nodes(head.cluster)] == ["n0", "n1", "n2"]
    found = ray.node_of(head.cluster, "node-2")
    assert found
    assert (found.node_id, found.release, found.is_alive) == ("n2", "r2", True)
    assert ray.node_of(head.cluster, "node-3") is None
    assert ray.running_release(head.probe("node-2")) == "r2"
    assert ray.running_release(head.probe("node-3")) is None


def test_of_two_nodes_with_one_label_the_newest_counts(head):
    """A raylet that was killed is listed alive for 17 s more, beside the one that took its place."""
    killed, new = node("killed", "node-1", "r1", started=5), node("new", "node-1", "r2", started=9)
    for rows in ([killed, new], [new, killed]):
        head.rows["nodes"] = rows
        assert ray.running_release(head.probe("node-1")) == "r2"


def test_the_head_is_no_instance_whatever_its_labels_say(head):
    head.rows["nodes"] = [node("n0", "node-1", is_head_node=True)]
    assert ray.node_of(head.cluster, "node-1") is None


def test_a_node_without_the_label_runs_no_known_release(head):
    head.rows["nodes"] = [node("n1", "node-1", "")]
    assert ray.running_release(head.probe("node-1")) is None


def test_a_dead_node_is_known_by_its_id_and_says_why(head):
    head.rows["nodes"] = [node("n1", "node-1", state="DEAD", state_message="Terminated due to preemption")]
    found = ray.node(head.cluster, "n1")
    assert found
    assert (found.is_alive, found.words) == (False, "Terminated due to preemption")
    assert ray.node(head.cluster, "n2") is None


def test_what_a_node_offers_is_told_by_name(head):
    head.rows["nodes"] = [node("n1", "node-1")]
    assert ray.resources(head.cluster, "n1") == {"CPU": 2.0, "node-1": 1.0}
    assert ray.resources(head.cluster, "n2") == {}


# --- actors and tasks ------------------------------------------------------------------------------


def test_restarts_that_a_drained_node_caused_do_not_count(head):
    restarts = {"num_restarts": "3", "num_restarts_due_to_node_preemption": "2"}
    head.rows["actors"] = [actor("a1", "counter", **restarts), actor("a2", state="RESTARTING", node_id=None)]
    counter, unnamed = ray.actors(head.cluster)
    assert (counter.name, counter.restarts, counter.max_restarts) == ("counter", 1, None)
    assert (unnamed.name, unnamed.node_id, unnamed.state) == ("Counter", "", "RESTARTING")


def test_the_driver_of_a_submitted_job_is_an_actor_named_after_the_job(head):
    name, namespace = "_ray_internal_job_actor_raysubmit_7", "SUPERVISOR_ACTOR_RAY_NAMESPACE"
    head.rows["actors"] = [actor("a1", name, ray_namespace=namespace)]
    assert [each.name for each in ray.actors(head.cluster)] == ["job raysubmit_7"]


def test_many_dead_actors_hide_none_that_lives(head):
    """A filter that Ray applies after it has cut its list would see the first 10,000 only, all dead."""
    head.rows["actors"] = [dead(f"d{n}", "", "RAY_KILL") for n in range(LIMIT)] + [actor("a1", "alive")]
    assert [each.name for each in ray.actors(head.cluster)] == ["alive"]


def test_an_actor_that_its_users_ended_is_not_lost(head):
    head.rows["actors"] = [
        dead("a1", "with its node", "NODE_DIED"),
        dead("a2", "killed by hand", "RAY_KILL"),
        dead("a3", "out of scope", "OUT_OF_SCOPE"),
        dead("a4", "its job ended", "OWNER_DIED", "Owner's worker process has crashed."),
        dead("a5", "its owner was on the node", "OWNER_DIED", "Owner's node has crashed."),
        dead("a6", "exit_actor", "WORKER_DIED", "Worker exit type: INTENDED_USER_EXIT Worker exit detail: …"),
        dead("a7", "crashed", "WORKER_DIED", "Worker exit type: SYSTEM_ERROR"),
        actor("a8", "init", state="DEAD", death_cause={"creation_task_failure_context": {}}),
        actor("a9", "elsewhere", state="DEAD", death_cause=None, node_id="n2"),
    ]
    assert ray.lost_actors(head.cluster, ["n1"]) == (
        "with its node (NODE_DIED)",
        "its owner was on the node (OWNER_DIED)",
        "crashed (WORKER_DIED)",
        "init (creation_task_failure_context)",
    )
    accepted = ("with its node", "its owner was on the node", "crashed")
    assert ray.lost_actors(head.cluster, ["n1"], accepted=accepted) == (
        "init (creation_task_failure_context)",
    )


@pytest.mark.parametrize(
    "state", ["RUNNING", "RUNNING_IN_RAY_GET", "RUNNING_IN_RAY_WAIT", "SUBMITTED_TO_WORKER"]
)
def test_a_task_on_a_node_counts_whatever_it_does_there(head, state):
    head.rows["tasks"] = [task("t1", state=state), task("t2", state=state, node_id="n2")]
    assert [each.task_id for each in ray.tasks(head.cluster, "n1")] == ["t1"]
    assert [each.task_id for each in ray.tasks(head.cluster)] == ["t1", "t2"]


def test_what_has_ended_or_is_nowhere_yet_or_is_a_call_is_no_running_task(head):
    states = ("FINISHED", "FAILED", "PENDING_ARGS_AVAIL", "PENDING_NODE_ASSIGNMENT")
    head.rows["tasks"] = [
        *(task(state, state=state) for state in states),
        task("call", type="ACTOR_TASK"),
        task("init", type="ACTOR_CREATION_TASK", node_id=None),
    ]
    assert ray.tasks(head.cluster) == ()


def test_a_long_queue_hides_no_running_task(head):
    queue = [task(f"q{n}", state="PENDING_NODE_ASSIGNMENT", node_id=None) for n in range(LIMIT + 1)]
    head.rows["tasks"] = [*queue, task("t1")]
    assert [each.task_id for each in ray.tasks(head.cluster, "n1")] == ["t1"]


def test_a_task_that_failed_by_its_own_exception_is_not_counted(head):
    head.rows["tasks"] = [
        task("t1", "own", state="FAILED", error_type="TASK_EXECUTION_EXCEPTION"),
        task("t2", "cancelled", state="FAILED", error_type="TASK_CANCELLED"),
        task("t3", "lost", state="FAILED", error_type="NODE_DIED"),
        task("t4", "elsewhere", state="FAILED", error_type="WORKER_DIED", node_id="n2"),
        task("t5", "call", state="FAILED", error_type="ACTOR_DIED", type="ACTOR_TASK"),
    ]
    assert ray.failed_tasks(head.cluster) == {"n1": ("lost (NODE_DIED)",), "n2": ("elsewhere (WORKER_DIED)",)}
    assert ray.failed_tasks(head.cluster, accepted=["lost"]) == {"n2": ("elsewhere (WORKER_DIED)",)}


# --- answers that are not whole --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"num_filtered": 7}, "0 of 7 listed"),
        ({"partial_failure_warning": "2 nodes did not answer"}, "2 nodes did not answer"),
        # this is what Ray says, with an empty list, when its control store fails
        ({"warnings": ["Failed to query data from GCS"]}, "Failed to query data from GCS"),
        ({"num_after_truncation": LIMIT}, "it looked at 10,000 only"),
    ],
)
def test_a_list_that_is_not_whole_is_never_taken_for_no_tasks(head, extra, words):
    assert ray.tasks(head.cluster, "n1") == ()
    head.extra = extra
    with pytest.raises(RayClusterError, match=words):
        ray.tasks(head.cluster, "n1")
    with pytest.raises(RayClusterError, match=r"all its nodes"):
        ray.nodes(head.cluster)
    assert ray.running_release(head.probe("node-1")) is None


def test_actors_that_ray_did_not_look_at_are_an_error(head):
    head.rows["actors"] = [actor("a1")]
    head.extra = {"total": 20_000}
    with pytest.raises(RayClusterError, match="it looked at 1 only"):
        ray.actors(head.cluster)


def test_what_ray_forgot_of_tasks_that_ended_is_no_error(head):
    head.extra = {"total": 120_000}
    assert ray.tasks(head.cluster) == ()


def test_failures_are_counted_as_far_as_ray_lists_them_but_not_when_it_cannot_look(head):
    head.rows["tasks"] = [task(f"t{n}", state="FAILED", error_type="NODE_DIED") for n in range(LIMIT + 5)]
    assert len(ray.failed_tasks(head.cluster)["n1"]) == LIMIT
    head.extra = {"warnings": ["Failed to query data from GCS"]}
    with pytest.raises(RayClusterError, match="Failed to query"):
        ray.failed_tasks(head.cluster)


# --- heads that are none, or not for us --------------------------------------------------------------


def test_a_head_that_does_not_answer_is_an_error_and_runs_nothing(nowhere):
    with pytest.raises(RayClusterError, match=r"does not answer at http.*/api/v0/nodes: ConnectError"):
        ray.node_of(RayCluster(name="ray", dashboard=nowhere), "node-1")
    assert ray.running_release(RayNodeProbe(dashboard=nowhere, node="node-1")) is None
    assert not ray.healthy(RayCluster(name="ray", dashboard=nowhere))


def test_a_head_that_is_busy_for_a_moment_is_asked_again_but_not_told_twice(head):
    head.rows["nodes"], head.failures = [node("n1", "node-1")], 2
    assert len(ray.nodes(head.cluster)) == 1
    head.failures, asked = 3, len(head.asked)
    with pytest.raises(RayClusterError, match="answered 503"):
        ray.nodes(head.cluster)
    assert len(head.asked) == asked + 3
    # a probe is asked again by who probes
    head.failures, asked = 1, len(head.asked)
    assert ray.running_release(head.probe("node-1")) is None
    assert len(head.asked) == asked + 1
    head.failures, asked = 1, len(head.asked)
    with pytest.raises(RayClusterError, match="answered 503"):
        ask(head.cluster, "POST", "api/jobs/")
    assert len(head.asked) == asked + 1


@pytest.mark.parametrize(
    "text", ["<html>Welcome to nginx!</html>", "[]", '{"result": true, "data": {}}', "null"]
)
def test_an_address_that_is_no_ray_head_is_told_apart(head, text):
    head.raw = (200, text)
    with pytest.raises(RayClusterError, match="does not answer as a Ray head does"):
        ray.nodes(head.cluster)
    with pytest.raises(RayClusterError, match="does not answer as a Ray head does"):
        ray.version(head.cluster)
    assert not ray.healthy(head.cluster)


def test_a_refusal_carries_the_heads_words(head):
    head.raw = (400, '{"result": false, "msg": "Given limit 20000 exceeds the supported limit 10000."}')
    with pytest.raises(RayClusterError, match=r"answered 400 .* exceeds the supported limit") as caught:
        ray.nodes(head.cluster)
    assert caught.value.status == 400
    head.raw = (500, "Traceback (most recent call last):\n  …\nValueError: Port out of range 0-65535\n")
    with pytest.raises(RayClusterError, match=r"answered 500 .* ValueError: Port out of range"):
        ray.nodes(head.cluster)


def test_the_token_is_read_at_each_request_and_never_told(head, tmp_path):
    token_file = tmp_path / "token"
    cluster = head.cluster.model_copy(update={"token_file": str(token_file)})
    with pytest.raises(RayClusterError, match="token cannot be read"):
        ray.version(cluster)
    head.token = "new-token"  # noqa: S105 - of a head that is none
    token_file.write_text("old-token\n")
    with pytest.raises(RayClusterError, match=r"answered 401 .* Its token is wrong or missing") as caught:
        ray.version(cluster)
    assert "old-token" not in str(caught.value)
    token_file.write_text("new-token\n")
    assert ray.version(cluster) == "2.60.0"
    assert ray.healthy(cluster)


@pytest.mark.parametrize("content", [b"a-secret\nsecond", "a-sécret".encode(), b"a-secret \xff", b"\n"])
def test_what_no_header_can_carry_is_refused_and_never_told(head, tmp_path: Path, content):
    """The HTTP library would show it in its own error."""
    token_file = tmp_path / "token"
    token_file.write_bytes(content)
    with pytest.raises(RayClusterError, match="holds no token") as caught:
        ray.version(head.cluster.model_copy(update={"token_file": str(token_file)}))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_address_with_a_password_is_refused():
    for dashboard in ("http://user:password@head:8265", "http://user@head:8265"):
        with pytest.raises(ValidationError, match="dashboard"):
            RayCluster(name="ray", dashboard=dashboard)
    assert RayCluster(name="ray", dashboard="http://head:8265/").dashboard == "http://head:8265/"


def test_a_probe_has_the_token_of_its_cluster(head, tmp_path: Path):
    head.token, head.rows["nodes"] = "secret", [node("n1", "node-1")]
    assert ray.running_release(head.probe("node-1")) is None
    token_file = tmp_path / "token"
    token_file.write_text("secret")
    probe = head.probe("node-1").model_copy(update={"token_file": str(token_file)})
    assert ray.running_release(probe) == "r1"
