"""The gate: what blocks where, what a person's word is worth, and what it says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.checklist import Attestation, ChecklistReport, Item, Waiver, judge, unknown_items
from rules.environment import Stage
from rules.finding import Finding, Result, worst
from rules.fleet_checklist import artefact_finding, fleet_findings
from rules.items import GUIDE, RELEASE
from rules.traffic import Traffic
from tests.rules.builders import CHANGE, bare_fleet, fleet, state

EVERY_ITEM = (*RELEASE, *GUIDE)
GOOD = {Result.PASSED, Result.NOT_APPLICABLE, Result.ATTESTED, Result.WAIVED}
ITEM = Item(id="code-reviewed", title="Code", section="code", blocks_from=Stage.STAGING, remedy="Review it.")
HARD = ITEM.model_copy(update={"attestable": False})
SAID = Attestation(item="code-reviewed", by="Ada", words="read every line")
WAIVED = Waiver(item="code-reviewed", by="Grace", reason="a typing error in the imprint")


def row(item, finding, **said):
    (check,) = judge([item], {item.id: finding}, stage=Stage.PRODUCTION, **said).checks
    return check


# --- the fleet -------------------------------------------------------------------------------------


def with_instance(before, name, **update):
    changed = before.instances[name].model_copy(update=update)
    return before.model_copy(update={"instances": {**before.instances, name: changed}})


def failing(before, members=None):
    findings = fleet_findings(CHANGE, members or fleet(), before)
    return [item for item, finding in findings.items() if finding.result is not Result.PASSED]


def test_a_healthy_fleet_passes():
    assert failing(state(fleet())) == []


def test_a_sick_live_instance_fails_and_is_named():
    before = with_instance(state(fleet()), "blue-2", running=None)
    assert failing(before) == ["instances-healthy", "rollback-plan"]
    said = fleet_findings(CHANGE, fleet(), before)["instances-healthy"].evidence
    assert said == "1 of 2 answer their probe; down: blue-2."


def test_a_sick_idle_instance_does_not_block():
    assert failing(with_instance(state(fleet()), "green-1", running=None)) == []


def test_a_live_instance_without_a_release_has_no_way_back():
    assert failing(with_instance(state(fleet()), "blue-1", release=None)) == ["rollback-plan"]


def test_a_drained_live_instance_fails():
    before = state(fleet())
    before = before.model_copy(update={"servers": {**before.servers, "blue-1": "drain"}})
    assert failing(before) == ["balancer-ready"]


def test_a_side_that_nobody_stands_behind_is_no_healthy_fleet():
    before = state(fleet()).model_copy(update={"traffic": Traffic(live="red", candidate="blue")})
    assert failing(before) == ["instances-healthy", "rollback-plan"]


def test_without_a_balancer_there_is_none_to_be_ready():
    found = fleet_findings(CHANGE, bare_fleet(2), state(bare_fleet(2)))
    assert found["balancer-ready"].result is Result.NOT_APPLICABLE
    assert found["instances-healthy"].result is Result.PASSED


@pytest.mark.parametrize(
    ("found", "result"), [(None, Result.FAILED), ("b" * 64, Result.FAILED), ("a" * 64, Result.PASSED)]
)
def test_an_archive_is_present_only_with_the_checksum_that_was_asked_for(found, result):
    finding = artefact_finding(found=found, wanted="a" * 64, where="/srv/web.tar.gz")
    assert finding.result is result
    assert finding.evidence.startswith(f"/srv/web.tar.gz is {found or 'missing'}, wanted aaa")


# --- judging ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", EVERY_ITEM, ids=lambda item: item.id)
def test_each_row_blocks_from_its_stage_on_until_it_is_passed(item):
    first = item.blocks_from
    assert first is not None
    for stage in Stage:
        for finding in (Finding.unknown("not read."), Finding.failed("bad.")):
            report = judge([item], {item.id: finding}, stage=stage)
            assert bool(report.blocking) is stage.is_at_least(first)
            assert bool(report.warnings) is not stage.is_at_least(first)
            assert item.remedy in report.in_words or not report.blocking
        for good in (Finding.passed("read."), Finding.not_applicable("none here.")):
            assert not judge([item], {item.id: good}, stage=stage).blocking


def test_the_guide_has_22_items_and_no_row_is_there_twice():
    assert len(GUIDE) == 22
    assert len({item.id for item in EVERY_ITEM}) == len(EVERY_ITEM) == 25


def test_what_was_not_looked_at_is_unknown_and_unknown_is_not_passed():
    (check,) = judge([ITEM], {}, stage=Stage.STAGING).checks
    assert (check.result, check.blocks, check.remedy) == (Result.UNKNOWN, True, "Review it.")


def test_a_persons_word_stands_in_for_missing_evidence_and_names_the_person():
    check = row(ITEM, Finding.unknown("not read."), attestations=[SAID])
    assert (check.result, check.blocks, check.by) == (Result.ATTESTED, False, "Ada")
    assert (check.evidence, check.remedy) == ("read every line", "")


def test_a_persons_word_never_stands_against_evidence_that_was_read():
    check = row(ITEM, Finding.failed("2 reviews ask for changes."), attestations=[SAID])
    assert (check.result, check.blocks, check.by) == (Result.FAILED, True, "")


def test_a_persons_word_counts_for_nothing_where_only_the_system_can_answer():
    check = row(HARD, Finding.unknown("not read."), attestations=[SAID])
    assert (check.result, check.blocks) == (Result.UNKNOWN, True)


@pytest.mark.parametrize(
    "finding", [Finding.failed("2 reviews ask for changes."), Finding.unknown("not read.")]
)
@pytest.mark.parametrize("item", [ITEM, HARD])
def test_a_waiver_opens_any_row_and_keeps_what_it_was(item, finding):
    check = row(item, finding, waivers=[WAIVED], attestations=[SAID])
    assert (check.result, check.blocks, check.by) == (Result.WAIVED, False, "Grace")
    assert WAIVED.reason in check.evidence
    assert finding.evidence in check.evidence


def test_what_is_passed_needs_no_waiver_and_is_not_shown_as_waived():
    check = row(ITEM, Finding.passed("1 official approval."), waivers=[WAIVED], attestations=[SAID])
    assert (check.result, check.by) == (Result.PASSED, "")


def test_a_row_that_only_warns_never_blocks():
    warning = ITEM.model_copy(update={"blocks_from": None})
    report = judge([warning], {}, stage=Stage.PRODUCTION)
    assert report.blocking == ()
    assert [check.id for check in report.warnings] == ["code-reviewed"]


def test_ids_that_no_row_has_are_named():
    typing_error = SAID.model_copy(update={"item": "code-reviwed"})
    other = WAIVED.model_copy(update={"item": "budget"})
    assert unknown_items([ITEM], [SAID, typing_error], [WAIVED, other]) == ("budget", "code-reviwed")


def test_the_report_says_what_is_missing_and_how_to_supply_it():
    report = judge([ITEM], {}, stage=Stage.STAGING)
    assert report.in_words == "Code (code-reviewed): unknown, no evidence was given. Review it."
    assert report.summary == "1 rows: 1 unknown; 1 block"
    assert ChecklistReport.model_validate_json(report.model_dump_json()) == report


FINDINGS = st.builds(
    Finding,
    result=st.sampled_from([Result.PASSED, Result.FAILED, Result.UNKNOWN, Result.NOT_APPLICABLE]),
    evidence=st.just("as drawn."),
)


@st.composite
def looked_at(draw):
    """Findings for some of the rows, with some persons' words and decisions."""
    ids = [item.id for item in EVERY_ITEM]
    findings = draw(st.dictionaries(st.sampled_from(ids), FINDINGS))
    said = [SAID.model_copy(update={"item": i}) for i in draw(st.sets(st.sampled_from(ids), max_size=4))]
    waived = [WAIVED.model_copy(update={"item": i}) for i in draw(st.sets(st.sampled_from(ids), max_size=4))]
    return findings, said, waived


