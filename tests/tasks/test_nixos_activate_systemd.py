"""A NixOS host's activation in a unit of a real systemd, on a host of its own reached by ssh."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from lab.processes import wait_until
from lab.systemd import LabSystemd
from rules.errors import StepFailedError
from rules.nixos_actions import RebootHost, VerifySystem
from tasks.nixos_activation import running_activations
from tasks.nixos_reboot import reboot_host
from tasks.nixos_verify import verify_system
from tests.requirements import need
from tests.tasks.nixing import DEPLOYMENT, HOST, activate, changes, host, recorded, restore, switch

#: Only one is booted at a time, so one worker should have them all.
pytestmark = pytest.mark.xdist_group("systemd")


@pytest.fixture(scope="module")
def lab(machine: LabSystemd) -> Iterator[LabNixos]:
    need("nix-build", "nix-env", package="nix-bin")
    with LabNixos(machine.directory / "nixos", hosts=(HOST,), systemd=machine) as running:
        yield running


@pytest.fixture
def before(lab: LabNixos) -> Iterator[dict[str, Any]]:
    """What is there before the test, and after it."""
    back, seen = recorded(lab, answers=True), lab.observed(HOST)
    yield seen
    restore(lab, back)
    assert changes(seen, lab) == {}


def test_a_system_is_activated_proven_and_taken_back(lab, before):
    path, bad = lab.build(HOST), lab.build(HOST, failing_units=("lab-web.service",))
    assert activate(lab, path).outcome == "done"
    assert switch(lab, path).outcome == "done"
    action = VerifySystem(instance=HOST, path=path, release=NEXT_VERSION, is_default=True)
    assert "no unit has failed, 1 of 1 URLs" in verify_system(host(lab), action, still_wanted=lambda: None)
    with pytest.raises(StepFailedError, match=r"runs, but lab-web\.service failed and had not before"):
        activate(lab, bad)
    assert changes(before, lab)["failed_units"] == ("lab-web.service",)


def test_a_reboot_into_another_kernel_is_taken_back_by_a_reboot(lab, before):
    path = lab.build(HOST, kernel="6.18.1")
    switch(lab, path, "boot")
    action = RebootHost(instance=HOST, path=path)
    reboot_host(host(lab), action, deployment=DEPLOYMENT, still_wanted=lambda: None)
    assert changes(before, lab)["booted"] == path


def test_a_cut_connection_ends_neither_an_activation_nor_what_is_known_of_it(lab, before, machine):
    path = lab.build(HOST, activation_s="5", fail="ACTIVATE")

    def cut() -> None:
        wait_until(lambda: bool(running_activations(host(lab))), timeout_s=30, what="an activation")
        # with all that it has let in
        machine.run("systemctl", "kill", "--signal=KILL", "lab-sshd.service")
        time.sleep(1)
        machine.run("systemctl", "restart", "lab-sshd.service")

    cutting = threading.Thread(target=cut)
    cutting.start()
    with pytest.raises(
        StepFailedError, match=r"runs, but its activation did not end well.*activation script"
    ):
        activate(lab, path)
    cutting.join()
    assert changes(before, lab) == {"current": path}


def test_an_activation_that_hangs_is_ended_on_the_way_back(lab, before):
    back = recorded(lab)
    with pytest.raises(StepFailedError, match="goes on in sovereign-activate-"):
        activate(lab, lab.build(HOST, activation_s="300"), activate_s=2)
    restore(lab, back, activate_s=4)
    assert running_activations(host(lab)) == ()
    assert changes(before, lab) == {}
