"""The gate: what blocks, and what it says."""

from __future__ import annotations

import pytest

from rules.checklist import ChecklistReport, artefact_check, judge_fleet
from rules.incident import Severity, severity
from tests.rules.builders import CHANGE, fleet, state


def with_instance(before, name, **update):
    changed = before.instances[name].model_copy(update=update)
    return before.model_copy(update={"instances": {**before.instances, name: changed}})


def blocking(before):
    return [row.id for row in ChecklistReport(checks=judge_fleet(CHANGE, fleet(), before)).blocking]


def test_a_healthy_fleet_passes():
    assert blocking(state(fleet())) == []


def test_a_sick_live_instance_blocks_and_is_named():
    before = with_instance(state(fleet()), "blue-2", running=None)
    report = ChecklistReport(checks=judge_fleet(CHANGE, fleet(), before))
    assert [row.id for row in report.blocking] == ["instances-healthy", "rollback-target"]
    assert "Bring blue-2 up first" in report.in_words


def test_a_sick_idle_instance_does_not_block():
    assert blocking(with_instance(state(fleet()), "green-1", running=None)) == []


def test_a_live_instance_without_a_release_has_no_way_back():
    assert blocking(with_instance(state(fleet()), "blue-1", release=None)) == ["rollback-target"]


def test_a_drained_live_instance_blocks():
    before = state(fleet())
    before = before.model_copy(update={"servers": {**before.servers, "blue-1": "drain"}})
    assert blocking(before) == ["balancer-ready"]


@pytest.mark.parametrize("found", [None, "b" * 64])
def test_a_missing_or_different_archive_blocks_with_a_remedy(found):
    row = artefact_check(found=found, wanted="a" * 64, where="/srv/web.tar.gz")
    assert ChecklistReport(checks=(row,)).blocking == (row,)
    assert "correct the path or sha256" in row.remedy


def test_a_failed_rollback_wakes_a_person_and_a_good_one_does_not():
    assert severity("rollback_failed") is Severity.P0
    assert severity("rolled_back") is Severity.P2
    assert severity("blocked") is Severity.P3
    assert severity("promoted") is None
