"""Plans of NixOS systems: their order, what is refused, what people are told, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given

from rules.errors import InvalidRequestError
from rules.fleet import Fleet
from rules.hosts import HostAddress
from rules.nixos import ClosureDifference, NixosProbe, UnitsAffected
from rules.nixos_actions import (
    ArmGuard,
    ReleaseRoots,
    RestoreChannel,
    RestoreSystem,
    StageSystem,
    UpdateChannel,
    VerifySystem,
)
from rules.nixos_plan import plan_nixos
from rules.plan import ObserveBatch, Plan
from rules.strategy import BlueGreen, Canary, InPlace, Rolling, Strategy
from rules.strategy_checklist import strategy_findings
from rules.system_change import NixosClosures
from tests.rules.nixos_hosts import (
    CHANNEL,
    RESTARTS,
    VERSION,
    bare,
    facts,
    host,
    planned,
    release,
    sides,
    situation,
    situations,
    state,
    system,
)

STAGED = ["stage_system", "arm_guard"]
LIVE = ["activate_system", "verify_system", "switch_system", "verify_system"]
REBOOT = ["reboot_host", "verify_system"]
CONFIRMED = ["confirm_system"]
KERNEL = {"reboot_for": ("kernel", "initrd")}


def kinds(plan: Plan) -> list[str]:
    return [step.action.action for step in plan.steps]


def done_to(plan: Plan) -> list[tuple[str, str]]:
    return [(s.action.action, getattr(s.action, "instance", "")) for s in plan.steps]


def findings(plan: Plan, of: Fleet) -> dict[str, str]:
    found = strategy_findings(plan, of, requests_per_s=500.0)
    return {name: finding.evidence for name, finding in found.items() if finding.result != "passed"}


def only(of: Fleet, **changed: dict[str, object]):
    """Return facts of hosts that have it already, but for those that are `changed`."""
    known = {name: facts(name, profile=system(name, 2)) for name in of.names}
    return known | {
        name.replace("_", "-"): facts(name.replace("_", "-"), **more) for name, more in changed.items()
    }


# --- the order -------------------------------------------------------------------------------------


def test_a_system_is_staged_guarded_tested_switched_to_and_confirmed():
    plan = planned(InPlace())
    assert kinds(plan) == [*STAGED, *LIVE, *CONFIRMED]
    defaults = [s.action.is_default for s in plan.steps if isinstance(s.action, VerifySystem)]
    assert defaults == [False, True]
    assert plan.finish == (ReleaseRoots(instance="node-1"),)


def test_a_host_on_a_channel_updates_it_first_and_goes_back_to_address_and_generation():
    plan = planned(InPlace(), change=release(source=CHANNEL))
    assert kinds(plan) == ["update_channel", *STAGED, *LIVE, *CONFIRMED]
    step = plan.steps[0]
    assert step.action == UpdateChannel(instance="node-1", channel="nixos", url=CHANNEL.url, content="c" * 64)
    assert step.undo == RestoreChannel(
        instance="node-1",
        channel="nixos",
        generation=3,
        path=facts("node-1").channels,
        url="https://channels.example/nixos-25.11",
    )


@pytest.mark.parametrize(
    ("reboot", "reboot_for", "is_rebooted"),
    [
        ("when_needed", (), False),
        ("when_needed", ("kernel",), True),
        ("always", (), True),
        ("never", ("kernel",), False),
    ],
)
def test_a_reboot_comes_last_before_the_confirmation_and_only_if_needed_or_asked_for(
    reboot, reboot_for, is_rebooted
):
    plan = planned(InPlace(), change=release(reboot=reboot), reboot_for=reboot_for)
    assert kinds(plan) == [*STAGED, *LIVE, *(REBOOT if is_rebooted else []), *CONFIRMED]
    assert ("node-1 is away while it reboots" in plan.interruptions) is is_rebooted


def test_what_cannot_be_activated_is_made_what_boots_and_booted():
    plan = planned(InPlace(), change=release(activate="boot"), init_changes=True)
    assert kinds(plan) == [*STAGED, "switch_system", *REBOOT, *CONFIRMED]
    assert [s.action.mode for s in plan.steps if s.action.action == "switch_system"] == ["boot"]
    assert plan.steps[4].action.booted
    assert plan.interruptions == ("node-1 is away while it reboots",)
    assert not any(", units: " in note for note in plan.notes)


def test_smoke_tests_come_before_the_switch_and_again_after_a_boot():
    of = bare().model_copy(update={"smoke_script": "curl --fail $INSTANCE_URL"})
    tested = [*LIVE[:2], "test_instance", *LIVE[2:]]
    assert kinds(planned(InPlace(), of)) == [*STAGED, *tested, *CONFIRMED]
    rebooted = planned(InPlace(), of, **KERNEL)
    assert kinds(rebooted) == [*STAGED, *tested, *REBOOT, "test_instance", *CONFIRMED]


def test_the_guard_takes_back_what_the_deployment_would():
    plan = planned(InPlace(), bare(guard_s=900.0), failed_units=("old.service",), answering=("http://a/",))
    back = RestoreSystem(
        instance="node-1",
        release=system("node-1", 1),
        running=system("node-1", 1),
        generation=7,
        booted=system("node-1", 1),
        failed_before=("old.service",),
        answering=("http://a/",),
    )
    armed = next(step.action for step in plan.steps if isinstance(step.action, ArmGuard))
    assert armed == ArmGuard(instance="node-1", guard_s=900.0, back=back)
    assert {s.undo for s in plan.steps if isinstance(s.undo, RestoreSystem)} == {back}
    assert "900 s of silence" in next(s.title for s in plan.steps if s.action == armed)


def test_where_a_reboot_was_due_already_the_kernel_is_recorded_too_so_that_the_new_one_does_not_stay():
    ran = system("node-1", 0)
    plan = planned(InPlace(), reboot_due_for=("kernel",), booted=ran, **KERNEL)
    assert {s.undo.booted for s in plan.steps if isinstance(s.undo, RestoreSystem)} == {ran}
    assert any("a reboot was due there already, for kernel" in note for note in plan.notes)


def test_what_somebody_tested_is_kept_and_gone_back_to_as_it_was():
    tried = system("node-1", 5)
    plan = planned(InPlace(), running=tried)
    (kept,) = (step.action.before for step in plan.steps if isinstance(step.action, StageSystem))
    assert kept == (system("node-1", 1), tried)
    back = next(step.undo for step in plan.steps if isinstance(step.undo, RestoreSystem))
    assert (back.release, back.running) == (system("node-1", 1), tried)
    assert any(f"node-1 runs {tried}" in note and "somebody tested it" in note for note in plan.notes)


# --- several hosts ---------------------------------------------------------------------------------


def test_hosts_are_staged_together_and_then_drained_updated_and_observed_one_after_the_other():
    plan = planned(Rolling(), sides())
    one = ["drain_server", "arm_guard", *LIVE, *CONFIRMED, "rejoin_server"]
    assert done_to(plan) == [
        ("stage_system", "blue-1"),
        ("stage_system", "blue-2"),
        *((kind, "blue-1") for kind in one),
        ("observe_batch", ""),
        *((kind, "blue-2") for kind in one),
        ("observe_batch", ""),
    ]
    assert plan.interruptions == ()
    assert findings(plan, sides()) == {}


def test_channels_are_updated_before_any_host_is_drained():
    plan = planned(Rolling(), sides(), release(source=CHANNEL))
    assert kinds(plan)[:4] == ["update_channel", "stage_system"] * 2
    assert findings(plan, sides()) == {}


def test_hosts_that_no_balancer_knows_are_observed_all_the_same():
    of = bare(3)
    plan = planned(Rolling(), of, units=RESTARTS)
    assert kinds(plan) == ["stage_system"] * 3 + ["arm_guard", *LIVE, *CONFIRMED, "observe_batch"] * 3
    observed = [step.action.instances for step in plan.steps if isinstance(step.action, ObserveBatch)]
    assert observed == [(name,) for name in of.names]
    assert set(findings(plan, of)) == {"rolling-drain-and-rejoin"}
    found = strategy_findings(plan, of, requests_per_s=None)["rolling-drain-and-rejoin"]
    assert found.result == "not_applicable"
    assert "units of node-3 stop or start anew: web.service" in found.evidence


def test_where_nothing_that_runs_is_stopped_a_missing_balancer_matters_to_nobody():
    of = bare(2)
    assert findings(planned(Rolling(), of), of) == {}


def test_a_host_that_has_it_already_is_left_alone():
    of = sides(blue=3)
    known = only(of, blue_2={})
    plan = plan_nixos(release(), Rolling(), of, state(of, known), situation=known)
    assert plan.touched == {"blue-2"}
    assert [s.action.instances for s in plan.steps if isinstance(s.action, ObserveBatch)] == [("blue-2",)]
    assert plan.finish == (ReleaseRoots(instance="blue-2"),)
    assert all(note.startswith("blue-2") for note in plan.notes)
    assert findings(plan, of) == {}


def test_a_batch_is_observed_without_those_that_had_it():
    of = sides(blue=3)
    known = only(of, blue_2={}, blue_3={})
    strategy = Rolling(batch_size=2, max_unavailable=2)
    plan = plan_nixos(release(), strategy, of, state(of, known), situation=known)
    observed = [s for s in plan.steps if isinstance(s.action, ObserveBatch)]
    assert [(s.title, s.action.instances) for s in observed] == [
        ("observe blue-2", ("blue-2",)),
        ("observe blue-3", ("blue-3",)),
    ]


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary()], ids=lambda s: s.strategy)
def test_sides_are_updated_where_no_user_is_and_pass_their_checklist(strategy):
    of = sides(urls=("http://green.example/",))
    own = tuple(
        i.model_copy(
            update={
                "nixos": i.nixos.model_copy(update={"urls": (f"http://{i.name}/",)}),
                "probe": NixosProbe(urls=(f"http://{i.name}/",)),
            }
        )
        for i in of.instances
    )
    of = of.model_copy(update={"instances": own})
    plan = planned(strategy, of, units=RESTARTS, **KERNEL)
    assert plan.touched == {"green-1", "green-2"}
    assert plan.interruptions == ()
    assert findings(plan, of) == {}


def test_hosts_without_urls_each_have_a_probe_of_their_own_and_no_smoke_test():
    of = sides()
    assert set(findings(planned(BlueGreen(), of), of)) == {"blue-green-smoke-tests"}
    tested = of.model_copy(update={"smoke_script": "true"})
    assert findings(planned(BlueGreen(), tested), tested) == {}


def test_two_hosts_at_one_address_have_one_probe():
    of = sides()
    same = tuple(i.model_copy(update={"host": HostAddress(address="one")}) for i in of.instances)
    of = of.model_copy(update={"instances": same})
    assert "blue-green-own-probes" in findings(planned(BlueGreen(), of), of)


def test_an_idle_host_that_has_it_is_verified_and_tested_before_it_gets_users():
    of = sides().model_copy(update={"smoke_script": "true"})
    known = only(of, blue_1={}, blue_2={}, green_2={})
    plan = plan_nixos(release(), BlueGreen(), of, state(of, known), situation=known)
    assert [kind for kind, name in done_to(plan) if name == "green-1"] == ["verify_system", "test_instance"]
    assert findings(plan, of) == {}


# --- who notices -----------------------------------------------------------------------------------


def test_in_place_one_of_several_behind_a_balancer_is_drained_and_nobody_notices():
    plan = planned(InPlace(instance="blue-1"), sides(), units=RESTARTS, **KERNEL)
    assert kinds(plan)[:3] == ["stage_system", "drain_server", "arm_guard"]
    assert kinds(plan)[-2:] == ["confirm_system", "rejoin_server"]
    assert plan.interruptions == ()


def test_the_only_one_behind_a_balancer_is_drained_with_notice():
    plan = planned(InPlace(instance="blue-1"), sides(blue=1), units=RESTARTS, **KERNEL)
    assert plan.interruptions == (
        f"blue-1 serves nobody while it is drained and brought to {VERSION}",
        "units of blue-1 stop or start anew: web.service",
        "blue-1 is away while it reboots",
    )


def test_the_only_one_of_which_nothing_stops_goes_on_serving():
    plan = planned(InPlace(instance="blue-1"), sides(blue=1))
    assert not {"drain_server", "rejoin_server"} & set(kinds(plan))
    assert plan.interruptions == ()


def test_a_host_that_somebody_took_out_of_the_balancer_stays_out():
    of = sides()
    known = situation(of, units=RESTARTS)
    before = state(of, known, servers={"blue-1": "maint"})
    plan = plan_nixos(release(), InPlace(instance="blue-1"), of, before, situation=known)
    assert not {"drain_server", "rejoin_server"} & set(kinds(plan))
    assert plan.interruptions == ()
    assert plan.after.servers == before.servers


def test_without_a_balancer_what_stops_is_announced():
    units = UnitsAffected(stopped=("old.service",), started=("new.service",), restarted=("web.service",))
    plan = planned(InPlace(), units=units)
    assert plan.interruptions == ("units of node-1 stop or start anew: old.service, web.service",)


# --- what people are told --------------------------------------------------------------------------


def test_people_see_version_packages_units_and_reboot_before_they_approve():
    units = UnitsAffected(restarted=("web.service", "db.service"), reloaded=("dbus.service",))
    closure = ClosureDifference(
        packages=("openssl: 3.0.13 → 3.0.14",), added_bytes=3 << 20, removed_bytes=1 << 19
    )
    old, new = system("node-1", 1), system("node-1", 2)
    notes = planned(InPlace(), units=units, closure=closure, **KERNEL).notes
    assert notes == (
        f"node-1: {VERSION} (revision abc), from generation 7 ({old}) to {new}.",
        "node-1, packages that differ: 1 (+3.0 MiB, -0.5 MiB).\n\n- openssl: 3.0.13 → 3.0.14",
        "node-1, units: restarted: web.service, db.service; reloaded: dbus.service.",
        "node-1 is rebooted, for what differs from what was booted: kernel, initrd.",
    )


def test_long_lists_are_cut_and_say_by_how_much():
    many = tuple(f"unit-{n}.service" for n in range(60))
    packages = ClosureDifference(packages=tuple(f"package-{n}: 1 → 2" for n in range(25)))
    plan = planned(InPlace(), closure=packages, units=UnitsAffected(restarted=many))
    _, listed, units = plan.notes
    assert listed.count("\n- ") == 21
    assert listed.startswith("node-1, packages that differ: 25 ")
    assert listed.endswith("\n- and 5 more")
    assert units.endswith("unit-19.service and 40 more.")
    assert plan.interruptions[0].endswith("unit-19.service and 40 more")


@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        (release(reboot="never"), KERNEL, "node-1 needs a reboot for kernel, initrd, and gets none"),
        (release(reboot="always"), {}, "node-1 is rebooted: that was asked for"),
        (release(activate="boot"), KERNEL, "node-1 is rebooted into it"),
        (release(), {"booted": None}, "which system was booted cannot be told"),
        (release(), {"failed_units": ("a.service",)}, "failed already, and may go on failing: a.service"),
    ],
)
def test_what_is_out_of_the_ordinary_is_told(change, fields, words):
    assert sum(words in note for note in planned(InPlace(), change=change, **fields).notes) == 1


def test_an_address_that_does_not_answer_yet_is_told():
    of = bare(urls=("http://a/", "http://b/"))
    notes = planned(InPlace(), of, answering=("http://a/",)).notes
    assert notes[-1] == "node-1: does not answer now, and must with the new system: http://b/."


# --- what is refused, and what needs nothing -------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "of", "fields", "words"),
    [
        (release(), bare(), {"init_changes": True}, r"node-1: .*use activate: boot"),
        (release(activate="boot", reboot="never"), bare(), {}, r"use reboot: when_needed, or activate: live"),
        (release(), bare(guard_s=299.0), {}, r"guard_s is 299.*which are 300"),
        (release(source=CHANNEL), bare(), {"channels": None}, r"no channel nixos .*from a flake"),
        (release(source=CHANNEL), bare(), {"channel_content": None}, r"no channel nixos"),
        (release(source=CHANNEL), bare(), {"channel_url": ""}, r"no channel nixos"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(change, of, fields, words):
    with pytest.raises(InvalidRequestError, match=rf"{words}.*Nothing was touched\.$"):
        planned(InPlace(), of, change, **fields)


def test_a_guard_as_long_as_activation_and_settling_is_long_enough():
    assert planned(InPlace(), bare(guard_s=300.0, activate_s=240.0, settle_s=60.0)).steps


def this_machine(**places: str) -> Fleet:
    one = host("node-1", **({"places": places} if places else {}))
    return Fleet(application="nodes", instances=(one.model_copy(update={"host": HostAddress()}),))


@pytest.mark.parametrize(
    ("change", "words"),
    [(release(), "or with reboot: never"), (release(activate="boot"), r"from a worker on another one\. ")],
)
def test_a_deployment_does_not_reboot_the_host_that_it_runs_on(change, words):
    with pytest.raises(InvalidRequestError, match=rf"would end with its reboot.*{words}"):
        planned(InPlace(), this_machine(), change, **KERNEL)


def test_it_may_switch_the_host_that_it_runs_on_and_reboot_others_that_are_reached_from_there():
    assert planned(InPlace(), this_machine()).steps
    assert planned(InPlace(), this_machine(), release(reboot="never"), **KERNEL).steps
    assert planned(InPlace(), this_machine(current="/srv/container/current-system"), **KERNEL).steps


def test_a_host_that_nothing_is_known_of_is_refused():
    of = bare(2)
    known = situation(of)
    with pytest.raises(InvalidRequestError, match=r"What node-2 runs .* Nothing was touched"):
        plan_nixos(release(), Rolling(), of, state(of, known), situation={"node-1": known["node-1"]})


@pytest.mark.parametrize("field", ["profile", "running"])
def test_a_host_that_was_changed_while_it_was_looked_at_is_refused(field):
    of = bare()
    before = state(of, situation(of))
    moved = {"node-1": facts("node-1").model_copy(update={field: system("node-1", 8)})}
    with pytest.raises(InvalidRequestError, match="node-1 was changed while it was looked at"):
        plan_nixos(release(), InPlace(), of, before, situation=moved)


def test_not_all_hosts_are_rebooted_before_one_was_observed():
    strategy = Rolling(batch_size=3, max_unavailable=3)
    with pytest.raises(InvalidRequestError, match="reboot all 3 hosts before any of them was observed"):
        planned(strategy, bare(3), **KERNEL)
    assert planned(strategy, bare(3)).steps
    assert planned(strategy, bare(4), **KERNEL).steps
    known = only(bare(3), node_1=KERNEL, node_2=KERNEL)
    assert plan_nixos(release(), strategy, bare(3), state(bare(3), known), situation=known).steps


@pytest.mark.parametrize("strategy", [InPlace(instance="node-1"), Rolling()], ids=lambda s: s.strategy)
def test_there_is_nothing_to_do_where_all_boot_and_run_it(strategy):
    plan = planned(strategy, bare(2), **same_for_all(bare(2)))
    assert (plan.steps, plan.finish) == ((), ())


def same_for_all(of: Fleet) -> dict[str, str]:
    one = system(of.application, 2)
    return {"profile": one, "built": one}


@pytest.mark.parametrize(("reboot", "is_done"), [("when_needed", True), ("always", True), ("never", False)])
def test_a_host_that_only_awaits_its_reboot_gets_it_unless_that_is_never(reboot, is_done):
    plan = planned(InPlace(), change=release(reboot=reboot), **same_for_all(bare()), **KERNEL)
    assert ("reboot_host" in kinds(plan)) is is_done
    assert all(s.undo.booted for s in plan.steps if isinstance(s.undo, RestoreSystem))


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary()], ids=lambda s: s.strategy)
def test_closures_are_known_of_the_live_side_too_which_nobody_surveys(strategy):
    of = sides()
    change = release(source=NixosClosures(paths={name: system(name, 1) for name in of.names}))
    before = state(of, situation(of))
    assert plan_nixos(change, strategy, of, before, situation={}).steps == ()


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary()], ids=lambda s: s.strategy)
def test_hosts_without_two_sides_are_refused_those_strategies(strategy: Strategy):
    with pytest.raises(InvalidRequestError, match="use rolling or in_place"):
        planned(strategy, bare(2))


@given(situations())
def test_every_plan_passes_its_strategys_checklist_but_for_missing_tests(drawn):
    change, strategy, of, before, known = drawn
    found = strategy_findings(
        plan_nixos(change, strategy, of, before, situation=known), of, requests_per_s=500.0
    )
    allowed = {"blue-green-smoke-tests", "blue-green-idle-size", "rolling-two-serve", "rolling-enough-left"}
    assert {name for name, finding in found.items() if finding.result == "failed"} <= allowed
