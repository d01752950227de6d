"""Plans of a model's release: which way it goes, in which order, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.change import ModelDirectory, ModelRelease
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState
from rules.model_actions import DrainRequests, HotSwap, MemoryLimit
from rules.model_plan import ModelSituation, ServerSituation, plan_model
from rules.plan import Plan, RehearseSwitch, RestartService, SwitchRelease, applied
from rules.serving import DeclaredPrompt, ModelServing, ServedBefore
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.strategy_checklist import strategy_findings
from rules.undo import RestoreModel, undone
from tests.rules.builders import NEW, OLD, fleet, situations, state

CHANGE = ModelRelease(
    model="web", release=NEW, artefact=ModelDirectory(path="/srv/model-2.0", sha256="b" * 64)
)
SERVING = ModelServing(prompts=(DeclaredPrompt(name="greeting", text="Hello"),))
OTHER_TENSORS = ("the tensor lm_head.weight has another shape",)


def serving(members: Fleet) -> Fleet:
    return members.model_copy(update={"serving": SERVING})


def situation(members: Fleet, refusals: tuple[str, ...] = (), **fields) -> ModelSituation:
    server = ServerSituation(swap_refusals=refusals, served=ServedBefore(), **fields)
    return ModelSituation(servers=dict.fromkeys(members.names, server))


def plan(strategy, refusals=(), *, way="auto", members=None, before=None, **fields) -> Plan:
    members = serving(members or fleet())
    change = CHANGE.model_copy(update={"way": way})
    seen = situation(members, refusals, **fields)
    return plan_model(change, strategy, members, before or state(members), situation=seen)


def kinds(of: Plan) -> list[str]:
    return [step.action.action for step in of.steps]


@st.composite
def model_situations(draw):
    members, before, strategy = draw(situations())
    members = serving(members)
    refusals = draw(st.sampled_from([(), OTHER_TENSORS]))
    return members, before, strategy, situation(members, refusals)


@given(model_situations(), st.data())
def test_undoing_any_number_of_steps_newest_first_is_the_state_before(drawn, data):
    members, before, strategy, seen = drawn
    planned = plan_model(CHANGE, strategy, members, before, situation=seen)
    now = before
    done = data.draw(st.integers(0, len(planned.steps)))
    for step in planned.steps[:done]:
        now = applied(now, step.action, CHANGE)
    for step in reversed(planned.steps[:done]):
        now = undone(now, step.undo) if step.undo else now
    assert now.differences(before) == ()


@given(model_situations())
def test_a_plan_survives_json_and_every_change_has_its_way_back(drawn):
    members, before, strategy, seen = drawn
    planned = plan_model(CHANGE, strategy, members, before, situation=seen)
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
    now: FleetState = before
    for step in planned.steps:
        then = applied(now, step.action, CHANGE)
        assert step.undo is not None or then == now, step.title
        now = then
    assert planned.after == now


def test_in_place_cuts_the_traffic_before_it_stops_and_gives_it_back_after_the_tests():
    planned = plan(InPlace(instance="blue-1"), OTHER_TENSORS, last_start_s=28.0, members=fleet(blue=1))
    assert kinds(planned) == [
        "stage_release",
        "drain_server",
        "drain_requests",
        "switch_release",
        "restart_service",
        "probe_instance",
        "verify_model",
        "test_inference",
        "rejoin_server",
    ]
    assert planned.interruptions == (
        "blue-1 serves nobody while it is drained and started again (its last start took 28 s)",
    )


def test_without_a_balancer_the_interruption_is_announced_all_the_same():
    bare = fleet().model_copy(update={"route": None})
    planned = plan(InPlace(instance="blue-1"), OTHER_TENSORS, members=bare)
    assert "drain_server" not in kinds(planned)
    assert planned.interruptions == ("blue-1 does not answer while it restarts into 2.0",)


def test_where_others_serve_meanwhile_nobody_notices_and_no_user_sees_what_is_not_verified():
    assert plan(InPlace(instance="blue-1"), OTHER_TENSORS).interruptions == ()
    swapped = kinds(plan(InPlace(instance="blue-1")))
    assert swapped.index("drain_server") < swapped.index("hot_swap")
    assert swapped.index("verify_model") < swapped.index("rejoin_server")


def test_a_swap_that_is_safe_is_taken_and_interrupts_nobody():
    planned = plan(InPlace(instance="blue-1"), members=fleet(blue=1))
    assert kinds(planned) == [
        "stage_release",
        "switch_release",
        "hot_swap",
        "verify_model",
        "test_inference",
    ]
    assert planned.interruptions == ()
    back = {step.undo for step in planned.steps if isinstance(step.action, SwitchRelease | HotSwap)}
    assert back == {RestoreModel(instance="blue-1", release=OLD, running=OLD, hot=True)}
    assert any("swapped hot" in note for note in planned.notes)


def test_who_asks_for_a_restart_gets_one():
    planned = plan(InPlace(instance="blue-1"), way="restart")
    assert any(isinstance(step.action, RestartService) for step in planned.steps)
    assert any("that way was asked for" in note for note in planned.notes)


def test_a_hot_swap_that_may_kill_the_server_is_refused_with_the_reason():
    with pytest.raises(InvalidRequestError, match=r"blue-1: the tensor lm_head.*Nothing was touched"):
        plan(InPlace(instance="blue-1"), OTHER_TENSORS, way="hot_swap")


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary()], ids=lambda s: s.strategy)
def test_sides_are_updated_where_no_user_is_and_pass_their_checklist(strategy):
    members = serving(fleet())
    planned = plan(strategy, OTHER_TENSORS)
    assert isinstance(planned.steps[0].action, RehearseSwitch)
    assert planned.touched == {"green-1", "green-2"}
    findings = strategy_findings(planned, members, requests_per_s=500.0)
    assert {name: found.words for name, found in findings.items() if found.result != "passed"} == {}


def test_rolling_stages_all_first_then_drains_one_after_the_other_and_passes_its_checklist():
    members = serving(fleet())
    planned = plan(Rolling(), OTHER_TENSORS)
    assert kinds(planned)[:3] == ["stage_release", "stage_release", "drain_server"]
    findings = strategy_findings(planned, members, requests_per_s=None)
    assert {name: found.words for name, found in findings.items() if found.result != "passed"} == {}


def test_a_server_that_runs_nothing_is_not_waited_for():
    members = fleet()
    before = state(members)
    stopped = before.instances["green-1"].model_copy(update={"running": None})
    before = before.model_copy(update={"instances": {**before.instances, "green-1": stopped}})
    planned = plan(BlueGreen(), OTHER_TENSORS, members=members, before=before)
    waited = {step.action.instance for step in planned.steps if isinstance(step.action, DrainRequests)}
    assert waited == {"green-2"}


def test_too_little_memory_or_disk_is_refused_before_anything_is_touched():
    members = serving(fleet())
    seen = situation(members).model_copy(update={"faults": ("GPU 0 has 2 GiB free, 9 GiB are needed",)})
    with pytest.raises(InvalidRequestError, match=r"9 GiB are needed\. Nothing was touched"):
        plan_model(CHANGE, BlueGreen(), members, state(members), situation=seen)


def test_gpus_are_looked_at_last_where_there_are_any():
    limit = MemoryLimit(gpu=0, most_bytes=10, words="8 before and 2 more")
    planned = plan(InPlace(instance="blue-1"), OTHER_TENSORS, memory=(limit,))
    assert kinds(planned)[-2:] == ["check_memory", "rejoin_server"]


def test_there_is_nothing_to_do_where_users_have_it_already():
    members = fleet()
    assert plan(BlueGreen(), members=members, before=state(members, release=NEW)).steps == ()


def test_a_fault_is_told_even_where_users_have_a_release_of_that_name():
    members = serving(fleet())
    seen = ModelSituation(faults=("blue-1: 2.0 is there already with other flags",), servers={})
    with pytest.raises(InvalidRequestError, match=r"with other flags\. Nothing was touched"):
        plan_model(CHANGE, BlueGreen(), members, state(members, release=NEW), situation=seen)


def out_of_the_balancer(members: Fleet, *names: str) -> FleetState:
    before = state(members)
    return before.model_copy(update={"servers": {**before.servers, **dict.fromkeys(names, "maint")}})


def test_a_server_that_somebody_took_out_of_the_balancer_stays_out():
    members = fleet()
    before = out_of_the_balancer(members, "blue-1")
    planned = plan(InPlace(instance="blue-1"), OTHER_TENSORS, members=members, before=before)
    assert not {"drain_server", "rejoin_server"} & set(kinds(planned))
    assert planned.after.servers == before.servers


def test_the_last_one_that_takes_requests_is_alone_whoever_else_stands_beside_it():
    members = fleet(blue=2)
    before = out_of_the_balancer(members, "blue-2")
    restarted = plan(InPlace(instance="blue-1"), OTHER_TENSORS, members=members, before=before)
    assert [words.partition(" while")[0] for words in restarted.interruptions] == ["blue-1 serves nobody"]
    swapped = plan(InPlace(instance="blue-1"), members=members, before=before)
    assert "drain_server" not in kinds(swapped)
    dead = before.instances["blue-2"].model_copy(update={"running": None})
    before = state(members)
    before = before.model_copy(update={"instances": {**before.instances, "blue-2": dead}})
    assert plan(InPlace(instance="blue-1"), OTHER_TENSORS, members=members, before=before).interruptions


def test_other_flags_are_another_change_that_staging_has_not_vouched_for():
    fp8 = CHANGE.model_copy(update={"flags": {"quantization": "fp8"}})
    assert CHANGE.id != fp8.id
    assert CHANGE.id == CHANGE.model_copy(update={"way": "restart"}).id
    two = {"context-length": 1, "tp-size": 2}
    turned = dict(reversed(two.items()))
    ids = {CHANGE.model_copy(update={"flags": flags}).id for flags in (two, turned)}
    assert len(ids) == 1


def test_a_server_that_did_not_answer_before_comes_back_to_the_balancer_as_it_was():
    members = fleet(blue=1)
    before = state(members)
    dead = before.instances["blue-1"].model_copy(update={"running": None})
    before = before.model_copy(update={"instances": {**before.instances, "blue-1": dead}})
    planned = plan(InPlace(instance="blue-1"), OTHER_TENSORS, members=members, before=before)
    drains = [step.undo for step in planned.steps if step.action.action == "drain_server"]
    assert all(not undo.answered for undo in drains)
