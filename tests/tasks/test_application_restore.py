"""The way back of an application's instance: right from wherever the update got to, and as often as asked."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from lab.application import FIRST_RELEASE, LabApplication
from lab.releases import Behaviour
from rules.errors import CommandError, UndoFailedError
from rules.fleet import Instance, NixProfile
from rules.undo import RemoveRelease, RestoreRelease
from tasks.application import (
    current_release,
    remove_release,
    restore_release,
    running_release,
    service_runs,
    staged_releases,
    stop_service,
    switch_release,
)
from tests.tasks.updating import (
    DEPLOYMENT,
    INSTANCE,
    NEXT_RELEASE,
    SETTINGS,
    files,
    pid,
    releases,
    stage,
    update,
    updated,
)

RECORDED = RestoreRelease(instance=INSTANCE, release=FIRST_RELEASE, running=FIRST_RELEASE)
REMOVE = RemoveRelease(instance=INSTANCE, release=NEXT_RELEASE)


def stopped_in_between(web: LabApplication, instance: Instance) -> None:
    update(web, instance)
    stop_service(instance, settings=SETTINGS)


def only_switched(web: LabApplication, instance: Instance) -> None:
    stage(instance, web.change(NEXT_RELEASE))
    switch_release(instance, NEXT_RELEASE)


def updated_to_one_that_hangs(web: LabApplication, instance: Instance) -> None:
    update(web, instance, Behaviour(ready_after_s=600))


def link_back_already(web: LabApplication, instance: Instance) -> None:
    updated(web, instance)
    switch_release(instance, FIRST_RELEASE)


def killed_meanwhile(web: LabApplication, instance: Instance) -> None:
    web.kill(INSTANCE)


REACHED: list[Callable[[LabApplication, Instance], None]] = [
    only_switched,
    stopped_in_between,
    updated,
    updated_to_one_that_hangs,
    link_back_already,
    killed_meanwhile,
]


@pytest.mark.parametrize("reached", REACHED, ids=lambda reached: reached.__name__)
def test_a_restore_gets_back_from_wherever_the_update_got_to(web, local, reached):
    reached(web, local)
    restore_release(local, RECORDED, settings=SETTINGS)
    restored = (current_release(local), running_release(local), pid(local))
    assert restored[:2] == (FIRST_RELEASE, FIRST_RELEASE)
    restore_release(local, RECORDED, settings=SETTINGS)
    assert (current_release(local), running_release(local), pid(local)) == restored


def test_an_update_behind_ssh_is_taken_back_whole(web, local, remote):
    instance = local.model_copy(update={"host": remote})
    before = web.observed()
    updated(web, instance)
    restore_release(instance, RECORDED, settings=SETTINGS)
    remove_release(instance, REMOVE, deployment=DEPLOYMENT)
    assert web.observed() == before


def test_a_restore_of_what_never_changed_leaves_the_process_alone(web, local):
    stage(local, web.change(NEXT_RELEASE))
    before = pid(local)
    restore_release(local, RECORDED, settings=SETTINGS)
    only_switched(web, local)
    restore_release(local, RECORDED, settings=SETTINGS)
    assert (current_release(local), pid(local)) == (FIRST_RELEASE, before)


def test_an_instance_that_had_nothing_gets_back_to_nothing(web, local):
    stop_service(local, settings=SETTINGS)
    (web.root(INSTANCE) / "current").unlink()
    nothing = RestoreRelease(instance=INSTANCE, release=None, running=None)
    assert (current_release(local), running_release(local)) == (None, None)
    updated(web, local)
    for _ in range(2):
        restore_release(local, nothing, settings=SETTINGS)
        assert not (web.root(INSTANCE) / "current").is_symlink()
        assert not service_runs(local)


def test_an_instance_that_was_stopped_is_stopped_again(web, local):
    stop_service(local, settings=SETTINGS)
    updated(web, local)
    restore_release(local, RECORDED.model_copy(update={"running": None}), settings=SETTINGS)
    assert current_release(local) == FIRST_RELEASE
    assert not service_runs(local)


def test_a_recorded_release_that_does_not_come_up_is_a_failed_undo(web, local):
    updated(web, local)
    behaviour = releases(web) / FIRST_RELEASE / "behaviour.json"
    behaviour.write_text(behaviour.read_text().replace('"fails_to_start": false', '"fails_to_start": true'))
    with pytest.raises(UndoFailedError, match=r"does not come back on 1\.0\.0: .* has ended"):
        restore_release(local, RECORDED, settings=SETTINGS)


def test_a_staged_release_is_removed_once_and_for_all(web, local):
    stage(local, web.change(NEXT_RELEASE))
    for _ in range(2):
        remove_release(local, REMOVE, deployment=DEPLOYMENT)
        assert files(web) == [FIRST_RELEASE]
    assert running_release(local) == FIRST_RELEASE


def test_the_release_in_use_is_never_removed(web, local):
    stage(local, web.change(NEXT_RELEASE))
    switch_release(local, NEXT_RELEASE)
    with pytest.raises(UndoFailedError, match=r"still points to 2\.0\.0"):
        remove_release(local, REMOVE, deployment=DEPLOYMENT)
    assert staged_releases(local) == (FIRST_RELEASE, NEXT_RELEASE)


def test_a_removal_cut_off_halfway_leaves_nothing_that_looks_staged(web, local, tmp_path, monkeypatch):
    change = web.change(NEXT_RELEASE)
    stage(local, change)
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "rm"
    broken.write_text('#!/bin/sh\n[ -e "$3" ] || exit 0\nunlink "$3/app.py"; kill -KILL $$\n')
    broken.chmod(0o755)
    with monkeypatch.context() as cut_off:
        cut_off.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        with pytest.raises(CommandError):
            remove_release(local, REMOVE, deployment=DEPLOYMENT)
    stage(local, change)
    assert (releases(web) / NEXT_RELEASE / "app.py").is_file()


def test_a_nix_profile_keeps_no_releases_of_ours(local):
    nix = local.model_copy(update={"layout": NixProfile(profile="/nowhere/profile")})
    assert staged_releases(nix) == ()
    assert current_release(nix) is None
    remove_release(nix, REMOVE, deployment=DEPLOYMENT)
