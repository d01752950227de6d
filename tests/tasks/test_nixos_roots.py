"""What a deployment keeps from the garbage collector of a real store, and how the new system gets there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.nixos import NEXT_VERSION, LabNixos
from rules.errors import StepFailedError
from rules.nixos_actions import StageSystem
from rules.system_change import NixosChannel, NixosClosures, SystemRelease
from tasks.nixos_build import build_system
from tasks.nixos_roots import drop_roots, roots_of, stage_system
from tasks.nixos_store import lacking, nix_of
from tests.tasks.nixing import DEPLOYMENT, HOST, host, lab, nixos

__all__ = ["lab", "nixos"]  # fixtures


def closures(path: str) -> SystemRelease:
    return SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosClosures(paths={HOST: path}))


def staged(lab: LabNixos, path: str, *before: str) -> StageSystem:
    return StageSystem(instance=HOST, path=path, before=before or (lab.observed(HOST)["current"],))


def collect(lab: LabNixos) -> None:
    lab.host(HOST).run("nix-store", "--gc")


def is_there(lab: LabNixos, path: str) -> bool:
    return not lacking(nix_of(host(lab)), (path,))


def roots(lab: LabNixos) -> dict[str, str]:
    directory = Path(roots_of(host(lab), DEPLOYMENT))
    return {link.name: str(link.readlink()) for link in directory.iterdir()}


def test_what_is_staged_survives_a_garbage_collection_until_its_roots_are_dropped(lab):
    before, new = lab.observed(HOST), lab.build(HOST, note="staged")
    old = lab.build(HOST, note="tested before, in no generation")
    action = staged(lab, new, before["profile"], old, old)
    for _ in range(2):
        stage_system(host(lab), closures(new), action, deployment=DEPLOYMENT)
        assert roots(lab) == {"before-0": before["profile"], "before-1": old, "new": new}
    collect(lab)
    assert is_there(lab, new)
    assert is_there(lab, old)
    for _ in range(2):
        drop_roots(host(lab), deployment=DEPLOYMENT)
        assert lab.observed(HOST) == before
    collect(lab)
    assert not is_there(lab, new)
    assert not is_there(lab, old)
    assert is_there(lab, before["profile"])


def test_roots_of_another_deployment_are_left_alone(lab):
    path = lab.build(HOST, note="two deployments")
    for deployment in (DEPLOYMENT, "nixos-2"):
        stage_system(host(lab), closures(path), staged(lab, path), deployment=deployment)
    drop_roots(host(lab), deployment=DEPLOYMENT)
    collect(lab)
    assert is_there(lab, path)
    drop_roots(host(lab), deployment="nixos-2")
    assert lab.observed(HOST)["roots"] == ()


def test_a_system_that_was_collected_since_the_plan_was_made_is_built_again(lab):
    change = SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosChannel())
    lab.configure(HOST, note="built again")
    planned = build_system(host(lab), change, channel=None)
    collect(lab)
    assert not is_there(lab, planned)
    stage_system(host(lab), change, staged(lab, planned), deployment=DEPLOYMENT)
    assert is_there(lab, planned)
    drop_roots(host(lab), deployment=DEPLOYMENT)


def test_a_configuration_that_was_edited_since_the_plan_was_made_is_found_out(lab):
    change = SystemRelease(hosts="lab-nixos", release=NEXT_VERSION, source=NixosChannel())
    before = lab.observed(HOST)
    lab.configure(HOST, note="as planned")
    planned = build_system(host(lab), change, channel=None)
    collect(lab)
    lab.configure(HOST, note="as edited")
    with pytest.raises(StepFailedError, match=r"what is built now is .*Deploy again"):
        stage_system(host(lab), change, staged(lab, planned), deployment=DEPLOYMENT)
    drop_roots(host(lab), deployment=DEPLOYMENT)
    assert lab.observed(HOST) == before


def test_a_closure_that_nobody_has_is_refused_before_anything_is_touched(lab):
    before = lab.observed(HOST)
    nowhere = str(Path(before["profile"]).with_name(f"{'0' * 32}-nixos-system-alpha-1"))
    with pytest.raises(StepFailedError, match="neither in its store nor to be had from its substituters"):
        stage_system(host(lab), closures(nowhere), staged(lab, nowhere), deployment=DEPLOYMENT)
    drop_roots(host(lab), deployment=DEPLOYMENT)
    assert lab.observed(HOST) == before


def test_without_a_way_back_nothing_is_staged(lab):
    before, new = lab.observed(HOST), lab.build(HOST, note="no way back")
    nowhere = str(Path(before["profile"]).with_name(f"{'0' * 32}-nixos-system-alpha-0"))
    with pytest.raises(
        StepFailedError, match=r"(?s)0-nixos-system-alpha-0 cannot be kept .*were not touched"
    ):
        stage_system(host(lab), closures(new), staged(lab, new, nowhere), deployment=DEPLOYMENT)
    drop_roots(host(lab), deployment=DEPLOYMENT)
    assert lab.observed(HOST) == before
