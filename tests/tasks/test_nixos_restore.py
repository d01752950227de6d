"""A NixOS host brought back by what was recorded: after each failure, and where the relative way errs."""

from __future__ import annotations

import fcntl
import threading
import time
from typing import Any

import pytest

from lab.nixos import LabNixos
from lab.processes import LabError, wait_until
from rules.errors import StepFailedError, UndoFailedError
from rules.nixos_actions import ArmGuard, RebootHost
from tasks.nixos_activation import end_activations, running_activations
from tasks.nixos_generation import restore_generation
from tasks.nixos_guard import arm_guard, disarm_guard, guard_fired
from tasks.nixos_reboot import reboot_host
from tasks.nixos_restore import restore_system
from tests.tasks.nixing import (
    DEPLOYMENT,
    HOST,
    SETTINGS,
    activate,
    before,
    changes,
    host,
    lab,
    nixos,
    recorded,
    restore,
    sshd,
    switch,
)

__all__ = ["before", "lab", "nixos", "sshd"]  # fixtures

pytestmark = pytest.mark.xdist_group("nixos-restore")


def is_as_before(lab: LabNixos, before: dict[str, Any]) -> bool:
    return changes(before, lab) == {}


def touched(lab: LabNixos) -> tuple[int, int]:
    """When the active system and the boot loader's default were last set, also to what they were."""
    root = lab.host(HOST).root
    return (root / "run" / "current-system").lstat().st_mtime_ns, (root / "boot-default").lstat().st_mtime_ns


def fails(act: Any, *arguments: Any) -> None:
    with pytest.raises(StepFailedError):
        act(*arguments)


# --- each kind of failure --------------------------------------------------------------------------

