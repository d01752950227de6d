"""A NixOS host takes itself back: real Nix and a real script, with stand-ins for systemd and for booting."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nixos import LabNixos
from rules.fleet import Instance
from rules.nixos import NixosPlaces
from tasks.nixos_guard import GuardError, GuardFiredError, disarm_guard, extend_guard, guard_fired
from tests.requirements import need
from tests.tasks.guarding import DEPLOYMENT, HOST, NAME, arm, guard_files, has_restored, log, recorded, within

#: Until a guard that has fired is done, with a try that failed before, and a reboot.
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNixos]:
    need("nix-env", "nix-build", package="nix-bin")
    with LabNixos(tmp_path_factory.mktemp("nixos"), hosts=(HOST,)) as lab:
        yield lab


@pytest.fixture
def lab(running: LabNixos) -> Iterator[LabNixos]:
    """The host in its first system, booted, with nothing of another test."""
    yield running
    disarm_guard(running.instance(HOST), deployment=DEPLOYMENT)
    for left in (running.host(HOST).root / "state").iterdir():
        shutil.rmtree(left)
    running.configure(HOST)
    running.install(HOST)


@pytest.fixture
def instance(lab: LabNixos) -> Instance:
    return lab.instance(HOST)


def switch(lab: LabNixos, system: str, mode: str = "switch") -> None:
    """Do what a deployment does before its worker is lost."""
    lab.host(HOST).run("nix-env", "--profile", str(lab.host(HOST).profile), "--set", system)
    activate(system, mode)


def activate(system: str, mode: str) -> None:
    subprocess.run([f"{system}/bin/switch-to-configuration", mode], check=True, capture_output=True)


def switch_and_be_lost(lab: LabNixos, system: str) -> None:
    """Switch, and do not wait until the guard's time is over: its timer only starts its service."""
    switch(lab, system)
    fire(lab)


def fire(lab: LabNixos) -> None:
    command = ("systemctl", "start", f"{NAME}.service")  # it waits until the service has ended
    threading.Thread(target=lab.host(HOST).finish, args=command, daemon=True).start()


def moved(instance: Instance, **places: str) -> Instance:
    """The same host with some of its places elsewhere."""
    changed = NixosPlaces.model_validate({**instance.nixos_host.places.model_dump(), **places})
    nixos = instance.nixos_host.model_copy(update={"places": changed})
    return instance.model_copy(update={"nixos": nixos})


def test_a_host_that_is_not_heard_of_again_is_as_before_by_itself(lab, instance):
    before, back, new = lab.observed(HOST), recorded(lab), lab.build(HOST)
    arm(instance, back, guard_s=8)
    switch(lab, new)
    assert lab.observed(HOST)["current"] == new
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before
    assert guard_fired(instance, deployment=DEPLOYMENT)


def test_a_host_that_was_rebooted_into_another_kernel_reboots_into_the_recorded_one(lab, instance):
    before, back, new = lab.observed(HOST), recorded(lab), lab.build(HOST, kernel="6.12.99")
    arm(instance, back, guard_s=8)
    switch(lab, new, "boot")
    assert lab.reboot(HOST)
    assert lab.observed(HOST)["booted"] != before["booted"]
    assert not guard_fired(instance, deployment=DEPLOYMENT)
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before
    assert "rebooting into what was recorded" in log(lab)


def test_a_recorded_generation_that_is_gone_is_made_anew(lab, instance):
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back)
    switch(lab, lab.build(HOST))
    lab.host(HOST).profile.with_name(f"system-{back.generation}-link").unlink()
    fire(lab)
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    after = lab.observed(HOST)
    for what in ("profile", "current", "boot_default", "booted"):
        assert after[what] == before[what]
    assert after["generation"] == f"system-{back.generation + 2}-link"


def test_a_generation_whose_number_holds_another_system_is_not_taken(lab, instance):
    back = recorded(lab)
    arm(instance, back)
    new = lab.build(HOST)
    switch(lab, new)
    link = lab.host(HOST).profile.with_name(f"system-{back.generation}-link")
    link.unlink()
    link.symlink_to(new)
    fire(lab)
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST)["profile"] == lab.observed(HOST)["boot_default"] == back.release


def test_a_system_that_was_only_tested_before_is_active_again_and_not_the_default(lab, instance):
    tested = lab.build(HOST, note="tested before")
    activate(tested, "test")
    before, back = lab.observed(HOST), recorded(lab)
    assert back.running == tested != back.release
    arm(instance, back)
    switch_and_be_lost(lab, lab.build(HOST))
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before


