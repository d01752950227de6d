"""An instance whose release is a Nix profile: a real store, a real binary cache, real profiles."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.nix import LabNix
from lab.ports import free_port, give_back
from lab.releases import GOOD, Behaviour, build_release
from rules.change import ApplicationRelease, NixStorePath
from rules.errors import CommandError, StepFailedError
from rules.fleet import CommandService, Instance, InstanceState, NixProfile, Probe
from rules.undo import RemoveRelease, RestoreRelease
from tasks.application import (
    NotReadyError,
    current_release,
    read_instance,
    remove_release,
    restart_service,
    restore_release,
    running_release,
    service_runs,
    stop_service,
    switch_release,
    wait_until_ready,
)
from tests.requirements import need
from tests.tasks.updating import SETTINGS, pid, stage

NAME = "web-1"


@pytest.fixture
def nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabNix:
    """A store that all commands of this test use."""
    need("nix", "nix-env", "nix-store", package="nix-bin")
    store = LabNix(tmp_path / "nix")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def fresh(nix: LabNix, tmp_path: Path) -> Iterator[Instance]:
    """An instance that runs whatever the profile points to, which is nothing yet."""
    root, port = tmp_path / NAME, free_port()
    root.mkdir()
    (root / "current").symlink_to(nix.profile)
    base, where = (sys.executable, "-m", "lab.service"), ("--root", str(root), "--port", str(port))
    instance = Instance(
        name=NAME,
        layout=NixProfile(profile=str(nix.profile)),
        service=CommandService(
            start=(*base, "start", *where), stop=(*base, "stop", *where), status=(*base, "status", *where)
        ),
        probe=Probe(url=f"http://127.0.0.1:{port}/health"),
        start_timeout_s=20,
    )
    yield instance
    stop_service(instance, settings=SETTINGS)
    give_back(port)


@pytest.fixture
def instance(nix: LabNix, fresh: Instance) -> Instance:
    """The same, in its first release."""
    update(fresh, release(nix, "1.0.0"))
    wait_until_ready(fresh, "1.0.0", timeout_s=20)
    return fresh


def release(nix: LabNix, version: str, behaviour: Behaviour = GOOD) -> ApplicationRelease:
    return ApplicationRelease(application="web", release=version, artefact=nix.publish(version, behaviour))


def update(instance: Instance, change: ApplicationRelease) -> None:
    stage(instance, change)
    switch_release(instance, change.pointer)
    restart_service(instance, settings=SETTINGS)


def recorded(instance: Instance) -> RestoreRelease:
    state = read_instance(instance)
    return RestoreRelease(instance=NAME, release=state.release, running=state.running)


def generations(nix: LabNix) -> list[str]:
    """What the profile has pointed to, oldest first."""
    links = nix.profile.parent.glob("web-*-link")
    by_number = sorted(links, key=lambda link: int(link.name.split("-")[1]))
    return [link.resolve().name.rpartition("-")[2] for link in by_number]


def test_staging_fetches_the_store_path_and_touches_nothing_else(nix, instance):
    change, before, process = release(nix, "2.0.0"), read_instance(instance), pid(instance)
    assert not Path(change.pointer).exists()
    for _ in range(2):
        stage(instance, change)
        assert sorted(p.name for p in Path(change.pointer).iterdir()) == ["app.py", "behaviour.json"]
    assert (read_instance(instance), pid(instance)) == (before, process)


def test_a_store_path_that_no_cache_has_is_a_failed_command(nix, instance):
    nowhere = NixStorePath(path=f"{nix.directory}/store/{'0' * 32}-web-2.0.0")
    change = ApplicationRelease(application="web", release="2.0.0", artefact=nowhere)
    with pytest.raises(CommandError, match=r"00-web-2\.0\.0"):
        stage(instance, change)
    assert running_release(instance) == "1.0.0"


def test_an_archive_does_not_fit_a_profile(instance, tmp_path):
    archive = build_release(tmp_path / "archives", "2.0.0")
    change = ApplicationRelease(application="web", release="2.0.0", artefact=archive)
    with pytest.raises(StepFailedError, match="archive does not fit"):
        stage(instance, change)


def test_an_update_points_the_profile_to_the_store_path_and_runs_it(nix, instance):
    change = release(nix, "2.0.0")
    update(instance, change)
    wait_until_ready(instance, "2.0.0", timeout_s=20)
    assert read_instance(instance) == InstanceState(release=change.pointer, running="2.0.0")
    switch_release(instance, change.pointer)
    assert generations(nix) == ["1.0.0", "2.0.0"]


def test_a_restore_goes_to_the_recorded_store_path_and_never_just_one_back(nix, instance):
    update(instance, release(nix, "2.0.0"))
    wait_until_ready(instance, "2.0.0", timeout_s=20)
    good = recorded(instance)

    update(instance, release(nix, "3.0.0", Behaviour(fails_to_start=True)))
    with pytest.raises(NotReadyError):
        wait_until_ready(instance, "3.0.0", timeout_s=20)
    restore_release(instance, good, settings=SETTINGS)
    assert (current_release(instance), running_release(instance)) == (good.release, "2.0.0")

    update(instance, release(nix, "4.0.0", Behaviour(wrong_version=True)))
    restore_release(instance, good, settings=SETTINGS)
    assert (current_release(instance), running_release(instance)) == (good.release, "2.0.0")
    assert generations(nix) == ["1.0.0", "2.0.0", "3.0.0", "2.0.0", "4.0.0", "2.0.0"]


def test_a_restore_is_right_however_far_the_update_got_and_as_often_as_asked(nix, instance):
    good, change, process = recorded(instance), release(nix, "2.0.0"), pid(instance)
    restore_release(instance, good, settings=SETTINGS)
    stage(instance, change)
    switch_release(instance, change.pointer)
    for _ in range(2):
        restore_release(instance, good, settings=SETTINGS)
        assert (recorded(instance), pid(instance)) == (good, process)
    update(instance, change)
    stop_service(instance, settings=SETTINGS)
    for _ in range(2):
        restore_release(instance, good, settings=SETTINGS)
        assert recorded(instance) == good


def test_an_instance_without_a_profile_gets_back_to_none(nix, fresh):
    nothing = recorded(fresh)
    assert nothing.release is None
    change = release(nix, "1.0.0")
    for _ in range(2):
        update(fresh, change)
        wait_until_ready(fresh, "1.0.0", timeout_s=20)
        for _ in range(2):
            restore_release(fresh, nothing, settings=SETTINGS)
            assert current_release(fresh) is None
            assert not service_runs(fresh)


def test_nothing_in_the_store_is_ours_to_remove(nix, instance):
    change = release(nix, "2.0.0")
    stage(instance, change)
    remove_release(instance, RemoveRelease(instance=NAME, release="2.0.0"), deployment="web-1")
    assert Path(change.pointer).is_dir()
