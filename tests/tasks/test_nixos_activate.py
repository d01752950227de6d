"""A new system activated on a NixOS host, and each way in which that fails, told apart."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.processes import wait_until
from rules.errors import StepFailedError
from rules.nixos_actions import ActivateSystem, SwitchSystem
from tasks.nixos_activate import activate_system, switch_system
from tasks.nixos_activation import running_activations
from tasks.nixos_guard import fired_marker
from tests.tasks.nixing import (
    DEPLOYMENT,
    HOST,
    activate,
    before,
    changes,
    host,
    lab,
    nixos,
    sshd,
    switch,
)

__all__ = ["before", "lab", "nixos", "sshd"]  # fixtures

pytestmark = pytest.mark.xdist_group("nixos-activate")


# --- it goes well ----------------------------------------------------------------------------------


def test_a_tested_system_runs_and_does_not_boot(lab, before):
    path = lab.build(HOST)
    activation = activate(lab, path)
    assert (activation.outcome, activation.is_active) == ("done", True)
    assert changes(before, lab) == {"current": path}


def test_a_system_switched_to_runs_and_boots_and_switching_again_changes_nothing(lab, before):
    path = lab.build(HOST)
    for _ in range(2):
        assert switch(lab, path).outcome == "done"
        now = changes(before, lab)
        generation = now.pop("generation")
        assert now == {"current": path, "boot_default": path, "profile": path}
    assert lab.observed(HOST)["generation"] == generation


def test_a_deployer_that_was_stopped_for_long_does_not_undo_what_the_guard_has_done(lab, before):
    marker = Path(fired_marker(host(lab), deployment=DEPLOYMENT))
    marker.parent.mkdir(parents=True)
    marker.touch()
    with pytest.raises(StepFailedError, match=r"was not activated.*the guard has fired"):
        activate(lab, lab.build(HOST))
    assert changes(before, lab) == {}


def test_a_system_for_the_next_boot_leaves_the_running_one(lab, before):
    path = lab.build(HOST, fail="PRESWITCH", init="systemd 999")
    activation = switch(lab, path, "boot")
    assert (activation.outcome, activation.is_active) == ("done", False)
    now = changes(before, lab)
    assert now.keys() == {"generation", "profile", "boot_default"}
    assert now["profile"] == now["boot_default"] == path


def test_the_newest_generations_own_path_is_switched_to_without_a_new_number(lab, before):
    path, profile = lab.build(HOST), str(lab.host(HOST).profile)
    switch(lab, path)
    highest = lab.observed(HOST)["generation"]
    lab.host(HOST).run("nix-env", "--profile", profile, "--switch-generation", "1")
    assert changes(before, lab).keys() == {"current", "boot_default"}
    assert switch(lab, path).outcome == "done"
    now = lab.observed(HOST)
    assert (now["generation"], now["profile"], now["boot_default"]) == (highest, path, path)


# --- it fails --------------------------------------------------------------------------------------

FAILURES = {
    "PRESWITCH": ("was not activated. The host runs {old}; .*deploy it with activate: boot", "old"),
    "ACTIVATE": (
        "runs, but its activation did not end well. The host runs {new}; .*activation script",
        "new",
    ),
    "RELOAD": ("runs, but its activation did not end well. The host runs {new}; ", "new"),
    "RELOAD_TIMEOUT": ("runs, but its activation did not end well. The host runs {new}; ", "new"),
}


@pytest.mark.parametrize("fail", FAILURES)
def test_a_failed_test_names_its_kind_and_what_runs_and_leaves_the_default(lab, before, fail):
    path = lab.build(HOST, fail=fail)
    words, runs = FAILURES[fail]
    with pytest.raises(StepFailedError, match=words.format(old=before["current"], new=path)) as failed:
        activate(lab, path)
    assert f"its profile is at {before['generation']}, {before['profile']}." in str(failed.value)
    assert changes(before, lab) == ({"current": path} if runs == "new" else {})


def test_a_boot_loader_that_cannot_be_written_leaves_the_profile_set_and_the_old_system_running(lab, before):
    path = lab.build(HOST, fail="BOOTLOADER")
    activate(lab, path)
    with pytest.raises(
        StepFailedError, match=r"boot loader could not be told of .*Look whether /boot"
    ) as failed:
        switch(lab, path)
    now = changes(before, lab)
    assert (now["profile"], now["current"]) == (path, path)
    assert "boot_default" not in now
    assert f"its profile is at {now['generation']}, {path}." in str(failed.value)


def test_another_init_needs_a_reboot_and_is_not_activated(lab, before):
    path = lab.build(HOST, init="systemd 999")
    with pytest.raises(StepFailedError, match=r"was not activated\. .*Deploy it with activate: boot\."):
        activate(lab, path)
    assert changes(before, lab) == {}


def test_units_that_fail_are_named_though_the_new_system_runs(lab, before):
    path = lab.build(HOST, failing_units=("index.service", "web.service"))
    with pytest.raises(
        StepFailedError, match=r"runs, but index\.service, web\.service failed and had not"
    ) as failed:
        activate(lab, path)
    assert "journalctl -u index.service" in str(failed.value)
    assert changes(before, lab) == {"current": path, "failed_units": ("index.service", "web.service")}


def test_a_unit_that_had_failed_before_may_fail_again_and_another_may_not(lab):
    path = lab.build(HOST, failing_units=("index.service", "web.service"))
    activation = activate(lab, path, failed_before=("index.service", "web.service", "else.service"))
    assert (activation.outcome, activation.is_active) == ("units_failed", True)
    assert activation.failed_units == ("index.service", "web.service")
    with pytest.raises(StepFailedError, match=r"runs, but web\.service failed and had not"):
        activate(lab, path, failed_before=("index.service",))


def a_system(directory: Path, *, switch: str) -> str:
    """Make what looks like a system, with a switch-to-configuration of this text."""
    path = directory / f"{'0' * 32}-nixos-system-alpha-odd"
    (path / "bin").mkdir(parents=True)
    program = path / "bin" / "switch-to-configuration"
    program.write_text(f"#!/bin/sh\n{switch}\n")
    program.chmod(0o755)
    return str(path)


def test_an_exit_code_of_zero_is_not_believed(lab, before, tmp_path):
    with pytest.raises(
        StepFailedError, match=r"ended without an error, and it is not active\. The host runs"
    ):
        activate(lab, a_system(tmp_path, switch="exit 0"))
    assert changes(before, lab) == {}


@pytest.mark.parametrize("end", ["exit 101", "kill -KILL $$"])
def test_an_end_that_nobody_knows_is_a_failure(lab, before, tmp_path, end):
    path = a_system(tmp_path, switch=f"echo 'thread main panicked' >&2; {end}")
    with pytest.raises(StepFailedError, match="thread main panicked"):
        activate(lab, path)
    assert changes(before, lab) == {}


def test_a_path_that_is_no_system_is_a_failure_and_touches_nothing(lab, before):
    path = before["current"].replace("26.05", "26.99")
    with pytest.raises(StepFailedError, match=f"{path} was not activated"):
        activate(lab, path)
    assert changes(before, lab) == {}


def test_a_profile_that_somebody_moves_meanwhile_is_found_out(lab, before, tmp_path):
    elsewhere = lab.build(HOST, note="elsewhere")
    program, profile = lab.host(HOST).places.programs, lab.host(HOST).profile
    path = a_system(tmp_path, switch=f"{program}/nix-env --profile {profile} --set {elsewhere}")
    with pytest.raises(StepFailedError, match=f"the profile moved from {before['generation']} to system-"):
        activate(lab, path)


# --- who waits for it ------------------------------------------------------------------------------


def lock(lab):
    """Hold the lock of an activation, as one by hand does, or the guard's."""
    place = lab.host(HOST).root / "run" / "nixos"
    place.mkdir(exist_ok=True)
    file = (place / "switch-to-configuration.lock").open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_an_activation_by_somebody_else_is_waited_for(lab):
    path = lab.build(HOST)
    held = lock(lab)
    threading.Timer(1.5, held.close).start()
    assert activate(lab, path).outcome == "done"


