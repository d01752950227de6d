"""What must not begin does not: nothing is changed, and the words say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocks.environment import Environment
from blocks.restic import ResticAccess, ResticRepository
from flows.deploy import deploy
from flows.guard import TakenBackError
from rules.change import ApplicationRelease, ReleaseArchive
from rules.checklist import Waiver
from rules.errors import GateBlockedError
from rules.finding import Result
from rules.plan import Plan
from rules.strategy import Canary, InPlace
from tasks.restic import initialise
from tests.flows.site import Site
from tests.requirements import need


@pytest.mark.parametrize("wrong", ["sha256", "path"])
def test_an_archive_that_is_not_what_was_asked_for_is_blocked(site: Site, wrong: str) -> None:
    archive = site.change().artefact
    other = {"sha256": "0" * 64, "path": "/nowhere/2.0.0.tar.gz"}[wrong]
    artefact = ReleaseArchive.model_validate({**archive.model_dump(), wrong: other})
    change = ApplicationRelease(application=site.application.name, release="2.0.0", artefact=artefact)
    with pytest.raises(GateBlockedError, match="Put the archive there, or correct the path or sha256"):
        deploy(change, Canary())

    assert_unchanged(site, "blocked")


def test_a_waiver_opens_the_gate_for_a_wrong_archive_and_still_nobody_is_served_by_it(site: Site) -> None:
    archive = site.change().artefact
    artefact = ReleaseArchive.model_validate({**archive.model_dump(), "sha256": "0" * 64})
    change = ApplicationRelease(application=site.application.name, release="2.0.0", artefact=artefact)
    with pytest.raises(TakenBackError, match=r"[Cc]hecksum|sha256|SHA-256"):
        deploy(change, Canary(), waivers=[Waiver(item="release-present", by="Ada", reason="trust me")])

    assert site.view().state in ("rolled_back", "aborted")
    assert site.application.observed() == site.before
    assert site.failed_requests() == 0


def test_a_backup_that_cannot_be_read_back_ends_the_deployment(site: Site, tmp_path: Path) -> None:
    need("restic", package="restic")
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_bytes(os.urandom(3 << 20))
    fields = {"repository": str(tmp_path / "restic"), "password": "lab", "paths": [str(data)]}
    initialise(ResticAccess.model_validate(fields))
    ResticRepository.model_validate(fields).save("rotten", overwrite=True)
    Environment(backups=["sovereign-restic-repository/rotten"]).save("backed-up", overwrite=True)
    deploy(site.change(), InPlace(instance="blue-1"), environment="backed-up")
    assert site.view().state == "promoted"
    backup = site.view().backups[0]
    assert backup.verified.result is Result.PASSED

    packs = [path for path in (tmp_path / "restic/data").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    rotten = bytearray(largest.read_bytes())
    rotten[len(rotten) // 2] ^= 0xFF
    largest.write_bytes(rotten)
    before = site.application.observed()
    with pytest.raises(TakenBackError, match="cannot be relied upon"):
        deploy(site.change("3.0.0"), InPlace(instance="blue-1"), environment="backed-up")

    last = site.views()[-1]
    assert last.state == "aborted"
    assert not last.intents
    assert site.application.observed() == before


def test_a_dead_live_instance_blocks(site: Site) -> None:
    site.application.kill("blue-2")
    site.before = site.application.observed()
    with pytest.raises(
        GateBlockedError, match=r"1 of 2 answer their probe; down: blue-2\. Bring them up first"
    ):
        deploy(site.change(), Canary())

    assert_unchanged(site, "blocked")


def test_a_release_that_is_in_place_already_ends_the_deployment(site: Site) -> None:
    deploy(site.change("1.0.0"), InPlace(instance="blue-1"))

    assert site.view().reason == "Release 1.0.0 is in place already."
    assert_unchanged(site, "aborted")


def test_a_dry_run_changes_nothing_and_shows_each_way_back(site: Site) -> None:
    plan = deploy(site.change(), Canary(), dry_run=True)

    assert isinstance(plan, Plan)
    page = site.artifact(f"dry-run-application-{site.application.name}")
    for step in plan.steps:
        assert step.title in page
        assert step.undo is None or step.undo.describe() in page
    assert site.application.observed() == site.before
    assert site.owner() is None
    assert not Path(site.journal_dir).exists()


def assert_unchanged(site: Site, state: str) -> None:
    view = site.view()
    assert view.state == state
    assert not view.intents
    assert site.application.observed() == site.before
    assert site.owner() is None
    expected = "FAILED" if state == "blocked" else "COMPLETED"
    assert site.run_state(view.opened.flow_run_id)[0] == expected
