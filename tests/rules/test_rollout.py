"""Plans: their order, their way back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.errors import InvalidRequestError
from rules.fleet import FleetState
from rules.plan import Plan, RehearseSwitch, RestartService, SetTraffic, WatchSide, applied
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.traffic import Traffic
from rules.undo import RemoveRehearsal, RestoreTraffic, UndoStep, undone
from tests.rules.builders import CHANGE, NEW, OLD, bare_fleet, fleet, situations, state


def kinds(plan: Plan) -> list[str]:
    return [step.action.action for step in plan.steps]


def after_steps(plan: Plan, count: int) -> tuple[FleetState, list[UndoStep]]:
    now, ways_back = plan.before, []
    for step in plan.steps[:count]:
        now = applied(now, step.action, CHANGE)
        if step.undo:
            ways_back.append(step.undo)
    return now, ways_back


@given(situations(), st.data())
@settings(max_examples=300)
def test_undoing_any_number_of_steps_newest_first_is_identity(situation, data):
    members, before, strategy = situation
    plan = plan_rollout(CHANGE, strategy, members, before)
    done = data.draw(st.integers(0, len(plan.steps)))
    now, ways_back = after_steps(plan, done)
    for step in reversed(ways_back):
        now = undone(now, step)
    assert now.differences(before) == ()


@given(situations(), st.data())
def test_undoing_twice_and_undoing_what_never_happened_is_the_same(situation, data):
    members, before, strategy = situation
    plan = plan_rollout(CHANGE, strategy, members, before)
    if not plan.steps:
        return
    done = data.draw(st.integers(1, len(plan.steps)))
    _, ways_back = after_steps(plan, done)
    without_last, _ = after_steps(plan, done - 1)
    for reached in (without_last, after_steps(plan, done)[0]):
        now = reached
        for step in reversed(ways_back):
            now = undone(undone(now, step), step)
        assert now.differences(before) == ()


@given(situations())
def test_a_plan_survives_json_and_every_change_has_its_way_back(situation):
    members, before, strategy = situation
    plan = plan_rollout(CHANGE, strategy, members, before)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    now = plan.before
    for step in plan.steps:
        then = applied(now, step.action, CHANGE)
        assert step.undo is not None or then == now, f"{step.title} changes the system and cannot be undone"
        now = then
    assert plan.after == now


@given(situations())
def test_after_a_plan_users_get_the_new_release(situation):
    members, before, strategy = situation
    plan = plan_rollout(CHANGE, strategy, members, before)
    if isinstance(strategy, InPlace):
        served = [plan.after.instances[strategy.instance]]
    else:
        served = [plan.after.instances[i.name] for i in members.side(plan.after.traffic.live)]
    assert all(one.running == NEW and one.release == NEW for one in served)
    assert plan.after.traffic.canary_basis_points == 0


def test_canary_moves_traffic_only_after_all_of_green_is_tested_and_each_step_is_watched():
    plan = plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))
    update = ["stage_release", "switch_release", "restart_service", "probe_instance", "test_instance"]
    assert kinds(plan) == [
        "rehearse_switch",
        *update,
        *update,
        *["set_traffic", "watch_side"] * 4,
        "set_traffic",
    ]
    shares = [s.action.traffic.canary_basis_points for s in plan.steps if isinstance(s.action, SetTraffic)]
    assert shares == [1000, 2500, 5000, 10_000, 0]


@pytest.mark.parametrize(
    ("strategy", "shares"),
    [
        (BlueGreen(), [("blue", 0), ("green", 0), ("blue", 0)]),
        (Canary(), [("blue", 0), ("blue", 1000), ("green", 0), ("blue", 0)]),
    ],
)
def test_switch_and_switch_back_are_rehearsed_before_anything_is_changed(strategy, shares):
    plan = plan_rollout(CHANGE, strategy, fleet(), state(fleet()))
    first, *rest = plan.steps
    assert isinstance(first.action, RehearseSwitch)
    assert first.undo == RemoveRehearsal()
    assert [(split.live, split.canary_basis_points) for split in first.action.splits] == shares
    assert first.action.splits[0] == first.action.splits[-1] == plan.before.traffic
    assert not any(isinstance(step.action, RehearseSwitch) for step in rest)


@pytest.mark.parametrize("strategy", [Rolling(), InPlace(instance="blue-1")])
def test_where_traffic_is_not_switched_no_switch_is_rehearsed(strategy):
    plan = plan_rollout(CHANGE, strategy, fleet(), state(fleet()))
    assert "rehearse_switch" not in kinds(plan)


def test_every_traffic_step_of_a_canary_goes_straight_back_to_the_beginning():
    plan = plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))
    back = {s.undo for s in plan.steps if isinstance(s.action, SetTraffic)}
    assert back == {RestoreTraffic(traffic=Traffic(live="blue", candidate="green"))}


def test_canary_is_compared_with_stable_as_long_as_stable_has_traffic():
    plan = plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))
    watched = [s.action for s in plan.steps if isinstance(s.action, WatchSide)]
    assert [(w.share, w.stable) for w in watched] == [
        (1000, "blue"),
        (2500, "blue"),
        (5000, "blue"),
        (10_000, None),
    ]


def test_rolling_drains_updates_rejoins_and_observes_each_batch_before_the_next():
    plan = plan_rollout(CHANGE, Rolling(), fleet(), state(fleet()))
    update = ["stage_release", "switch_release", "restart_service", "probe_instance", "test_instance"]
    assert kinds(plan) == ["drain_server", *update, "rejoin_server", "observe_batch"] * 2
    assert plan.interruptions == ()


def test_in_place_announces_its_interruption():
    plan = plan_rollout(CHANGE, InPlace(), bare_fleet(), state(bare_fleet()))
    assert len(plan.interruptions) == 1
    restart = next(s for s in plan.steps if isinstance(s.action, RestartService))
    assert "does not answer while it restarts" in restart.interrupts


@pytest.mark.parametrize("strategy", [InPlace(instance="blue-1"), BlueGreen(), Canary(), Rolling()])
def test_a_release_that_users_have_already_needs_no_steps(strategy):
    members = fleet()
    plan = plan_rollout(CHANGE, strategy, members, state(members, release=NEW))
    assert plan.steps == ()


@pytest.mark.parametrize(
    ("strategy", "members", "words"),
    [
        (BlueGreen(), bare_fleet(2), "use rolling or in_place"),
        (Canary(), bare_fleet(1), "use rolling or in_place"),
        (InPlace(), fleet(), "name the one to update in place"),
        (InPlace(instance="red-1"), fleet(), "no instance red-1"),
        (Rolling(batch_size=2, max_unavailable=2), fleet(), "would take out all 2 instances"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(strategy, members, words):
    with pytest.raises(InvalidRequestError, match=words):
        plan_rollout(CHANGE, strategy, members, state(members))


def test_a_canary_that_somebody_else_has_begun_is_refused():
    members = fleet()
    under_way = Traffic(live="blue", candidate="green", canary_basis_points=500)
    before = state(members).model_copy(update={"traffic": under_way})
    with pytest.raises(InvalidRequestError, match="already gets 5 %"):
        plan_rollout(CHANGE, Canary(), members, before)


def test_rolling_counts_those_that_are_out_already():
    members = fleet(blue=3)
    before = state(members)
    sick = before.instances["blue-2"].model_copy(update={"running": None})
    before = before.model_copy(update={"instances": {**before.instances, "blue-2": sick}})
    with pytest.raises(InvalidRequestError, match=r"1 of 3 are out already \(blue-2\)"):
        plan_rollout(CHANGE, Rolling(), members, before)


def test_a_drained_idle_side_is_refused():
    members = fleet()
    before = state(members)
    before = before.model_copy(update={"servers": {**before.servers, "green-1": "maint"}})
    with pytest.raises(InvalidRequestError, match="green-1 on the idle side green is taken out"):
        plan_rollout(CHANGE, BlueGreen(), members, before)


@pytest.mark.parametrize("steps", [(), (50, 25, 100), (10, 50), (10, 10, 100), (0, 100), (10, 120)])
def test_canary_steps_must_rise_to_all(steps):
    with pytest.raises(ValidationError):
        Canary(steps_percent=steps)


def test_the_old_release_is_what_the_way_back_names_never_previous():
    plan = plan_rollout(CHANGE, Rolling(), fleet(), state(fleet()))
    named = {step.undo.release for step in plan.steps if step.undo and step.undo.undo == "restore_release"}
    assert named == {OLD}
