"""The guard of a NixOS host under a real systemd, the host reached by ssh: whoever dies, it acts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.nixos import LabNixos
from lab.systemd import LabSystemd
from rules.fleet import Instance
from rules.nixos import NixosPlaces
from rules.systemd_timer import PROPERTIES, TimerSeen, timer_seen
from tasks.host import HostUnreachableError, run
from tasks.nixos_guard import GuardError, disarm_guard, extend_guard, guard_fired
from tests.requirements import need
from tests.tasks import guarding_deployer as deployer
from tests.tasks.guarding import DEPLOYMENT, HOST, NAME, arm, guard_files, has_restored, log, recorded, within

#: Only one is booted at a time, so one worker should have them all.
pytestmark = pytest.mark.xdist_group("systemd")

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def running(machine: LabSystemd) -> Iterator[LabNixos]:
    need("nix-env", "nix-build", package="nix-bin")
    with LabNixos(machine.directory / "nixos", hosts=(HOST,), systemd=machine) as lab:
        yield lab


@pytest.fixture
def lab(running: LabNixos) -> Iterator[LabNixos]:
    """The host in its first system, booted, with nothing of another test."""
    yield running
    disarm_guard(running.instance(HOST), deployment=DEPLOYMENT)
    run(running.instance(HOST).host, ("rm", "-rf", "--", f"{running.host(HOST).root}/state/guard"))
    running.install(HOST)


@pytest.fixture
def instance(lab: LabNixos) -> Instance:
    def answers() -> bool:
        with suppress(HostUnreachableError):
            return bool(run(instance.host, ("true",)))
        return False

    instance = lab.instance(HOST)
    assert within(PATIENCE_S, answers)  # its sshd has just been started
    return instance


def timer(machine: LabSystemd) -> TimerSeen:
    names = (f"--property={name}" for name in PROPERTIES)
    return timer_seen(machine.run("systemctl", "show", *names, f"{NAME}.timer"))


def known_units(machine: LabSystemd) -> str:
    """What systemd has of any guard, loaded or failed."""
    return machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "sovereign-guard-*")


def test_a_host_takes_itself_back_when_its_deployer_is_killed(machine, lab, instance, tmp_path):
    before, back, new = lab.observed(HOST), recorded(lab), lab.build(HOST)
    ready = tmp_path / "ready"
    argv = [sys.executable, "-m", deployer.__name__]
    argv += [instance.model_dump_json(), back.model_dump_json(), new, str(ready)]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL) as process:
        try:
            assert within(PATIENCE_S, ready.exists)
            assert (lab.observed(HOST)["current"], log(lab)) == (new, "")
        finally:
            process.kill()
    assert within(PATIENCE_S, has_restored(lab)), log(lab)
    assert lab.observed(HOST) == before
    assert guard_fired(instance, deployment=DEPLOYMENT)
    assert within(5, lambda: known_units(machine) == "")


def test_a_deployment_that_is_confirmed_disarms_it_and_it_never_fires(machine, lab, instance):
    before, back = lab.observed(HOST), recorded(lab)
    arm(instance, back, guard_s=8)
    assert timer(machine).waits
    assert guard_files(lab)
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert (known_units(machine), guard_files(lab)) == ("", [])
    time.sleep(9)
    assert not guard_fired(instance, deployment=DEPLOYMENT)
    assert lab.observed(HOST) == before


def test_its_time_begins_anew_when_it_is_extended(machine, lab, instance):
    arm(instance, recorded(lab), guard_s=600)
    started = machine.run("systemctl", "show", "--property=ActiveEnterTimestampMonotonic", f"{NAME}.timer")
    extend_guard(instance, deployment=DEPLOYMENT)
    again = machine.run("systemctl", "show", "--property=ActiveEnterTimestampMonotonic", f"{NAME}.timer")
    assert int(again.split("=")[1]) > int(started.split("=")[1])
    assert timer(machine).total_s == pytest.approx(600, abs=2)


def test_systemd_finds_it_before_all_others_and_starts_it_in_a_boot(machine, lab, instance):
    arm(instance, recorded(lab))
    fragment = machine.run("systemctl", "show", "--property=FragmentPath", f"{NAME}.timer").strip()
    assert fragment == f"FragmentPath={instance.nixos_host.places.guard_units}/{NAME}.timer"
    assert f"{NAME}.timer" in machine.run("systemctl", "list-dependencies", "timers.target")
    # what a boot does: it starts that target, and with it all that it wants
    machine.run("systemctl", "stop", f"{NAME}.timer")
    machine.run("systemctl", "start", "timers.target")
    assert within(5, lambda: timer(machine).waits)


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_it_outlives_what_a_switch_does_to_systemd(machine, lab, instance, verb):
    arm(instance, recorded(lab), guard_s=600)
    machine.run("systemctl", verb)
    assert within(10, lambda: timer(machine).waits)
    # systemd 252 counts from the reload: later than declared, never earlier
    assert 599 <= (timer(machine).total_s or 0) <= 660


def test_who_disarms_it_waits_until_it_has_restored(machine, lab, instance):
    slow = lab.build(HOST, activation_s="2", note="slow to activate")
    lab.host(HOST).run("nix-env", "--profile", str(lab.host(HOST).profile), "--set", slow)
    run(instance.host, (f"{slow}/bin/switch-to-configuration", "switch"))
    back = recorded(lab)
    arm(instance, back)
    threading.Thread(target=machine.run, args=("systemctl", "start", f"{NAME}.service"), daemon=True).start()
    assert within(PATIENCE_S, lambda: "not heard of" in log(lab))
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert "as recorded: done" in log(lab)
    assert (known_units(machine), guard_files(lab)) == ("", [])
    assert lab.observed(HOST)["current"] == slow


def test_a_guard_that_cannot_restore_tries_again_and_can_still_be_disarmed(machine, lab, instance):
    broken = lab.build(HOST, fail="BOOTLOADER")
    lab.host(HOST).run("nix-env", "--profile", str(lab.host(HOST).profile), "--set", broken)
    run(instance.host, (f"{broken}/bin/switch-to-configuration", "test"))
    arm(instance, recorded(lab))
    # it fails, so the command does, too
    with pytest.raises(Exception, match="failed"):
        machine.run("systemctl", "start", f"{NAME}.service")
    assert within(PATIENCE_S, lambda: log(lab).count("not heard of") >= 2), log(lab)
    disarm_guard(instance, deployment=DEPLOYMENT)
    assert (known_units(machine), guard_files(lab)) == ("", [])
    assert guard_fired(instance, deployment=DEPLOYMENT)


def test_places_with_letters_that_systemd_reads_are_just_places(machine, lab, instance):
    state = f"{lab.host(HOST).root}/state/guard/a b'c\"d$HOME%n\\e;f"
    changed = NixosPlaces.model_validate({**instance.nixos_host.places.model_dump(), "state": state})
    odd = instance.model_copy(update={"nixos": instance.nixos_host.model_copy(update={"places": changed})})
    arm(odd, recorded(lab))
    machine.run("systemctl", "start", f"{NAME}.service")
    assert guard_fired(odd, deployment=DEPLOYMENT)
    assert within(10, lambda: known_units(machine) == "")
    assert guard_files(lab) == []


def test_a_drop_in_file_that_gives_it_another_time_is_found(machine, lab, instance):
    before = lab.observed(HOST)
    drop_in = f"/run/systemd/system/{NAME}.timer.d"
    machine.run("mkdir", "-p", drop_in)
    machine.run("sh", "-c", f"printf '[Timer]\\nOnActiveSec=\\nOnActiveSec=99d\\n' >{drop_in}/late.conf")
    try:
        with pytest.raises(GuardError, match=r"is not as it must be: loaded, active \(waiting\), it elapses"):
            arm(instance, recorded(lab), guard_s=300)
    finally:
        machine.run("rm", "-r", drop_in)
        machine.run("systemctl", "daemon-reload")
    assert (known_units(machine), lab.observed(HOST)) == ("", before)
