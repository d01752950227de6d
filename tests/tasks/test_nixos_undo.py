"""The way back of a NixOS host where it is not the usual one: taken up again, or on a host that goes down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nixos import LabNixos
from rules.errors import UndoFailedError, WorldMovedError
from rules.fleet import Instance
from rules.nixos_actions import ArmGuard, DisarmGuard, DropRoots, NixosUndo, StageSystem
from rules.system_change import NixosClosures, SystemRelease
from tasks.nixos_guard import arm_guard, disarm_guard
from tasks.nixos_restore import restore_system
from tasks.nixos_roots import stage_system
from tasks.nixos_undo import take_system_back
from tests.tasks.nixing import (
    DEPLOYMENT,
    HOST,
    SETTINGS,
    before,
    changes,
    host,
    lab,
    nixos,
    recorded,
    restore,
    switch,
)

__all__ = ["before", "lab", "nixos"]  # fixtures

pytestmark = pytest.mark.xdist_group("nixos-undo")


@pytest.fixture(autouse=True)
def _no_guard(lab: LabNixos) -> Iterator[None]:
    yield
    disarm_guard(host(lab), deployment=DEPLOYMENT)
    shutil.rmtree(lab.host(HOST).root / "state" / "guard", ignore_errors=True)


def arm(lab: LabNixos) -> None:
    action = ArmGuard(instance=HOST, guard_s=300, back=recorded(lab))
    arm_guard(host(lab), action, deployment=DEPLOYMENT)


def files(lab: LabNixos) -> list[Path]:
    root = lab.host(HOST).root
    places = (root / "state", lab.host(HOST).guard_units)
    return [file for place in places for file in place.rglob("*") if file.is_symlink() or file.is_file()]


def take_back_again(lab: LabNixos, *steps: NixosUndo) -> None:
    for step in steps:
        take_system_back(host(lab), step, deployment=f"{DEPLOYMENT}-again", settings=SETTINGS)


def test_a_rollback_that_is_taken_up_again_leaves_no_guard_that_fires_later_and_no_roots(lab, before):
    source = NixosClosures(paths={HOST: before["current"]})
    change = SystemRelease(hosts="lab-nixos", release="26.05", source=source)
    stage = StageSystem(instance=HOST, path=before["current"], before=(before["current"],))
    stage_system(host(lab), change, stage, deployment=DEPLOYMENT)
    arm(lab)
    assert files(lab)
    take_back_again(lab, recorded(lab), DisarmGuard(instance=HOST), DropRoots(instance=HOST))
    assert files(lab) == []
    assert changes(before, lab) == {}


def test_what_a_killed_deployer_had_written_of_a_guard_goes_with_it(lab):
    units = lab.host(HOST).guard_units
    (units / f".sovereign-guard-{DEPLOYMENT}.timer.new").touch()
    disarm_guard(host(lab), deployment=DEPLOYMENT)
    assert files(lab) == []


def test_no_guard_is_armed_on_a_host_that_somebody_changed_since_the_plan(lab):
    back = recorded(lab)
    switch(lab, lab.build(HOST, note="by hand"))
    action = ArmGuard(instance=HOST, guard_s=300, back=back)
    with pytest.raises(WorldMovedError, match=r"is not what the plan was made for: .* Deploy again once"):
        arm_guard(host(lab), action, deployment=DEPLOYMENT)
    assert files(lab) == []


# --- which kernel is good enough -------------------------------------------------------------------


@pytest.mark.parametrize("is_rebooted", [True, False])
def test_where_a_reboot_was_due_the_kernel_of_what_is_taken_back_does_not_stay(lab, is_rebooted):
    switch(lab, lab.build(HOST, kernel="6.12.80", note="awaits its reboot"))
    back, before = recorded(lab), lab.observed(HOST)
    assert back.booted != back.release
    switch(lab, lab.build(HOST, kernel="6.18.1"))
    if is_rebooted:
        lab.reboot(HOST)
    restore(lab, back)
    assert changes(before, lab) == ({"booted": back.release} if is_rebooted else {})


# --- a host that goes down -------------------------------------------------------------------------


def with_programs(lab: LabNixos, directory: Path, **texts: str) -> Instance:
    """Return the host with some programs replaced; `$real` is the one that is replaced."""
    instance = host(lab)
    places = instance.nixos_host.places
    shutil.copytree(places.programs, directory, symlinks=True)
    for name, text in texts.items():
        program = directory / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\nreal={places.programs}/{program.name}\n{text}\n")
        program.chmod(0o755)
    moved = places.model_copy(update={"programs": str(directory)})
    return instance.model_copy(update={"nixos": instance.nixos_host.model_copy(update={"places": moved})})


def test_a_host_that_is_shutting_down_is_waited_for(lab, before, tmp_path):
    back, goes_down = recorded(lab), tmp_path / "goes-down"
    switch(lab, lab.build(HOST))
    goes_down.write_text("xx")  # as often as it is asked; then it is up again
    # as systemd is between the order to reboot and the end of the last service
    systemctl = (
        f'[ -e {goes_down} ] || exec "$real" "$@"\n'
        'case "$1" in list-units) exec "$real" "$@";; is-system-running)\n'
        f'  case "$(cat {goes_down})" in x) rm {goes_down};; *) printf x >{goes_down};; esac\n'
        "  echo stopping; exit 1;;\n"
        "esac\n"
        'echo "Transaction is destructive" >&2; exit 1'
    )
    systemd_run = f'[ -e {goes_down} ] || exec "$real" "$@"\necho "Transaction is destructive" >&2; exit 1'
    instance = with_programs(lab, tmp_path / "programs", systemctl=systemctl, systemd_run=systemd_run)
    arm(lab)
    restore_system(instance, back, deployment=DEPLOYMENT, settings=SETTINGS)
    assert not goes_down.exists()
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert changes(before, lab) == {}


def test_a_boot_loader_that_refuses_once_is_told_again(lab, before, tmp_path):
    back, refuses = recorded(lab), tmp_path / "refuses"
    switch(lab, lab.build(HOST))
    refuses.touch()
    # the first that is asked for is the boot loader
    systemd_run = (
        f'[ ! -e {refuses} ] || {{ rm {refuses}; echo "Transaction is destructive" >&2; exit 1; }}\n'
        'exec "$real" "$@"'
    )
    instance = with_programs(lab, tmp_path / "programs", systemd_run=systemd_run)
    arm(lab)
    restore_system(instance, back, deployment=DEPLOYMENT, settings=SETTINGS)
    assert not refuses.exists()
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert changes(before, lab) == {}


def test_a_guard_whose_time_cannot_begin_anew_does_not_stop_the_way_back(lab, before, tmp_path):
    back = recorded(lab)
    arm(lab)
    switch(lab, lab.build(HOST))
    systemctl = '[ "$1" != restart ] || { echo "Connection timed out" >&2; exit 1; }\nexec "$real" "$@"'
    instance = with_programs(lab, tmp_path / "programs", systemctl=systemctl)
    restore_system(instance, back, deployment=DEPLOYMENT, settings=SETTINGS)
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert changes(before, lab) == {}


# --- what is read, and what is said ----------------------------------------------------------------


def test_other_links_beside_the_generations_are_in_nobodys_way(lab, before):
    back, place = recorded(lab), lab.host(HOST).profile
    others = [place.with_name(name) for name in ("system-old-link", "system-test-1-link")]
    path = lab.build(HOST)
    for link in others:
        link.symlink_to(path)
    try:
        switch(lab, path)
        restore(lab, back)
        assert changes(before, lab) == {}
    finally:
        for link in others:
            link.unlink()


def test_a_boot_loader_that_could_not_be_told_is_told_also_where_something_else_is_wrong(lab):
    lab.configure(HOST, fail="BOOTLOADER", failing_units=("old.service",))
    lab.install(HOST)
    back = recorded(lab).model_copy(update={"failed_before": ()})
    switch(lab, lab.build(HOST))
    with pytest.raises(
        UndoFailedError, match=r"old\.service failed and had not before.* boot loader could not"
    ):
        restore(lab, back)
    lab.configure(HOST)
