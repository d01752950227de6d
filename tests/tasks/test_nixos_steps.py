"""The steps of a NixOS host, one after the other, with its guard armed."""

from __future__ import annotations

import time

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from rules.fleet import Fleet
from rules.nixos_actions import ArmGuard, VerifySystem
from rules.system_change import NixosClosures, SystemRelease
from tasks.deployment import open_deployment
from tasks.nixos_guard import arm_guard
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
