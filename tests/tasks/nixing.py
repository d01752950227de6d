"""A NixOS host for tests of tasks: what is done to it, and what takes it back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from lab.nixos import LabNixos
from lab.sshd import LabSshd
from rules.fleet import Instance
from rules.nixos import Activation
from rules.nixos_actions import ActivateSystem, RestoreSystem, SwitchSystem
from tasks.nixos_activate import activate_system, switch_system
from tasks.nixos_restore import restore_system
from tasks.settings import Settings
from tests.requirements import need

HOST, DEPLOYMENT = "alpha", "nixos-1"
SETTINGS = Settings(rollback_deadline_s=60)
#: Longer than anything takes on a busy machine; tests of a limit set their own.
PATIENT = {"activate_s": 60.0, "settle_s": 30.0, "reboot_s": 60.0, "guard_s": 120.0}


@pytest.fixture(scope="module")
def nixos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNixos]:
    """One host for a module, in whatever state the last test left it."""
    need("nix-build", "nix-env", package="nix-bin")
    with LabNixos(tmp_path_factory.mktemp("nixos"), hosts=(HOST,)) as running:
        _first(running).symlink_to(str(running.observed(HOST)["profile"]))
        yield running


def _first(lab: LabNixos) -> Path:
    return lab.directory / "first-system"


@pytest.fixture
def lab(nixos: LabNixos) -> LabNixos:
    """The host with its first generation only, booted, and no guard."""
    for place in (nixos.host(HOST).guard_units, nixos.host(HOST).root / "state"):
        shutil.rmtree(place)
        place.mkdir()
    profile, default = nixos.host(HOST).profile, nixos.host(HOST).root / "boot-default"
    first = str(_first(nixos).readlink())
    for link in profile.parent.glob("system*"):
        link.unlink()
    profile.with_name("system-1-link").symlink_to(first)
    profile.symlink_to("system-1-link")
    default.unlink(missing_ok=True)
    default.symlink_to(first)
    assert nixos.reboot(HOST)
    return nixos


@pytest.fixture
def before(lab: LabNixos) -> dict[str, Any]:
    """What was there before the test."""
    return lab.observed(HOST)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LabSshd]:
    """A way to the host that can be cut."""
    need("ssh", "ssh-keygen", package="openssh-client")
    need("sshd", package="openssh-server")
    with LabSshd(tmp_path / "sshd") as server:
        yield server


def host(lab: LabNixos, **limits: Any) -> Instance:
    """Return the host as deployments know it, with these limits."""
    instance = lab.instance(HOST)
    nixos = instance.nixos_host.model_copy(update=PATIENT | limits)
    return instance.model_copy(update={"nixos": nixos})


def changes(before: dict[str, Any], lab: LabNixos) -> dict[str, Any]:
    """Return what is other than before, by its name."""
    now: dict[str, Any] = lab.observed(HOST)
    return {key: now[key] for key in before if now[key] != before[key]}


def recorded(lab: LabNixos, *, answers: bool = False) -> RestoreSystem:
    """Return the way back to what the host is now."""
    now: dict[str, Any] = lab.observed(HOST)
    number = re.fullmatch(r"system-(\d+)-link", now["generation"])
    assert number
    return RestoreSystem(
        instance=HOST,
        release=now["profile"],
        running=now["current"],
        generation=int(number[1]),
        booted=now["booted"],
        failed_before=now["failed_units"],
        answering=(lab.url(HOST),) if answers else (),
    )


def activate(lab: LabNixos, path: str, *, failed_before: tuple[str, ...] = (), **limits: Any) -> Activation:
    """Activate a system without making it the default."""
    action = ActivateSystem(instance=HOST, path=path, failed_before=failed_before)
    return activate_system(host(lab, **limits), action, deployment=DEPLOYMENT)


def switch(lab: LabNixos, path: str, mode: Literal["switch", "boot"] = "switch") -> Activation:
    """Make a system the default; activate it too, unless the mode is `boot`."""
    action = SwitchSystem(instance=HOST, path=path, mode=mode)
    return switch_system(host(lab), action, deployment=DEPLOYMENT)


def restore(lab: LabNixos, step: RestoreSystem, *, settings: Settings = SETTINGS, **limits: Any) -> None:
    """Take the host back."""
    restore_system(host(lab, **limits), step, deployment=DEPLOYMENT, settings=settings)
