"""An instance that is a systemd unit: a real systemd, on a host of its own reached by ssh."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import FIRST_RELEASE
from lab.ports import free_port, give_back
from lab.releases import GOOD, Behaviour, build_release, install_release
from lab.systemd import LabSystemd
from rules.change import ApplicationRelease
from rules.errors import CommandError
from rules.fleet import Instance, Probe, ReleaseDirectory, SystemdService
from rules.undo import RestoreRelease
from tasks.application import (
    NotReadyError,
    current_release,
    read_instance,
    restart_service,
    restore_release,
    running_release,
    service_runs,
    stage_release,
    stop_service,
    switch_release,
    wait_until_ready,
)
from tests.tasks.updating import DEPLOYMENT, NEXT_RELEASE, SETTINGS, pid

#: Only one is booted at a time, so one worker should have them all.
pytestmark = pytest.mark.xdist_group("systemd")

NAME = "web-1"
RECORDED = RestoreRelease(instance=NAME, release=FIRST_RELEASE, running=FIRST_RELEASE)
PYTHON = Path(sys.executable).resolve()
UNIT = """\
[Unit]
StartLimitIntervalSec=300
StartLimitBurst=3
[Service]
Type=exec
WorkingDirectory={root}/current
ExecStart={python} -I -S {root}/current/app.py --port {port}
Restart=on-failure
RestartSec=50ms
"""


@pytest.fixture
def instance(machine: LabSystemd, request: pytest.FixtureRequest) -> Iterator[Instance]:
    """An instance on it, in its first release."""
    root, port = machine.directory / f"web-{os.urandom(4).hex()}", free_port()
    install_release(build_release(root / "archives", FIRST_RELEASE), root, FIRST_RELEASE)
    unit = f"{root.name}.service"
    remove = machine.add_unit(unit, UNIT.format(python=PYTHON, root=root, port=port))
    instance = Instance(
        name=NAME,
        host=machine.host,
        layout=ReleaseDirectory(root=str(root)),
        service=SystemdService(unit=unit),
        probe=Probe(url=f"http://127.0.0.1:{port}/health"),
        start_timeout_s=20,
    )
    machine.run("systemctl", "start", unit)
    wait_until_ready(instance, FIRST_RELEASE, timeout_s=20)
    yield instance
    remove()
    give_back(port)


def switched(instance: Instance, behaviour: Behaviour = GOOD) -> None:
    assert isinstance(instance.layout, ReleaseDirectory)
    archive = build_release(Path(instance.layout.root) / "archives", NEXT_RELEASE, behaviour)
    change = ApplicationRelease(application="web", release=NEXT_RELEASE, artefact=archive)
    stage_release(instance, change, deployment=DEPLOYMENT, settings=SETTINGS)
    switch_release(instance, NEXT_RELEASE)


def property_of(machine: LabSystemd, instance: Instance, name: str) -> str:
    assert isinstance(instance.service, SystemdService)
    return machine.run("systemctl", "show", "--value", "--property", name, instance.service.unit).strip()


def test_a_restart_runs_what_the_link_points_to(machine, instance):
    before = pid(instance)
    switched(instance)
    restart_service(instance, settings=SETTINGS)
    wait_until_ready(instance, NEXT_RELEASE, timeout_s=20)
    state = read_instance(instance)
    assert (state.release, state.running, state.releases) == (NEXT_RELEASE, NEXT_RELEASE, ("1.0.0", "2.0.0"))
    assert pid(instance) != before
    assert property_of(machine, instance, "MainPID") == str(pid(instance))


def test_a_stopped_unit_is_no_error_and_is_started_by_a_restart(machine, instance):
    for _ in range(2):
        stop_service(instance, settings=SETTINGS)
        assert property_of(machine, instance, "ActiveState") == "inactive"
        assert not service_runs(instance)
    restart_service(instance, settings=SETTINGS)
    assert service_runs(instance)


def test_a_release_that_ends_again_and_again_is_not_waited_for(machine, instance):
    switched(instance, Behaviour(fails_to_start=True))
    restart_service(instance, settings=SETTINGS)  # Type=exec: the program ran, that is all it says
    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"nothing healthy answers .* has ended"):
        wait_until_ready(instance, NEXT_RELEASE, timeout_s=60)
    assert time.monotonic() - began < 30


def test_a_restore_succeeds_when_the_bad_release_used_up_the_start_limit(machine, instance):
    switched(instance, Behaviour(fails_to_start=True))
    restart_service(instance, settings=SETTINGS)
    while property_of(machine, instance, "ActiveState") != "failed":
        time.sleep(0.1)
    assert not service_runs(instance)
    restore_release(instance, RECORDED, settings=SETTINGS)
    assert (current_release(instance), running_release(instance)) == (FIRST_RELEASE, FIRST_RELEASE)


def test_a_restore_overtakes_a_restart_that_nobody_waits_for_any_more(machine, instance):
    switched(instance)
    # what a killed deployment leaves: systemd goes on with the job after systemctl is gone
    machine.run("systemctl", "restart", "--no-block", instance.service.unit)
    for _ in range(2):
        restore_release(instance, RECORDED, settings=SETTINGS)
    machine.run("systemctl", "is-active", instance.service.unit)
    assert (current_release(instance), running_release(instance)) == (FIRST_RELEASE, FIRST_RELEASE)


def test_a_restore_of_what_never_changed_leaves_the_process_alone(instance):
    before = pid(instance)
    restore_release(instance, RECORDED, settings=SETTINGS)
    assert pid(instance) == before


def test_a_unit_that_is_not_there_is_an_error(instance):
    unknown = instance.model_copy(update={"service": SystemdService(unit="no-such.service")})
    for effect in (restart_service, stop_service):
        with pytest.raises(CommandError, match=r"no-such\.service") as caught:
            effect(unknown, settings=SETTINGS)
        assert caught.value.host == "lab-systemd"
