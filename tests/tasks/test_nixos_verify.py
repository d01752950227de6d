"""The proof that a NixOS host runs a system: each thing that must hold, and the confirmation at the end."""

from __future__ import annotations

import time

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from rules.errors import RevokedError, StepFailedError
from rules.hosts import HostAddress
from rules.nixos import NixosProbe
from rules.nixos_actions import ArmGuard, ConfirmSystem, VerifySystem
from tasks.nixos_guard import arm_guard, guard_fired
from tasks.nixos_verify import confirm_system, running_system, verify_system
from tests.tasks.nixing import (
    DEPLOYMENT,
    HOST,
    activate,
    before,
    changes,
    host,
    lab,
    nixos,
    recorded,
    sshd,
    switch,
)

__all__ = ["before", "lab", "nixos", "sshd"]  # fixtures

pytestmark = pytest.mark.xdist_group("nixos-verify")


def verify(lab: LabNixos, path: str, still_wanted=lambda: None, limits=None, **action: object) -> str:
    wanted = {"release": NEXT_VERSION, "is_default": False, **action}
    step = VerifySystem(instance=HOST, path=path, **wanted)
    return verify_system(host(lab, **(limits or {})), step, still_wanted=still_wanted)


def test_a_good_system_is_proven_in_words(lab):
    path = lab.build(HOST, revision="0123456789abcdef")
    activate(lab, path)
    words = verify(lab, path, release="0123456")
    assert words.startswith(
        f"alpha runs {NEXT_VERSION} (revision 0123456789abcdef): systemd says running after "
    )
    assert words.endswith("s, no unit has failed, 1 of 1 URLs answer")
    switch(lab, path)
    assert f"{NEXT_VERSION} (revision 0123456789abcdef) and boots it by default: " in verify(
        lab, path, is_default=True
    )


def test_another_system_is_named(lab, before):
    path = lab.build(HOST)
    with pytest.raises(
        StepFailedError, match=rf"should run {path} and does not\. The host runs {before['current']}"
    ):
        verify(lab, path)


def test_a_system_that_does_not_boot_by_default_is_no_default(lab):
    path = lab.build(HOST)
    activate(lab, path)
    with pytest.raises(StepFailedError, match=rf"should boot {path} and would not"):
        verify(lab, path, is_default=True)


def test_a_system_of_another_version_is_named(lab):
    path = lab.build(HOST, version="26.05.1.dddddddddddd")
    activate(lab, path)
    with pytest.raises(StepFailedError, match=rf"it is 26\.05\.1\.dddddddddddd, not {NEXT_VERSION}"):
        verify(lab, path)


def test_only_units_that_had_failed_before_may_have_failed(lab):
    path = lab.build(HOST, failing_units=("a.service", "b.service"))
    activate(lab, path, failed_before=("a.service", "b.service"))
    words = verify(lab, path, failed_before=("a.service", "b.service"))
    assert "systemd says degraded" in words
    assert "2 units have failed, as before" in words
    with pytest.raises(StepFailedError, match=r"b\.service failed and had not before \(1 had\)"):
        verify(lab, path, failed_before=("a.service",))


def test_a_url_that_does_not_answer_well_is_named(lab):
    path = lab.build(HOST, answers=False)
    activate(lab, path)
    with pytest.raises(StepFailedError, match=r"but http://\S+ does not answer \(status 503\), which must"):
        verify(lab, path, limits={"settle_s": 0.5})


def test_services_that_still_start_are_waited_for_and_not_for_ever(lab):
    path = lab.build(HOST, boot_s="3")
    switch(lab, path)
    lab.reboot(HOST)
    with pytest.raises(StepFailedError, match=r"systemd says .starting. after .* needs a larger settle_s"):
        verify(lab, path, limits={"settle_s": 0.1})
    asked: list[bool] = []
    assert "systemd says running" in verify(lab, path, still_wanted=lambda: asked.append(True))
    assert asked


def test_nothing_is_waited_for_that_is_not_wanted_any_more(lab):
    path = lab.build(HOST, answers=False)
    activate(lab, path)

    def gone() -> None:
        raise RevokedError("cancelled")

    with pytest.raises(RevokedError):
        verify(lab, path, still_wanted=gone)


def test_the_kernel_that_was_booted_must_be_the_systems_where_that_is_asked(lab):
    path = lab.build(HOST, kernel="6.18.1")
    switch(lab, path)
    with pytest.raises(StepFailedError, match="booted with another kernel, initrd, kernel-modules"):
        verify(lab, path, is_default=True, booted=True)
    lab.reboot(HOST)
    assert verify(lab, path, is_default=True, booted=True).endswith(", its kernel runs")


def test_a_host_says_what_it_runs_and_one_that_is_away_says_nothing(lab, before, sshd):
    probe = lab.instance(HOST).probe
    assert isinstance(probe, NixosProbe)
    assert running_system(HostAddress(), probe) == before["current"]
    assert running_system(sshd.host, probe) == before["current"]
    sshd.stop()
    assert running_system(sshd.host, probe) is None


def armed(lab: LabNixos, guard_s: float) -> None:
    action = ArmGuard(instance=HOST, guard_s=guard_s, back=recorded(lab))
    arm_guard(host(lab), action, deployment=DEPLOYMENT)


def confirm(lab: LabNixos, path: str) -> str:
    return confirm_system(host(lab), ConfirmSystem(instance=HOST, path=path), deployment=DEPLOYMENT)


def test_a_confirmed_host_has_no_guard_any_more(lab):
    path = lab.build(HOST)
    armed(lab, 60)
    switch(lab, path)
    for _ in range(2):
        assert confirm(lab, path).endswith("its guard is disarmed")
    assert lab.observed(HOST)["guard_units"] == ()


def test_a_host_that_is_not_as_it_should_be_keeps_its_guard(lab, before):
    path = lab.build(HOST)
    armed(lab, 60)
    activate(lab, path)
    with pytest.raises(StepFailedError, match="should run and boot"):
        confirm(lab, path)
    assert changes(before, lab)["guard_units"]


def test_a_host_that_took_itself_back_is_not_confirmed(lab, before):
    armed(lab, 2)
    while not guard_fired(host(lab), deployment=DEPLOYMENT):
        time.sleep(0.05)
    with pytest.raises(StepFailedError, match="took itself back"):
        confirm(lab, before["current"])
