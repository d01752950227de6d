"""The strategies' checklists: each row passes on a sound plan, and fails on what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.checklist import judge
from rules.environment import Stage
from rules.finding import Result
from rules.fleet import Fleet, SmokeTest
from rules.plan import DrainServer, ObserveBatch, Plan, RejoinServer, SetTraffic, SwitchRelease, TestInstance
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, Canary, CanaryLimits, InPlace, Rolling, Watching
from rules.strategy_checklist import STRATEGY_ITEMS, strategy_findings
from rules.traffic import Counts, Traffic
from rules.undo import RemoveRehearsal, RestoreServer, RestoreTraffic
from rules.verdict import CanaryEvidence, Outcome
from tests.rules.builders import CHANGE, NEW, bare_fleet, fleet, situations, state

PLENTY = 190.0
TESTED = {"smoke_tests": (SmokeTest(path="/"),)}
Situation = tuple[Plan, Fleet]
Change = Callable[[Plan, Fleet], Situation]


def sound(strategy: Any) -> Situation:
    members = fleet().model_copy(update=TESTED)
    return plan_rollout(CHANGE, strategy, members, state(members)), members


def findings(situation: Situation, requests_per_s: float | None = PLENTY) -> dict[str, Any]:
    return strategy_findings(*situation, requests_per_s=requests_per_s)


def results(situation: Situation, requests_per_s: float | None = PLENTY) -> dict[str, Result]:
    return {item: finding.result for item, finding in findings(situation, requests_per_s).items()}


# --- what can be wrong -----------------------------------------------------------------------------


def with_before(**update: Any) -> Change:
    return lambda plan, members: (
        plan.model_copy(update={"before": plan.before.model_copy(update=update)}),
        members,
    )


def with_instance(name: str, **update: Any) -> Change:
    def change(plan: Plan, members: Fleet) -> Situation:
        known = plan.before.instances
        sick = {**known, name: known[name].model_copy(update=update)}
        return with_before(instances=sick)(plan, members)

    return change


def with_server(name: str, admin: str) -> Change:
    return lambda plan, members: with_before(servers={**plan.before.servers, name: admin})(plan, members)


def with_members(*names: str, **update: Any) -> Change:
    """Only these instances, each changed so."""

    def change(plan: Plan, members: Fleet) -> Situation:
        kept = tuple(i.model_copy(update=update) for i in members.instances if i.name in names)
        return plan, members.model_copy(update={"instances": kept})

    return change


def with_fleet(**update: Any) -> Change:
    return lambda plan, members: (plan, members.model_copy(update=update))


def with_strategy(**update: Any) -> Change:
    def change(plan: Plan, members: Fleet) -> Situation:
        strategy = plan.strategy.model_copy(update=update)
        return plan.model_copy(update={"strategy": strategy}), members

    return change


def with_limits(**update: Any) -> Change:
    return with_strategy(watch=Watching(limits=CanaryLimits(**update)))


def without(*kinds: type) -> Change:
    return lambda plan, members: (
        plan.model_copy(update={"steps": tuple(s for s in plan.steps if not isinstance(s.action, kinds))}),
        members,
    )


def with_undo(kind: type, undo: Any) -> Change:
    def change(plan: Plan, members: Fleet) -> Situation:
        steps = [s.model_copy(update={"undo": undo}) if isinstance(s.action, kind) else s for s in plan.steps]
        return plan.model_copy(update={"steps": tuple(steps)}), members

    return change


def without_first_step(plan: Plan, members: Fleet) -> Situation:
    return plan.model_copy(update={"steps": plan.steps[1:]}), members


def with_rehearsal(*splits: Traffic) -> Change:
    def change(plan: Plan, members: Fleet) -> Situation:
        first = plan.steps[0]
        first = first.model_copy(update={"action": first.action.model_copy(update={"splits": splits})})
        return plan.model_copy(update={"steps": (first, *plan.steps[1:])}), members

    return change


def touching_the_live_side(plan: Plan, members: Fleet) -> Situation:
    step = plan.steps[-1].model_copy(update={"action": SwitchRelease(instance="blue-1")})
    return plan.model_copy(update={"steps": (*plan.steps, step)}), members


def unobserved(plan: Plan, members: Fleet) -> Situation:
    steps = [
        s.model_copy(update={"action": s.action.model_copy(update={"observe_s": 0.0})})
        if isinstance(s.action, ObserveBatch)
        else s
        for s in plan.steps
    ]
    return plan.model_copy(update={"steps": tuple(steps)}), members


HOME, AWAY = Traffic(live="blue", candidate="green"), Traffic(live="green", candidate="blue")
FIRST = Traffic(live="blue", candidate="green", canary_basis_points=1_000)
UNDER_WAY = Traffic(live="blue", candidate="green", canary_basis_points=500)
NOWHERE = RestoreTraffic(traffic=AWAY)
PAIRED = [
    ("two-sides", with_members("blue-1", "blue-2")),
    ("two-sides", with_before(traffic=Traffic(live="red", candidate="green"))),
    ("two-sides", with_before(traffic=None)),
    ("switch-rehearsed", without_first_step),
    ("switch-rehearsed", with_rehearsal(HOME, AWAY)),
    ("switch-rehearsed", with_rehearsal(HOME, HOME)),
    ("switch-rehearsed", without(SetTraffic)),
    ("way-back", with_undo(SetTraffic, NOWHERE)),
    ("way-back", with_undo(SetTraffic, None)),
    ("way-back", touching_the_live_side),
    ("way-back", without(SetTraffic)),
    ("way-back", with_before(traffic=None)),
]
FAILING: list[tuple[Any, str, Change]] = [
    *((BlueGreen(), f"blue-green-{name}", change) for name, change in PAIRED),
    *((Canary(), f"canary-{name}", change) for name, change in PAIRED),
    (BlueGreen(), "blue-green-idle-size", with_members("blue-1", "blue-2", "green-1")),
    (BlueGreen(), "blue-green-idle-quiet", with_before(traffic=UNDER_WAY)),
    (BlueGreen(), "blue-green-idle-ready", with_server("green-2", "maint")),
    (
        BlueGreen(),
        "blue-green-own-probes",
        with_members("blue-1", "green-1", probe=fleet().instances[0].probe),
    ),
    (BlueGreen(), "blue-green-own-probes", with_members("blue-1", "blue-2", "green-1", server="web")),
    (BlueGreen(), "blue-green-own-probes", with_instance("blue-1", running=None)),
    (BlueGreen(), "blue-green-smoke-tests", with_fleet(smoke_tests=())),
    (BlueGreen(), "blue-green-smoke-tests", without(TestInstance)),
    (Canary(), "canary-none-under-way", with_before(traffic=UNDER_WAY)),
    (Canary(), "canary-none-under-way", with_before(traffic=None)),
    (Canary(steps_percent=(50, 100)), "canary-first-step", with_fleet()),
    (Canary(), "canary-steps-rise", without(SetTraffic)),
    (
        Canary(),
        "canary-steps-rise",
        lambda plan, members: (plan.model_copy(update={"steps": plan.steps[:-4]}), members),
    ),
    (Canary(), "canary-limits", with_limits(success_error_ratio=0.1, failure_error_ratio=0.1)),
    (Canary(), "canary-traffic", with_strategy(watch=Watching(deadline_s=3))),
    (Canary(), "canary-traffic", with_limits(success_error_ratio=0.0)),
    (
        Canary(),
        "canary-traffic",
        with_strategy(watch=Watching(deadline_s=10, limits=CanaryLimits(no_data_after_s=0.1))),
    ),
    (Canary(), "canary-stable-healthy", with_instance("blue-2", running=None)),
    (Canary(), "canary-stable-healthy", with_server("blue-2", "drain")),
    (Canary(), "canary-switch-rehearsed", with_rehearsal(HOME, AWAY, HOME)),
    (Rolling(), "rolling-two-serve", with_members("blue-1", "green-1")),
    (Rolling(), "rolling-enough-left", with_strategy(max_unavailable=2)),
    (Rolling(), "rolling-all-healthy", with_instance("blue-2", running=None)),
    (Rolling(), "rolling-all-healthy", with_server("blue-2", "maint")),
    (Rolling(), "rolling-drain-and-rejoin", with_fleet(route=None)),
    (Rolling(), "rolling-drain-and-rejoin", without(DrainServer)),
    (Rolling(), "rolling-drain-and-rejoin", without(RejoinServer)),
    (Rolling(), "rolling-observed", unobserved),
    (Rolling(), "rolling-observed", without(ObserveBatch)),
    (Rolling(), "rolling-way-back", with_instance("blue-1", release=None)),
    (Rolling(), "rolling-way-back", with_undo(DrainServer, RestoreServer(instance="blue-1", admin="maint"))),
    (Rolling(), "rolling-way-back", with_undo(SwitchRelease, RemoveRehearsal())),
    (Rolling(), "rolling-way-back", without(DrainServer)),
]


@pytest.mark.parametrize(
    ("strategy", "size"), [(InPlace(instance="blue-1"), 0), (BlueGreen(), 8), (Canary(), 9), (Rolling(), 6)]
)
def test_every_row_is_answered_and_passes_on_a_sound_plan(strategy, size):
    found, items = results(sound(strategy)), STRATEGY_ITEMS[strategy.strategy]
    assert len(items) == size
    assert list(found) == [item.id for item in items]
    assert set(found.values()) <= {Result.PASSED}


@pytest.mark.parametrize(("strategy", "row", "change"), FAILING)
def test_a_row_fails_on_what_it_is_there_for(strategy, row, change):
    assert row in results(sound(strategy))
    assert results(change(*sound(strategy)))[row] is Result.FAILED


def test_each_row_is_among_those_that_are_shown_failing():
    shown = {row for _, row, _ in FAILING}
    assert shown == {item.id for items in STRATEGY_ITEMS.values() for item in items}


@pytest.mark.parametrize("strategy", ["blue_green", "canary", "rolling"])
def test_what_would_break_users_blocks_everywhere_and_all_of_it_in_production(strategy):
    items = STRATEGY_ITEMS[strategy]
    assert any(item.blocks_from is Stage.DEVELOPMENT for item in items)
    assert len(judge(items, {}, stage=Stage.PRODUCTION).blocking) == len(items)
    assert {item.section for item in items} == {"strategy"}


def test_unknown_traffic_is_unknown_and_a_person_may_answer_for_it():
    plan = sound(Canary())
    assert results(plan, None)["canary-traffic"] is Result.UNKNOWN
    (item,) = (item for item in STRATEGY_ITEMS["canary"] if item.id == "canary-traffic")
    assert item.attestable


@pytest.mark.parametrize(
    ("requests_per_s", "result"), [(0.0, Result.FAILED), (3.7, Result.FAILED), (3.8, Result.PASSED)]
)
def test_the_smallest_step_needs_its_requests_before_the_deadline(requests_per_s, result):
    # 112 requests at 10 % within 300 s are 3.74 requests per second
    finding = findings(sound(Canary()), requests_per_s)["canary-traffic"]
    assert finding.result is result
    assert "about 112 clean requests at 0.1 of the traffic within 300 s" in finding.evidence


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1])
def test_the_requests_it_asks_for_are_those_that_a_verdict_asks_for(limit):
    strict = with_limits(success_error_ratio=limit, failure_error_ratio=0.2)
    said = findings(strict(*sound(Canary())))["canary-traffic"].evidence
    needed = int(said.split(" clean requests")[0].rsplit(maxsplit=1)[-1])
    limits = CanaryLimits(success_error_ratio=limit, failure_error_ratio=0.2)
    for requests, outcome in ((needed, Outcome.PASS), (needed - 1, Outcome.HOLD)):
        seen = CanaryEvidence().observe(Counts(requests), Counts())
        assert seen.verdict(limits, elapsed_s=60).outcome is outcome


def test_few_requests_that_would_read_as_silence_are_not_enough_even_with_time():
    patient = with_strategy(watch=Watching(deadline_s=10_000))
    finding = findings(patient(*sound(Canary())), 1.0)["canary-traffic"]
    assert finding.result is Result.FAILED
    assert "but so few (3 in 30 s)" in finding.evidence


def test_a_failure_limit_above_the_guides_needs_a_persons_word():
    loose = with_limits(failure_error_ratio=0.2)(*sound(Canary()))
    assert results(loose)["canary-limits"] is Result.UNKNOWN


def test_rolling_without_a_balancer_says_who_will_notice():
    members = bare_fleet(3)
    plan = plan_rollout(CHANGE, Rolling(), members, state(members))
    found = strategy_findings(plan, members, requests_per_s=None)
    assert found["rolling-drain-and-rejoin"].result is Result.FAILED
    assert "notices its restart" in found["rolling-drain-and-rejoin"].evidence
    assert {f.result for row, f in found.items() if row != "rolling-drain-and-rejoin"} == {Result.PASSED}


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary(), Rolling()])
def test_a_plan_with_nothing_to_do_blocks_nowhere(strategy):
    members = fleet().model_copy(update=TESTED)
    plan = plan_rollout(CHANGE, strategy, members, state(members, release=NEW))
    assert plan.steps == ()
    found = findings((plan, members))
    report = judge(STRATEGY_ITEMS[strategy.strategy], found, stage=Stage.PRODUCTION)
    assert report.blocking == ()
    assert Result.NOT_APPLICABLE in {finding.result for finding in found.values()}


@given(situations(), st.none() | st.floats(0, 1e6))
def test_every_plan_that_can_be_made_passes_what_breaks_users(situation, requests_per_s):
    members, before, strategy = situation
    plan = plan_rollout(CHANGE, strategy, members, before)
    found = strategy_findings(plan, members, requests_per_s=requests_per_s)
    items = STRATEGY_ITEMS[strategy.strategy]
    assert list(found) == [item.id for item in items]
    assert judge(items, found, stage=Stage.DEVELOPMENT).blocking == ()
    assert all(finding.evidence.endswith(".") for finding in found.values())
