"""The checklist before a deployment, on real archives and a real fleet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.application import LabApplication
from rules.change import ApplicationRelease
from rules.checklist import ChecklistReport, Result
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen
from tasks import haproxy
from tasks.fleet import observe_fleet
from tasks.gate import run_checklist
from tests.tasks.updating import NEXT_RELEASE


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LabApplication]:
    """One blue and one green instance behind HAProxy."""
    with LabApplication(tmp_path / "web", blue=1, green=1) as running:
        yield running


def gate(pair: LabApplication, change: ApplicationRelease) -> ChecklistReport:
    fleet = pair.fleet
    return run_checklist(change, fleet, plan_rollout(change, BlueGreen(), fleet, observe_fleet(fleet)))


def test_is_open_when_all_is_well_and_says_what_it_saw(pair):
    report = gate(pair, pair.change(NEXT_RELEASE))
    assert report.blocking == ()
    assert [check.id for check in report.checks] == [
        "release-present",
        "instances-healthy",
        "balancer-ready",
        "rollback-target",
    ]
    assert all(check.evidence and not check.remedy for check in report.checks)


def test_is_closed_to_an_archive_that_is_not_what_was_asked_for(pair):
    change = pair.change(NEXT_RELEASE)
    path = Path(change.artefact.path)
    path.write_bytes(path.read_bytes()[:-1])
    blocking = gate(pair, change).blocking
    assert [check.id for check in blocking] == ["release-present"]
    assert change.artefact.sha256 in blocking[0].evidence


@pytest.mark.parametrize("there", ["nothing", "a directory"])
def test_is_closed_to_an_archive_that_is_missing(pair, there):
    change = pair.change(NEXT_RELEASE)
    path = Path(change.artefact.path)
    path.unlink()
    if there == "a directory":
        path.mkdir()
    report = gate(pair, change)
    assert [check.id for check in report.blocking] == ["release-present"]
    assert "is missing" in report.in_words
    assert "Put the archive there" in report.in_words


def test_is_closed_when_an_instance_that_serves_users_is_dead(pair):
    pair.kill("blue-1")
    report = gate(pair, pair.change(NEXT_RELEASE))
    assert [check.id for check in report.blocking] == ["instances-healthy", "rollback-target"]
    assert "0 of 1 answer their probe" in report.in_words
    assert "Bring blue-1 up first." in report.in_words


def test_is_closed_when_an_instance_that_serves_users_is_taken_out(pair):
    haproxy.drain(pair.haproxy.address, "blue", "blue-1", deadline_s=5)
    report = gate(pair, pair.change(NEXT_RELEASE))
    assert [check.id for check in report.blocking] == ["balancer-ready"]
    assert "taken out: blue-1" in report.in_words


def test_a_dead_instance_of_the_idle_side_does_not_close_it(pair):
    pair.kill("green-1")
    report = gate(pair, pair.change(NEXT_RELEASE))
    assert report.blocking == ()
    assert {check.result for check in report.checks} == {Result.PASSED}