def test_an_activation_that_still_runs_is_waited_for(lab, instance):
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back)
    switch(lab, lab.build(HOST))
    with (lab.host(HOST).root / "run" / "nixos" / "switch-to-configuration.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fire(lab)
        assert within(PATIENCE_S, lambda: "Could not acquire lock" in log(lab))
        assert lab.observed(HOST)["current"] != before["current"]
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before


def test_a_recorded_system_that_refuses_to_be_switched_to_is_booted(lab, instance):
    switch(lab, lab.build(HOST, fail="PRESWITCH"), "boot")
    assert lab.reboot(HOST)
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back, guard_s=8)
    switch(lab, lab.build(HOST))
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert "Pre-switch checks failed" in log(lab)
    assert log(lab).count("rebooting into") == 1
    assert lab.observed(HOST) == before


def test_a_recorded_system_whose_units_fail_as_before_is_enough(lab, instance):
    failing = lab.build(HOST, failing_units=("old.service",))
    lab.host(HOST).run("nix-env", "--profile", str(lab.host(HOST).profile), "--set", failing)
    subprocess.run([f"{failing}/bin/switch-to-configuration", "switch"], check=False, capture_output=True)
    before, back = lab.observed(HOST), recorded(lab)
    assert before["failed_units"] == ("old.service",)
    arm(instance, back)
    switch_and_be_lost(lab, lab.build(HOST))
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before


def test_a_kernel_that_does_not_come_back_is_not_rebooted_for_without_end(lab, instance, tmp_path):
    # what stands in for a boot loader that goes on booting another system
    booted = tmp_path / "booted-system"
    booted.symlink_to(lab.build(HOST, kernel="6.12.99"))
    arm(moved(instance, booted=str(booted)), recorded(lab), guard_s=3)
    assert within(PATIENCE_S, lambda: "GAVE UP: two reboots" in log(lab)), log(lab)
    assert log(lab).count("rebooting into what was recorded") == 2
    assert within(10, lambda: lab.failed_units(HOST) == (f"{NAME}.service",))
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert (lab.failed_units(HOST), guard_files(lab)) == ((), [])


def test_a_kernel_that_no_reboot_can_bring_back_is_not_rebooted_for(lab, instance):
    # before the deployment a reboot was due: another kernel ran than the default's
    before = lab.observed(HOST)
    back = recorded(lab).model_copy(update={"booted": lab.build(HOST, kernel="6.12.99")})
    arm(instance, back)
    switch_and_be_lost(lab, lab.build(HOST))
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert "rebooting" not in log(lab)
    assert lab.observed(HOST) == before


def test_a_guard_that_is_heard_from_does_not_fire_and_leaves_nothing_when_it_is_disarmed(lab, instance):
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back, guard_s=6)
    arm(instance, back, guard_s=6)
    began = time.monotonic()
    while time.monotonic() < began + 7:
        extend_guard(instance, deployment=DEPLOYMENT)
    disarm_guard(instance, deployment=DEPLOYMENT)
    time.sleep(6.5)
    assert not guard_fired(instance, deployment=DEPLOYMENT)
    assert lab.observed(HOST) == before
    assert list((lab.host(HOST).root / "state").iterdir()) == []


def test_where_no_guard_is_armed_nothing_is_extended_and_nothing_disarmed(lab, instance):
    before = lab.observed(HOST)
    for _ in range(2):
        extend_guard(instance, deployment=DEPLOYMENT)
        disarm_guard(instance, deployment=DEPLOYMENT)
    assert not guard_fired(instance, deployment=DEPLOYMENT)
    assert (lab.observed(HOST), list((lab.host(HOST).root / "state").iterdir())) == (before, [])


def test_after_it_has_fired_it_is_neither_extended_nor_armed_again(lab, instance):
    back = recorded(lab)
    arm(instance, back)
    fire(lab)
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    with pytest.raises(GuardFiredError, match="has not heard of this deployment in time"):
        extend_guard(instance, deployment=DEPLOYMENT)
    with pytest.raises(GuardFiredError):
        arm(instance, back)
    for _ in range(2):
        disarm_guard(instance, deployment=DEPLOYMENT)
        assert guard_fired(instance, deployment=DEPLOYMENT)
    evidence = lab.host(HOST).root / "state" / "guard" / DEPLOYMENT
    assert sorted(file.name for file in evidence.iterdir()) == ["fired", "log"]


