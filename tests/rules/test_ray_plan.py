"""Plans of a Ray cluster's nodes: the order of them, what is refused, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.change import RayRelease, ReleaseArchive
from rules.errors import InvalidRequestError
from rules.fleet import CommandService, Fleet, FleetState, Instance, InstanceState, ReleaseDirectory
from rules.plan import Plan, StageRelease, applied
from rules.ray_actions import VerifyNode
from rules.ray_cluster import RayActor, RayCluster, RayNode, RayNodeProbe, RayTask
from rules.ray_plan import RaySituation, plan_ray
from rules.strategy import BlueGreen, InPlace, Rolling
from rules.strategy_checklist import strategy_findings
from rules.undo import RestoreNode, undone
from tests.rules.builders import NEW, OLD

CLUSTER = RayCluster(name="main")
CHANGE = RayRelease(
    cluster="main", release=NEW, artefact=ReleaseArchive(path="/srv/code-2.0.tar.gz", sha256="c" * 64)
)


def node(name: str) -> Instance:
    return Instance(
        name=name,
        layout=ReleaseDirectory(root=f"/srv/{name}"),
        service=CommandService(start=("start",), stop=("stop",), status=("status",)),
        probe=RayNodeProbe(dashboard=CLUSTER.dashboard, node=name),
    )


def cluster(size: int = 3) -> Fleet:
    return Fleet(application="main", instances=tuple(node(f"w{n}") for n in range(1, size + 1)), ray=CLUSTER)


def state(of: Fleet, running: dict[str, str]) -> FleetState:
    return FleetState(
        instances={
            name: InstanceState(
                release=running.get(name),
                running=running.get(name),
                releases=(running[name],) if name in running else (),
            )
            for name in of.names
        }
    )


def situation(of: Fleet, before: FleetState, **fields) -> RaySituation:
    nodes = {
        name: RayNode(node_id=f"id-{name}", host=name, release=found.running, is_alive=True)
        for name, found in before.instances.items()
        if found.running
    }
    fields = {"head_version": "2.60.0", "versions": dict.fromkeys(of.names, "2.60.0"), **fields}
    return RaySituation(nodes=nodes, **fields)


def plan(strategy=Rolling(), running=("w1", "w2"), *, size=3, nodes=(), accept_lost=(), **fields) -> Plan:  # noqa: B008
    of = cluster(size)
    before = state(of, dict.fromkeys(running, OLD))
    change = CHANGE.model_copy(update={"nodes": tuple(nodes), "accept_lost": tuple(accept_lost)})
    return plan_ray(change, strategy, of, before, situation=situation(of, before, **fields))


def done_to(planned: Plan) -> list[tuple[str, str]]:
    return [(s.action.action, getattr(s.action, "instance", "")) for s in planned.steps]


@st.composite
def ray_situations(draw):
    of = cluster(draw(st.integers(1, 4)))
    releases = {name: draw(st.sampled_from([OLD, NEW, None])) for name in of.names}
    running = {name: release for name, release in releases.items() if release} or {"w1": OLD}
    before = state(of, running)
    nodes = draw(st.sets(st.sampled_from(of.names)))
    return of, before, CHANGE.model_copy(update={"nodes": tuple(sorted(nodes))})


@given(ray_situations(), st.data())
def test_undoing_any_number_of_steps_newest_first_is_the_state_before(drawn, data):
    of, before, change = drawn
    try:
        planned = plan_ray(change, Rolling(), of, before, situation=situation(of, before))
    except InvalidRequestError:
        return
    done = data.draw(st.integers(0, len(planned.steps)))
    now = before
    for step in planned.steps[:done]:
        then = applied(now, step.action, change)
        assert step.undo is not None or then == now, step.title
        now = then
    for step in reversed(planned.steps[:done]):
        now = undone(undone(now, step.undo), step.undo) if step.undo else now
    assert now.differences(before) == ()
    assert Plan.model_validate_json(planned.model_dump_json()) == planned


def test_nodes_are_drained_updated_and_verified_one_after_the_other():
    first = ["drain_node", "switch_release", "restart_service", "probe_instance", "verify_node"]
    planned = plan()
    assert done_to(planned) == [
        ("stage_release", "w1"),
        ("stage_release", "w2"),
        *((kind, "w1") for kind in first),
        ("observe_batch", ""),
        *((kind, "w2") for kind in first),
        ("observe_batch", ""),
    ]
    back = {step.undo for step in planned.steps[2:7] if step.undo}
    assert back == {RestoreNode(instance="w1", release=OLD, running=OLD, node_id="id-w1")}


def test_a_batch_is_drained_together():
    planned = plan(Rolling(batch_size=2, max_unavailable=2), ("w1", "w2", "w3"))
    drained = [name for kind, name in done_to(planned) if kind == "drain_node"]
    assert done_to(planned)[3:5] == [("drain_node", "w1"), ("drain_node", "w2")]
    assert drained == ["w1", "w2", "w3"]


def test_nodes_are_added_after_the_update_and_others_drained_and_stopped_last():
    planned = plan(nodes=("w2", "w3"))
    acts = [act for act in done_to(planned) if act[0] in ("drain_node", "restart_service", "stop_service")]
    assert acts == [
        ("drain_node", "w2"),
        ("restart_service", "w2"),
        ("restart_service", "w3"),
        ("drain_node", "w1"),
        ("stop_service", "w1"),
    ]
    assert planned.after.instances["w1"].running is None
    assert planned.after.instances["w3"].running == NEW
    assert {s.action.instance for s in planned.steps if isinstance(s.action, StageRelease)} == {"w2", "w3"}


def test_a_rolling_update_passes_the_strategys_checklist():
    planned = plan(nodes=("w2", "w3"), running=("w1", "w2"))
    findings = strategy_findings(planned, cluster(), requests_per_s=None)
    assert {name: found.evidence for name, found in findings.items() if found.result != "passed"} == {}


def test_in_place_updates_just_one_node():
    planned = plan(InPlace(instance="w2"))
    assert {name for _, name in done_to(planned) if name} == {"w2"}


def test_another_version_of_ray_is_refused_and_the_way_to_it_is_shown():
    with pytest.raises(InvalidRequestError, match=r"w1 has 2\.61\.0.*second cluster.*blue-green"):
        plan(versions={"w1": "2.61.0", "w2": "2.60.0", "w3": "2.60.0"})


def test_one_cluster_has_no_sides():
    with pytest.raises(InvalidRequestError, match="no sides for blue_green"):
        plan(BlueGreen())


def actor(max_restarts: int | None, restarts: int = 0, on: str = "w1") -> RayActor:
    return RayActor(
        actor_id="a",
        name="memory",
        node_id=f"id-{on}",
        state="ALIVE",
        max_restarts=max_restarts,
        restarts=restarts,
    )


@pytest.mark.parametrize(("most", "restarts"), [(0, 0), (2, 2)])
def test_an_actor_that_would_not_come_back_stops_the_plan(most, restarts):
    with pytest.raises(InvalidRequestError, match=r"for good.*memory"):
        plan(actors=(actor(most, restarts),))


def test_who_accepts_its_loss_by_name_may_go_on_and_users_are_told():
    planned = plan(actors=(actor(0),), accept_lost=("memory",))
    assert planned.interruptions == ("actors of w1 are ended, and start anew elsewhere: memory",)
    verified = [step.action for step in planned.steps if isinstance(step.action, VerifyNode)]
    assert {action.accept_lost for action in verified} == {("memory",)}


def test_what_was_wrong_before_is_not_laid_to_a_nodes_account():
    away = actor(None).model_copy(update={"actor_id": "b", "state": "RESTARTING", "node_id": ""})
    planned = plan(actors=(actor(-1), away), failed_tasks={"id-w2": 3})
    verified = [step.action for step in planned.steps if isinstance(step.action, VerifyNode)]
    assert [(a.unsettled_before, a.failed_tasks_before) for a in verified] == [(("b",), 0), (("b",), 3)]


def test_the_way_back_of_every_step_drains_as_long_as_the_cluster_is_declared_to():
    of = cluster().model_copy(update={"ray": CLUSTER.model_copy(update={"drain_s": 7.0})})
    before = state(of, dict.fromkeys(("w1", "w2"), OLD))
    change = CHANGE.model_copy(update={"nodes": ("w2", "w3")})
    planned = plan_ray(change, Rolling(), of, before, situation=situation(of, before))
    backs = [step.undo for step in planned.steps if isinstance(step.undo, RestoreNode)]
    assert {back.drain_s for back in backs} == {7.0}


def test_a_host_that_does_not_tell_its_version_is_not_called_one_of_another():
    with pytest.raises(InvalidRequestError, match=r"w1 would start cannot be told.*can be reached"):
        plan(versions={"w2": "2.60.0"})


@pytest.mark.parametrize(("most", "on"), [(-1, "w1"), (3, "w1"), (None, "w1"), (0, "w3")])
def test_actors_that_come_back_or_live_elsewhere_stop_nothing(most, on):
    assert plan(actors=(actor(most, on=on),)).steps


def test_what_ray_does_not_tell_is_told_to_the_approver():
    planned = plan(
        actors=(actor(None),),
        tasks=(RayTask(task_id="t", name="import", node_id="id-w2", max_retries=0),),
        strangers=(RayNode(node_id="x", host="lost", release="", is_alive=True),),
    )
    words = " ".join(planned.notes)
    assert "whether these actors may be restarted: memory" in words
    assert "no retries and are waited for: import" in words
    assert "not declared, and stay as they are: lost" in words
    assert "not in the cluster, and stay as they are: w3" in words


def test_the_last_worker_is_not_taken_away_and_not_all_at_once():
    with pytest.raises(InvalidRequestError, match="would take out all 2"):
        plan(Rolling(batch_size=2, max_unavailable=2))


@pytest.mark.parametrize(
    ("strategy", "fields", "words"),
    [
        (Rolling(), {"nodes": ("w9",)}, "has no node w9"),
        (Rolling(), {"running": ()}, "none to update"),
        (InPlace(instance="w3"), {}, "w3 is not in the cluster"),
        (InPlace(instance="w1"), {"nodes": ("w1",)}, "leave `nodes` empty"),
    ],
)
def test_what_makes_no_sense_is_refused(strategy, fields, words):
    with pytest.raises(InvalidRequestError, match=words):
        plan(strategy, **fields)


def test_there_is_nothing_to_do_where_all_nodes_have_it():
    of = cluster()
    before = state(of, {"w1": NEW, "w2": NEW})
    assert plan_ray(CHANGE, Rolling(), of, before, situation=situation(of, before)).steps == ()


def test_nodes_may_be_added_to_a_single_one_by_the_strategys_checklist():
    of, change = cluster(2), CHANGE.model_copy(update={"nodes": ("w1", "w2")})
    before = state(of, {"w1": NEW})
    planned = plan_ray(change, Rolling(), of, before, situation=situation(of, before))
    assert ("restart_service", "w2") in done_to(planned)
    findings = strategy_findings(planned, of, requests_per_s=None)
    assert {found.result for found in findings.values()} == {"passed", "not_applicable"}
