"""A NixOS host rebooted: it comes back with the system that it should, with another one, or not at all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lab.nixos import LabNixos
from rules.errors import RevokedError
from rules.fleet import Instance
from rules.nixos_actions import RebootHost
from tasks.nixos_reboot import RebootFailedError, reboot_host
from tests.tasks.nixing import (
    DEPLOYMENT,
    HOST,
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

pytestmark = pytest.mark.xdist_group("nixos-reboot")


def reboot(instance: Instance, path: str, still_wanted=lambda: None) -> float:
    action = RebootHost(instance=HOST, path=path)
    return reboot_host(instance, action, deployment=DEPLOYMENT, still_wanted=still_wanted)


def marker(lab: LabNixos) -> Path:
    return lab.host(HOST).root / "run" / "sovereign-deploy" / f"reboot-{DEPLOYMENT}"


def test_a_host_comes_back_with_the_system_that_boots(lab, before):
    path = lab.build(HOST, kernel="6.18.1", boot_s="1")
    switch(lab, path, "boot")
    assert 0.3 < reboot(host(lab), path) < 60
    assert changes(before, lab).keys() == {"generation", "profile", "current", "booted", "boot_default"}
    assert not marker(lab).exists()


def test_a_host_that_is_reached_by_ssh_goes_and_comes_back(lab, sshd):
    path = lab.build(HOST, kernel="6.18.1")
    switch(lab, path, "boot")
    assert reboot(host(lab).model_copy(update={"host": sshd.host}), path) < 60
    assert lab.observed(HOST)["booted"] == path


def test_a_host_that_comes_back_with_another_system_is_found_out(lab, before):
    path = lab.build(HOST)
    with pytest.raises(
        RebootFailedError, match=rf"and not with {path}\. The host runs {before['current']}; "
    ):
        reboot(host(lab), path)


def test_a_host_that_does_not_come_back_is_left_to_its_guard_and_a_person(lab, before):
    back, path = recorded(lab), lab.build(HOST, breaks_boot=True)
    switch(lab, path, "boot")
    with pytest.raises(RebootFailedError, match=r"did not come back .* choose the generation from before"):
        reboot(host(lab, reboot_s=3), path)
    # somebody at its console chooses the generation from before; its default is the other one still
    assert lab.boot(HOST, before["profile"])
    assert lab.observed(HOST)["boot_default"] == path
    restore(lab, back)
    assert changes(before, lab) == {}


def test_a_reboot_that_is_not_wanted_any_more_is_not_waited_for(lab):
    path = lab.build(HOST, kernel="6.18.1", boot_s="1")
    switch(lab, path, "boot")

    def gone() -> None:
        raise RevokedError("cancelled")

    with pytest.raises(RevokedError):
        reboot(host(lab), path, still_wanted=gone)
    deadline = time.monotonic() + 30
    while marker(lab).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marker(lab).exists()


def with_systemctl(lab: LabNixos, directory: Path, text: str, **limits: float) -> Instance:
    """Return the host with a systemctl of this text."""
    directory.mkdir()
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    instance = host(lab, **limits)
    places = instance.nixos_host.places.model_copy(update={"programs": str(directory)})
    return instance.model_copy(update={"nixos": instance.nixos_host.model_copy(update={"places": places})})


def test_a_host_that_refuses_to_reboot_is_not_waited_for(lab, before, tmp_path):
    words = "Operation inhibited by backup"
    instance = with_systemctl(lab, tmp_path / "programs", f"echo '{words}' >&2; exit 1")
    with pytest.raises(RebootFailedError, match=rf"refuses to reboot: {words}\. It was not rebooted"):
        reboot(instance, before["current"])
    assert not marker(lab).exists()
    assert changes(before, lab) == {}


def test_a_host_that_does_not_go_down_is_named(lab, before, tmp_path):
    instance = with_systemctl(lab, tmp_path / "programs", "exit 0", reboot_s=1)
    with pytest.raises(RebootFailedError, match=r"did not go down in \d+ s\. The host runs .*list-jobs"):
        reboot(instance, before["current"])
    assert changes(before, lab) == {}