def test_who_disarms_a_guard_waits_until_it_has_restored(lab, instance):
    switch(lab, lab.build(HOST, activation_s="2", note="slow to activate"))
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back)
    switch_and_be_lost(lab, lab.build(HOST))
    assert within(PATIENCE_S, lambda: f"generation {back.generation}" in log(lab))
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert "as recorded: done" in log(lab)
    assert lab.observed(HOST) == before


def test_who_cannot_wait_that_long_is_told(lab, instance):
    switch(lab, lab.build(HOST, activation_s="6", note="very slow to activate"))
    arm(instance, recorded(lab))
    fire(lab)
    assert within(PATIENCE_S, lambda: "not heard of" in log(lab))
    hasty = instance.model_copy(update={"nixos": instance.nixos_host.model_copy(update={"activate_s": 0.1})})
    with pytest.raises(GuardError, match="has been restoring the recorded system for more than"):
        disarm_guard(hasty, deployment=DEPLOYMENT)
    assert within(PATIENCE_S, has_restored(lab)), log(lab)


def test_a_directory_that_cannot_be_written_is_an_error_and_changes_nothing(lab, instance, tmp_path):
    before = lab.observed(HOST)
    (tmp_path / "file").touch()
    with pytest.raises(GuardError, match=r"nothing of it is left: .*Not a directory"):
        arm(moved(instance, guard_units=f"{tmp_path}/file/units"), recorded(lab))
    assert (lab.observed(HOST), list((lab.host(HOST).root / "state").iterdir())) == (before, [])


def test_units_that_systemd_does_not_find_are_an_error_and_are_removed(lab, instance, tmp_path):
    before, units = lab.observed(HOST), tmp_path / "units"
    with pytest.raises(GuardError, match=r"nothing of it is left: .*not found"):
        arm(moved(instance, guard_units=str(units)), recorded(lab))
    assert [file for file in units.rglob("*") if not file.is_dir()] == []
    assert (lab.observed(HOST), list((lab.host(HOST).root / "state").iterdir())) == (before, [])


def test_a_timer_of_another_time_is_an_error_and_is_removed(lab, instance, tmp_path):
    before = lab.observed(HOST)
    # what stands in for a drop-in file on the host that has another time
    (programs := tmp_path / "programs").mkdir()
    real = f"{instance.nixos_host.places.programs}/systemctl"
    late = f'#!/bin/sh\n{real} "$@" | sed "s/^NextElapse.*/NextElapseUSecMonotonic=99d/"\n'
    (programs / "systemctl").write_text(late)
    (programs / "systemctl").chmod(0o755)
    with pytest.raises(GuardError, match=r"is not as it must be: .* wanted 300 s"):
        arm(moved(instance, programs=str(programs)), recorded(lab))
    assert lab.observed(HOST) == before


def test_a_guard_of_another_deployment_is_not_overruled(lab, instance):
    other = lab.host(HOST).guard_units / "sovereign-guard-nixos-web-0.timer"
    other.touch()
    try:
        with pytest.raises(GuardError, match=r"another deployment is armed there, .*nixos-web-0\.timer"):
            arm(instance, recorded(lab))
        assert guard_files(lab) == [other]
    finally:
        other.unlink()


def test_places_with_letters_that_shells_and_systemd_read_are_just_places(lab, instance):
    state = lab.host(HOST).root / "state" / "a b'c\"d$HOME%n\\e;f"
    before, back = lab.observed(HOST), recorded(lab)
    odd = moved(instance, state=str(state))
    arm(odd, back)
    switch_and_be_lost(lab, lab.build(HOST))
    done = Path(state) / "guard" / DEPLOYMENT / "log"
    assert within(PATIENCE_S, lambda: done.exists() and "as recorded: done" in done.read_text())
    assert within(PATIENCE_S, lambda: guard_files(lab) == [])  # it says so before it removes itself
    assert lab.observed(HOST) == before
    assert guard_fired(odd, deployment=DEPLOYMENT)


def test_the_script_is_for_root_alone(lab, instance):
    arm(instance, recorded(lab))
    directory = lab.host(HOST).root / "state" / "guard" / DEPLOYMENT
    assert directory.stat().st_mode & 0o077 == 0
