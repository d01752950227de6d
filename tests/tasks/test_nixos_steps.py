"""The steps of a NixOS host, one after the other, with its guard armed."""

from __future__ import annotations

import time

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from lab.processes import wait_until
from rules.errors import StepFailedError
from rules.fleet import Fleet
from rules.nixos_actions import ArmGuard, VerifySystem
from rules.system_change import NixosClosures, SystemRelease
from tasks.deployment import open_deployment
from tasks.nixos_guard import arm_guard, guard_fired
from tasks.nixos_steps import change_system
from tests.tasks.deploying import opening
from tests.tasks.nixing import HOST, activate, host, lab, nixos, recorded

__all__ = ["lab", "nixos"]  # fixtures

pytestmark = pytest.mark.xdist_group("nixos-steps")


def began(lab: LabNixos, deployment: str) -> float:
    """When the guard's time began, by this machine's clock."""
    shown = ("--value", "--property=InactiveExitTimestampMonotonic")
    return int(lab.host(HOST).run("systemctl", "show", *shown, f"sovereign-guard-{deployment}.timer")) / 1e6


def test_what_follows_a_proof_that_took_long_has_the_whole_time_of_the_guard(lab, api, settings):
    opened = opening(Fleet(application="lab-nixos", instances=(host(lab),)))
    action = ArmGuard(instance=HOST, guard_s=300, back=recorded(lab))
    arm_guard(host(lab), action, deployment=opened.deployment)
    path = lab.build(HOST)
    activate(lab, path)
    change = SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosClosures(paths={HOST: path}))
    with open_deployment(opened, api, settings) as deployment:
        # services are starting until then
        settled = time.monotonic() + 4
        (lab.host(HOST).root / "run" / "booted-until").write_text(str(settled))
        step = VerifySystem(instance=HOST, path=path, release=NEXT_VERSION, is_default=False)
        change_system(deployment, change, step)
    assert began(lab, opened.deployment) > settled


def test_a_host_hears_of_a_deployment_that_a_person_has_paused(lab, api, settings):
    opened = opening(Fleet(application="lab-nixos", instances=(host(lab),)))
    path = lab.build(HOST)
    change = SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosClosures(paths={HOST: path}))
    with open_deployment(opened, api, settings) as deployment:
        change_system(deployment, change, ArmGuard(instance=HOST, guard_s=8, back=recorded(lab)))
        paused_until = time.monotonic() + 16
        while time.monotonic() < paused_until:
            deployment.while_held()
            time.sleep(0.2)
        assert not guard_fired(host(lab), deployment=opened.deployment)
        # and not heard of, it goes back
        wait_until(
            lambda: guard_fired(host(lab), deployment=opened.deployment), timeout_s=30, what="the guard"
        )
        step = VerifySystem(instance=HOST, path=path, release=NEXT_VERSION, is_default=False)
        with pytest.raises(StepFailedError, match="its guard has fired"):
            change_system(deployment, change, step)