def blocking(found, stage):
    findings, said, waived = found
    report = judge(EVERY_ITEM, findings, stage=stage, attestations=said, waivers=waived)
    return {check.id for check in report.blocking}


@given(looked_at())
def test_a_stricter_stage_never_blocks_less(found):
    by_stage = [blocking(found, stage) for stage in Stage]
    for laxer, stricter in pairwise(by_stage):
        assert laxer <= stricter


@given(looked_at(), st.sampled_from(Stage), st.data())
def test_better_evidence_never_blocks_more(found, stage, data):
    findings, said, waived = found
    improved = data.draw(st.sampled_from([item.id for item in EVERY_ITEM]))
    better = ({**findings, improved: Finding.passed("read.")}, said, waived)
    assert blocking(better, stage) == blocking(found, stage) - {improved}


@given(looked_at(), st.sampled_from(Stage))
def test_every_row_is_answered_once_and_only_bad_ones_block(found, stage):
    findings, said, waived = found
    report = judge(EVERY_ITEM, findings, stage=stage, attestations=said, waivers=waived)
    assert [check.id for check in report.checks] == [item.id for item in EVERY_ITEM]
    for check in report.checks:
        assert not (check.blocks and check.result in GOOD)
        assert bool(check.remedy) is (check.result not in GOOD)
        assert bool(check.by) is (check.result in {Result.ATTESTED, Result.WAIVED})


def test_of_several_findings_for_one_row_the_worst_counts():
    findings = (Finding.passed("a."), Finding.failed("b."), Finding.unknown("c."), Finding.failed("d."))
    assert worst(findings) == Finding.failed("b.; d.")
    assert worst(findings[:1]) == findings[0]
    with pytest.raises(ValueError, match="no finding"):
        worst(())
