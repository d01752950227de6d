"""The model of NixOS hosts: any part of any plan, taken back newest first, is the state before."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rules.fleet import FleetState
from rules.nixos import HostFacts, SystemNames
from rules.nixos_actions import (
    ActivateSystem,
    ArmGuard,
    ConfirmSystem,
    DisarmGuard,
    DropRoots,
    NixosAction,
    RebootHost,
    RestoreChannel,
    RestoreSystem,
    StageSystem,
    SwitchSystem,
    UpdateChannel,
    VerifySystem,
)
from rules.nixos_plan import plan_nixos
from rules.plan import Plan, Step, applied
from rules.system_change import NixosChannel, NixosClosures, NixosFlake
from rules.undo import AnyUndoStep, UndoStep, undone
from tests.rules.nixos_hosts import facts, release, situations, system

UNDO = TypeAdapter[UndoStep](AnyUndoStep)
CHANGES = ActivateSystem | SwitchSystem | RebootHost


def plan_of(drawn) -> Plan:
    change, strategy, of, before, known = drawn
    return plan_nixos(change, strategy, of, before, situation=known)


def by_host(plan: Plan) -> dict[str, list[Step]]:
    hosts: dict[str, list[Step]] = {}
    for step in plan.steps:
        if isinstance(step.action, NixosAction):
            hosts.setdefault(step.action.instance, []).append(step)
    return hosts


def gone(plan: Plan, count: int) -> tuple[FleetState, list[UndoStep]]:
    now, back = plan.before, []
    for step in plan.steps[:count]:
        now = applied(now, step.action, plan.change)
        back += [step.undo] if step.undo else []
    return now, back


@given(situations(), st.data())
def test_undoing_any_number_of_steps_newest_first_is_the_state_before(drawn, data):
    plan = plan_of(drawn)
    done = data.draw(st.integers(0, len(plan.steps)))
    now, back = gone(plan, done)
    for step in reversed(back):
        now = undone(undone(now, step), step)
    assert now.differences(plan.before) == ()


@given(situations(), st.data())
def test_undoing_what_never_happened_is_the_state_before_too(drawn, data):
    plan = plan_of(drawn)
    done = data.draw(st.integers(0, len(plan.steps)))
    now, _ = gone(plan, max(done - 1, 0))
    for step in reversed(gone(plan, done)[1]):
        now = undone(now, step)
    assert now.differences(plan.before) == ()


@given(situations())
def test_every_change_has_its_way_back_and_done_twice_is_done_once(drawn):
    plan, now = plan_of(drawn), plan_of(drawn).before
    for step in plan.steps:
        then = applied(now, step.action, plan.change)
        assert step.undo is not None or then == now, step.title
        assert applied(then, step.action, plan.change) == then
        now = then
    assert plan.after == now


@given(situations())
def test_a_plan_and_each_of_its_undo_steps_survive_json(drawn):
    plan = plan_of(drawn)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    for step in plan.steps:
        if step.undo:
            assert UNDO.validate_json(UNDO.dump_json(step.undo)) == step.undo
            assert step.undo.describe()


@given(situations())
def test_after_a_plan_each_host_that_it_changes_boots_and_runs_what_was_built_for_it(drawn):
    known, plan = drawn[-1], plan_of(drawn)
    for name, steps in by_host(plan).items():
        after = plan.after.instances[name]
        assert (after.release, after.running) == (known[name].built, known[name].built)
        assert {path for s in steps if (path := getattr(s.action, "path", None))} == {known[name].built}
    untouched = plan.before.instances.keys() - by_host(plan).keys()
    assert all(plan.after.instances[name] == plan.before.instances[name] for name in untouched)


@given(situations())
def test_the_guard_is_armed_before_the_first_activation_and_confirmed_after_all_else(drawn):
    for name, steps in by_host(plan_of(drawn)).items():
        actions = [step.action for step in steps]
        if not any(isinstance(action, CHANGES) for action in actions):
            assert not any(isinstance(action, ArmGuard | ConfirmSystem | StageSystem) for action in actions)
            continue
        before = list(takewhile(lambda action: not isinstance(action, CHANGES), actions))
        assert [a.action for a in before if not isinstance(a, UpdateChannel)] == ["stage_system", "arm_guard"]
        assert isinstance(actions[-1], ConfirmSystem)
        assert isinstance(actions[-2], VerifySystem), name
        assert sum(isinstance(action, ConfirmSystem | ArmGuard) for action in actions) == 2


@given(situations())
def test_nothing_becomes_what_boots_before_it_was_verified_where_it_can_be(drawn):
    change, plan = drawn[0], plan_of(drawn)
    for steps in by_host(plan).values():
        kinds = [s.action.action for s in steps if isinstance(s.action, CHANGES | VerifySystem)]
        if "activate_system" in kinds:
            assert kinds[:4] == ["activate_system", "verify_system", "switch_system", "verify_system"]
        elif kinds != ["verify_system"]:
            assert change.activate == "boot"
            assert kinds == ["switch_system", "reboot_host", "verify_system"]


@given(situations())
def test_every_way_back_names_what_was_recorded_and_a_host_by_itself_goes_back_to_the_same(drawn):
    known, plan = drawn[-1], plan_of(drawn)
    for name, steps in by_host(plan).items():
        fact = known[name]
        wanted = (fact.profile, fact.running, fact.generation, fact.failed_units)
        backs = {step.undo for step in steps if isinstance(step.undo, RestoreSystem)}
        assert len(backs) <= 1
        for back in backs:
            assert (back.release, back.running, back.generation, back.failed_before) == wanted
            assert {step.action.back for step in steps if isinstance(step.action, ArmGuard)} == backs
        others = {type(step.action): step.undo for step in steps if not isinstance(step.action, CHANGES)}
        assert others.get(ArmGuard, DisarmGuard(instance=name)) == DisarmGuard(instance=name)
        assert others.get(StageSystem, DropRoots(instance=name)) == DropRoots(instance=name)
        assert isinstance(others.get(UpdateChannel), RestoreChannel | None)


@given(situations())
def test_what_the_way_back_needs_is_kept_from_the_garbage_collector(drawn):
    for steps in by_host(plan_of(drawn)).values():
        kept = {path for s in steps if isinstance(s.action, StageSystem) for path in s.action.before}
        for back in (step.undo for step in steps if isinstance(step.undo, RestoreSystem)):
            assert {back.release, back.running} | ({back.booted} - {None}) <= kept


# --- the values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meant", "is_it"),
    [
        ("26.05.12.abc", True),
        ("26.05.1", False),
        ("26.05.12", False),
        ("0123456789abcdef", True),
        ("0123456", True),
        ("012345", False),
        ("123456789", False),
    ],
)
def test_a_revision_may_be_shortened_and_a_version_may_not(meant, is_it):
    assert SystemNames(version="26.05.12.abc", revision="0123456789abcdef").is_release(meant) is is_it


def test_without_a_revision_there_is_the_version_only():
    assert not SystemNames(version="26.05.12").is_release("0123456")


@pytest.mark.parametrize(
    ("fields", "awaits"),
    [
        ({}, False),
        ({"reboot_for": ("kernel",)}, False),
        ({"reboot_due_for": ("kernel",)}, True),
        ({"profile": system("a", 2), "reboot_for": ("kernel",)}, True),
        ({"profile": system("a", 2)}, False),
    ],
)
def test_a_host_awaits_a_reboot_when_what_it_boots_brings_another_kernel(fields, awaits):
    assert facts("a", **fields).awaits_reboot is awaits


@pytest.mark.parametrize(
    "path", ["/nix/store/short-web", "nix/store/" + "a" * 32 + "-web", "/nix/store/../x"]
)
def test_what_is_no_store_path_is_no_system(path):
    with pytest.raises(ValidationError):
        HostFacts.model_validate({**facts("a").model_dump(), "built": path})


def test_the_same_release_from_another_content_is_another_change():
    one, other = (release(source=NixosFlake(flake=f"git+https://x/infra?rev={rev}")) for rev in "ab")
    paths = {"a": system("a", 1)}, {"a": system("a", 2)}
    closures = [release(source=NixosClosures(paths=path)) for path in paths]
    assert len({change.id for change in (one, other, *closures, release(source=NixosChannel()))}) == 5
    assert one.id == one.model_copy(update={"reboot": "always", "activate": "boot"}).id
    assert one.target == "nixos-nodes"


@pytest.mark.parametrize("flake", ["-o", "infra#web", "#web", "a b", ""])
def test_a_flake_reference_names_no_output_and_is_no_option(flake):
    with pytest.raises(ValidationError):
        NixosFlake(flake=flake)