KINDS = {
    "refused": {"fail": "PRESWITCH"},
    "script failed": {"fail": "ACTIVATE"},
    "reload failed": {"fail": "RELOAD"},
    "reload timed out": {"fail": "RELOAD_TIMEOUT"},
    "units failed": {"failing_units": ("web.service",)},
    "reboot needed": {"init": "systemd 999"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_test_is_taken_back_and_the_boot_loader_is_left_alone(lab, before, kind):
    back, (_, default) = recorded(lab), touched(lab)
    fails(activate, lab, lab.build(HOST, **KINDS[kind]))
    restore(lab, back)
    assert is_as_before(lab, before)
    assert touched(lab)[1] == default


@pytest.mark.parametrize("kind", [*KINDS, "boot loader"])
def test_a_failed_switch_is_taken_back_once_and_for_all(lab, before, kind):
    back = recorded(lab)
    fails(switch, lab, lab.build(HOST, **KINDS.get(kind, {"fail": "BOOTLOADER"})))
    assert changes(before, lab)
    restore(lab, back)
    assert is_as_before(lab, before)
    then = touched(lab)
    restore(lab, back)
    assert touched(lab) == then


def test_a_good_switch_is_taken_back_too(lab, before):
    back = recorded(lab, answers=True)
    switch(lab, lab.build(HOST))
    restore(lab, back)
    assert is_as_before(lab, before)
    # and so is the next one: that this was proven before does not count any more
    switch(lab, lab.build(HOST))
    restore(lab, back)
    assert is_as_before(lab, before)


def test_what_never_happened_is_taken_back_without_a_change(lab, before):
    restore(lab, recorded(lab, answers=True))
    assert is_as_before(lab, before)


def test_a_switch_that_ended_between_its_two_halves_is_taken_back(lab, before):
    back, profile = recorded(lab), str(lab.host(HOST).profile)
    lab.host(HOST).run("nix-env", "--profile", profile, "--set", lab.build(HOST))
    restore(lab, back)
    assert is_as_before(lab, before)


def test_a_way_back_that_ended_between_its_two_halves_is_gone_to_its_end(lab, before):
    back, profile = recorded(lab), str(lab.host(HOST).profile)
    switch(lab, lab.build(HOST))
    lab.host(HOST).run("nix-env", "--profile", profile, "--switch-generation", str(back.generation))
    assert changes(before, lab).keys() == {"current", "boot_default"}
    restore(lab, back)
    assert is_as_before(lab, before)


# --- where the relative way errs -------------------------------------------------------------------


def two_more_generations(lab: LabNixos) -> tuple[dict[str, Any], dict[str, Any]]:
    """Have two good generations, and return what was observed with each."""
    first = lab.observed(HOST)
    switch(lab, lab.build(HOST, version="26.05.1500.cccccccccccc"))
    return first, lab.observed(HOST)


def test_trap_1_after_a_failed_test_the_relative_way_goes_one_too_far(lab):
    first, before = two_more_generations(lab)
    back = recorded(lab)
    fails(activate, lab, lab.build(HOST, fail="ACTIVATE"))
    restore(lab, back)
    assert is_as_before(lab, before)
    assert lab.nixos_rebuild(HOST, "switch", "--rollback").returncode == 0
    assert lab.observed(HOST)["profile"] == first["profile"] != before["profile"]


def test_trap_2_after_a_failed_build_the_relative_way_goes_one_too_far(lab):
    first, before = two_more_generations(lab)
    back = recorded(lab)
    with pytest.raises(LabError, match="is no port"):
        lab.build(HOST, fail="BUILD")
    lab.configure(HOST, fail="BUILD")
    # the exit code is that of a system that needs a reboot: only the links tell that nothing happened
    assert lab.nixos_rebuild(HOST, "switch").returncode == 100
    restore(lab, back)
    assert is_as_before(lab, before)
    assert lab.nixos_rebuild(HOST, "switch", "--rollback").returncode == 0
    assert lab.observed(HOST)["profile"] == first["profile"]


def test_trap_3_after_a_bad_one_and_its_fix_the_relative_way_lands_on_the_bad_one(lab):
    _, before = two_more_generations(lab)
    back = recorded(lab)
    bad, fixed = lab.build(HOST, failing_units=("web.service",)), lab.build(HOST, note="fixed")
    fails(switch, lab, bad)
    restore(lab, back)
    assert is_as_before(lab, before)
    switch(lab, fixed)
    restore(lab, back)
    assert is_as_before(lab, before)
    switch(lab, fixed)
    lab.nixos_rebuild(HOST, "switch", "--rollback")
    assert lab.observed(HOST)["profile"] == bad


def test_trap_4_a_release_that_is_the_newest_generation_already_makes_no_new_one(lab):
    first, before = two_more_generations(lab)
    back = recorded(lab)
    path = lab.build(HOST, note="again")
    switch(lab, path)
    newest = lab.observed(HOST)["generation"]
    restore(lab, back)
    assert is_as_before(lab, before)
    switch(lab, path)
    assert lab.observed(HOST)["generation"] == newest
    restore(lab, back)
    assert is_as_before(lab, before)
    # "the number did not grow, so nothing happened" would have left this host with it
    assert first["generation"] != before["generation"] != newest


def test_trap_5_a_channel_that_was_not_updated_leaves_the_state_and_an_exit_code_of_zero(lab, before):
    back = recorded(lab)
    lab.stop_channel_server()
    try:
        assert lab.host(HOST).finish("nix-channel", "--update", "nixos").returncode == 0
        assert is_as_before(lab, before)
        restore(lab, back)
    finally:
        lab.publish_channel("26.05.1000.aaaaaaaaaaaa")
    assert is_as_before(lab, before)


# --- what was recorded is more than a generation ---------------------------------------------------


def test_a_system_that_ran_without_being_the_default_runs_again(lab):
    activate(lab, lab.build(HOST, note="only tested"))
    back, before = recorded(lab), lab.observed(HOST)
    assert back.running != back.release
    switch(lab, lab.build(HOST))
    restore(lab, back)
    assert is_as_before(lab, before)


def test_a_generation_whose_link_was_collected_is_made_anew(lab, before):
    back = recorded(lab)
    switch(lab, lab.build(HOST))
    lab.host(HOST).run("nix-env", "--profile", str(lab.host(HOST).profile), "--delete-generations", "1")
    for _ in range(2):
        restore(lab, back)
        now = changes(before, lab)
        assert now.keys() == {"generation"}
    assert now["generation"] == "system-3-link"


def test_units_that_had_failed_may_fail_again_and_others_may_not(lab):
    lab.configure(HOST, failing_units=("old.service",))
    lab.install(HOST)
    back, before = recorded(lab), lab.observed(HOST)
    assert back.failed_before == ("old.service",)
    switch(lab, lab.build(HOST))
    restore(lab, back)
    assert is_as_before(lab, before)
    switch(lab, lab.build(HOST))
    with pytest.raises(UndoFailedError, match=r"runs .* again, but old\.service failed and had not before"):
        restore(lab, back.model_copy(update={"failed_before": ()}))


def test_a_url_that_answered_must_answer_again(lab):
    lab.configure(HOST, answers=False)
    lab.install(HOST)
    back = recorded(lab, answers=True)
    switch(lab, lab.build(HOST))
    with pytest.raises(
        UndoFailedError, match=r"again, but http://\S+ does not answer \(status 503\), and did"
    ):
        restore(lab, back, settle_s=1.0)
    restore(lab, back.model_copy(update={"answering": ()}))


def test_where_the_boot_loader_cannot_be_told_the_recorded_system_runs_all_the_same(lab):
    lab.configure(HOST, fail="BOOTLOADER")
    lab.install(HOST)
    back, before = recorded(lab), lab.observed(HOST)
    switch(lab, lab.build(HOST))
    with pytest.raises(
        UndoFailedError, match="boot loader could not be told; until it is, it may boot the other"
    ):
        restore(lab, back)
    assert changes(before, lab).keys() == {"boot_default"}


# --- reboots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"kernel": "6.18.1"}, {"init": "systemd 999"}])
def test_a_host_that_was_rebooted_into_another_kernel_or_init_is_rebooted_back(lab, before, other):
    back, path = recorded(lab), lab.build(HOST, **other)
    switch(lab, path, "boot")
    action = RebootHost(instance=HOST, path=path)
    reboot_host(host(lab), action, deployment=DEPLOYMENT, still_wanted=lambda: None)
    assert lab.observed(HOST)["booted"] == path
    restore(lab, back)
    assert is_as_before(lab, before)


def test_what_ran_without_being_the_default_is_activated_after_a_reboot_back(lab):
    activate(lab, lab.build(HOST, note="only tested"))
    back, before = recorded(lab), lab.observed(HOST)
    switch(lab, lab.build(HOST, kernel="6.18.1"))
    lab.reboot(HOST)
    restore(lab, back)
    assert is_as_before(lab, before)


# --- who else is at it -----------------------------------------------------------------------------


def test_an_activation_that_hangs_is_ended(lab, before):
    back = recorded(lab)
    with pytest.raises(StepFailedError, match="goes on in"):
        activate(lab, lab.build(HOST, activation_s="300"), activate_s=1)
    assert running_activations(host(lab))
    restore(lab, back, activate_s=5)
    assert running_activations(host(lab)) == ()
    assert is_as_before(lab, before)


def test_an_activation_that_was_ended_in_the_middle_is_taken_back_though_the_link_has_not_moved(lab, before):
    back, then = recorded(lab), touched(lab)
    with pytest.raises(StepFailedError):
        activate(lab, lab.build(HOST, activation_s="300"), activate_s=1)
    end_activations(host(lab))
    assert touched(lab) == then
    restore(lab, back)
    assert touched(lab)[0] > then[0]
    assert is_as_before(lab, before)


def test_the_guard_or_a_person_doing_the_same_is_waited_for(lab, before):
    back = recorded(lab)
    switch(lab, lab.build(HOST))
    place = lab.host(HOST).root / "run" / "nixos" / "switch-to-configuration.lock"
    with place.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(2, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        timer.start()
        restore(lab, back)
        timer.join()
    assert is_as_before(lab, before)


def test_a_guard_that_has_fired_and_the_way_back_do_the_same(lab, before):
    back = recorded(lab, answers=True)
    action = ArmGuard(instance=HOST, guard_s=4, back=back)
    arm_guard(host(lab), action, deployment=DEPLOYMENT)
    switch(lab, lab.build(HOST, activation_s="0.3"))
    wait_until(lambda: guard_fired(host(lab), deployment=DEPLOYMENT), timeout_s=30, what="the guard")
    restore(lab, back)
    disarm_guard(host(lab), deployment=DEPLOYMENT)
    assert is_as_before(lab, before)


def test_a_host_that_cannot_be_reached_is_waited_for(lab, before, sshd):
    back = recorded(lab)
    switch(lab, lab.build(HOST))
    sshd.stop()
    timer = threading.Timer(3, sshd.start)
    timer.start()
    far = host(lab).model_copy(update={"host": sshd.host})
    restore_system(far, back, deployment=DEPLOYMENT, settings=SETTINGS)
    timer.join()
    assert is_as_before(lab, before)


def test_a_host_that_stays_away_is_left_to_its_guard_and_a_person(lab, sshd):
    back = recorded(lab)
    sshd.stop()
    far = host(lab, guard_s=1, reboot_s=1).model_copy(update={"host": sshd.host})
    began = time.monotonic()
    with pytest.raises(UndoFailedError, match=r"could not be reached for 2 s, so .* generation 1 "):
        restore_system(far, back, deployment=DEPLOYMENT, settings=SETTINGS)
    assert time.monotonic() - began < 20
    patience = SETTINGS.model_copy(update={"rollback_deadline_s": 1.0})
    far = host(lab).model_copy(update={"host": sshd.host})
    with pytest.raises(UndoFailedError, match="could not be reached for 1 s"):
        restore_system(far, back, deployment=DEPLOYMENT, settings=patience)


def test_a_system_without_nix_is_taken_back_with_the_nix_of_the_one_before(lab, before, tmp_path):
    step = recorded(lab)
    switch(lab, lab.build(HOST))
    programs = tmp_path / f"{'0' * 32}-system" / "sw" / "bin"
    programs.mkdir(parents=True)
    (programs / "nix-env").symlink_to(f"{lab.host(HOST).places.programs}/nix-env")
    without = host(lab)
    others = without.nixos_host.places.model_copy(update={"programs": str(tmp_path)})
    without = without.model_copy(update={"nixos": without.nixos_host.model_copy(update={"places": others})})
    assert restore_generation(without, step.model_copy(update={"running": str(programs.parents[1])}))
    assert lab.observed(HOST)["generation"] == before["generation"]