def test_an_activation_by_somebody_else_that_does_not_end_is_named(lab, before):
    path = lab.build(HOST)
    with lock(lab), pytest.raises(StepFailedError, match="Look who activates a system there by hand"):
        activate(lab, path, activate_s=1.5)
    assert changes(before, lab) == {}


def test_an_activation_that_takes_too_long_goes_on_and_the_next_one_waits_for_it(lab):
    slow, path = lab.build(HOST, activation_s="20"), lab.build(HOST, note="next")
    with pytest.raises(
        StepFailedError, match=r"takes longer than 1 s \(activate_s\) and goes on in sovereign-act"
    ):
        activate(lab, slow, activate_s=1)
    (unit,) = running_activations(host(lab))
    assert unit.startswith(f"sovereign-activate-{DEPLOYMENT}-")
    assert activate(lab, path).outcome == "done"
    assert lab.observed(HOST)["current"] == path
    assert running_activations(host(lab)) == ()


@contextmanager
def cut_while_it_activates(lab, sshd, *, back_after_s: float | None) -> Iterator[None]:
    """Cut the way to the host as soon as it activates, and have it back later, or not."""

    def cut() -> None:
        wait_until(lambda: bool(running_activations(host(lab))), timeout_s=30, what="an activation")
        sshd.stop()
        if back_after_s is not None:
            time.sleep(back_after_s)
            sshd.start()

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        yield
    finally:
        cutting.join()


@pytest.mark.parametrize(("fail", "said"), [("", None), ("ACTIVATE", "activation script")])
def test_a_connection_that_is_cut_ends_neither_an_activation_nor_what_is_known_of_it(lab, sshd, fail, said):
    path = lab.build(HOST, activation_s="4", fail=fail)
    far = host(lab).model_copy(update={"host": sshd.host})
    action = ActivateSystem(instance=HOST, path=path)
    with cut_while_it_activates(lab, sshd, back_after_s=1):
        if said:
            with pytest.raises(StepFailedError, match=said):
                activate_system(far, action, deployment=DEPLOYMENT)
        else:
            assert activate_system(far, action, deployment=DEPLOYMENT).outcome == "done"
    assert lab.observed(HOST)["current"] == path


def test_a_host_that_stays_away_is_left_to_its_guard(lab, sshd):
    path = lab.build(HOST, activation_s="4")
    far = host(lab, activate_s=6).model_copy(update={"host": sshd.host})
    action = SwitchSystem(instance=HOST, path=path)
    words = r"cannot be reached since .* its guard takes it back by itself"
    with (
        cut_while_it_activates(lab, sshd, back_after_s=None),
        pytest.raises(StepFailedError, match=words),
    ):
        switch_system(far, action, deployment=DEPLOYMENT)
