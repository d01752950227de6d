"""What must not begin does not: nothing is changed, and the words say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.deploy import deploy
from rules.change import ApplicationRelease, ReleaseArchive
from rules.errors import GateBlockedError
from rules.plan import Plan
from rules.strategy import Canary, InPlace
from tests.flows.site import Site


@pytest.mark.parametrize("wrong", ["sha256", "path"])
def test_an_archive_that_is_not_what_was_asked_for_is_blocked(site: Site, wrong: str) -> None:
    archive = site.change().artefact
    other = {"sha256": "0" * 64, "path": "/nowhere/2.0.0.tar.gz"}[wrong]
    artefact = ReleaseArchive.model_validate({**archive.model_dump(), wrong: other})
    change = ApplicationRelease(application=site.application.name, release="2.0.0", artefact=artefact)
    with pytest.raises(GateBlockedError, match="Put the archive there, or correct the path or sha256"):
        deploy(change, Canary())

    assert_unchanged(site, "blocked")


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
