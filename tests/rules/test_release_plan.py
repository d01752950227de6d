"""The plan of a release: its order, the ways back, and what is shown of it."""

from __future__ import annotations

import pytest

from rules.checklist import Check, ChecklistReport
from rules.entries import Done, Intent, Locked, Moved, Opened, Planned, line, parse
from rules.errors import InvalidRequestError
from rules.finding import Result
from rules.fleet import NOBODY
from rules.impact import reach
from rules.incident import incident_of
from rules.journal import view
from rules.plan import Plan, applied
from rules.record import plan_page, record_of, record_page
from rules.release_actions import DeployComponent, TakeBackDeployment
from rules.release_plan import Foreseen, component_deployment, foreseen_page, plan_release, same_steps
from rules.release_states import parts_of, release_of
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, InPlace
from rules.undo import undone
from tests.rules.builders import CHANGE, fleet, state
from tests.rules.releases import component, schema, whole

ID = "emily-2-0-abc"
CONTRACT = component("gone", schema("0003", phase="contract"), "web", when="after_bake")
RELEASE = whole(*whole().components, CONTRACT)
PLAN = plan_release(RELEASE, ID)
OPENED = Opened(
    deployment=ID,
    target=RELEASE.target,
    component="release",
    flow_run_id="run",
    host="here",
    fleet=NOBODY,
    holds=RELEASE.holds,
    summary="emily 2.0",
)
WEB = plan_rollout(CHANGE, BlueGreen(), fleet(), state(fleet()))


def journal(*states: str, done: int = 3):
    entries = [OPENED, Locked(token="t"), Planned(plan=PLAN)]
    for step in PLAN.steps[:done]:
        assert step.undo
        entries += [Intent(number=step.number, title=step.title, undo=step.undo), Done(number=step.number)]
    entries += [Moved(state=one, reason="web failed", by="flow") for one in states]
    return view(parse(b"".join(line(entry) for entry in entries)))


def row(name: str, *, blocks: bool = True) -> Check:
    return Check(
        id=name,
        title=name,
        section="release",
        phase="before",
        result=Result.FAILED,
        blocks=blocks,
        evidence="no",
    )


def test_each_component_is_a_step_whose_way_back_names_its_deployment():
    assert [step.action for step in PLAN.steps] == [
        DeployComponent(component="schema", deployment=f"{ID}-1-schema"),
        DeployComponent(component="index", deployment=f"{ID}-2-index"),
        DeployComponent(component="web", deployment=f"{ID}-3-web"),
    ]
    assert [step.undo for step in PLAN.steps] == [
        TakeBackDeployment(component="schema", deployment=f"{ID}-1-schema"),
        TakeBackDeployment(component="index", deployment=f"{ID}-2-index"),
        TakeBackDeployment(component="web", deployment=f"{ID}-3-web"),
    ]


def test_the_page_shows_the_order_the_ways_back_and_what_waits_for_the_bake():
    page = plan_page(PLAN)
    assert "release 2.0, in_order" in page
    rows = [text for text in page.splitlines() if text.startswith(("| 1", "| 2", "| 3"))]
    assert "schema: postgres_schema memories 0002, in_place" in rows[0]
    assert "web: application web 2.0, in_place, after index, schema" in rows[2]
    assert f"web: take {ID}-3-web back" in rows[2]
    assert "schema: when a later component fails more than 300 s after it was promoted" in page
    assert "after the bake, once nothing of this release can be taken back: gone" in page


def test_a_plan_with_its_ways_back_survives_the_journal():
    known = journal()
    assert known.plan == PLAN
    assert release_of(known) == RELEASE
    assert parts_of(known) == {
        name: f"{ID}-{n}-{name}" for n, name in enumerate(("schema", "index", "web"), 1)
    }
    assert [intent.undo.component for intent in known.to_undo] == ["web", "index", "schema"]


def test_its_steps_and_ways_back_leave_every_fleet_as_it_is():
    before = state(fleet())
    for step in PLAN.steps:
        assert step.undo
        assert applied(before, step.action, PLAN.change) == before
        assert undone(before, step.undo) == before


def test_one_record_names_all_its_deployments_and_what_comes_later():
    record = record_of(journal("promoted"))
    assert (record.component, record.release, record.strategy) == ("release", "2.0", "in_order")
    assert record.parts == (f"{ID}-1-schema", f"{ID}-2-index", f"{ID}-3-web")
    assert record.later == ("gone",)
    page = record_page(journal("promoted"))
    assert f"| components, in order | {ID}-1-schema; {ID}-2-index; {ID}-3-web |" in page
    assert "| deployed by themselves after the bake | gone |" in page


def test_an_incident_of_a_release_leaves_what_users_noticed_to_its_components():
    gone_back = journal("rolling_back", "rolled_back")
    incident = incident_of(gone_back)
    assert incident
    assert incident.impact_in_words == "What users have noticed is told by the deployments of its components."
    assert reach(gone_back).impact == "none"
    failed = incident_of(journal("rolling_back", "rollback_failed"))
    assert failed
    assert failed.severity == "P0"


def test_what_is_foreseen_is_shown_also_what_is_planned_later():
    report = ChecklistReport(checks=(row("tests-passed"),))
    page = foreseen_page(
        [
            Foreseen(component="web", plan=WEB, report=report),
            Foreseen(component="index", why_later="after schema. Now: there is no such column"),
        ]
    )
    assert "# application-web: release 2.0, blue_green" in page
    assert "# Checklist: blocked" in page
    assert "# index\n\nIt is planned later: after schema. Now: there is no such column" in page


@pytest.mark.parametrize(
    ("tells", "blocking"), [(True, ["tests-passed"]), (False, ["tests-passed", "team-notified"])]
)
def test_that_nobody_was_told_yet_blocks_only_where_nobody_will_be(tells, blocking):
    rows = (row("tests-passed"), row("team-notified"), row("benchmarks", blocks=False))
    one = Foreseen(component="web", plan=WEB, report=ChecklistReport(checks=rows))
    assert [check.id for check in one.blocking(tells=tells)] == blocking
    assert Foreseen(component="index").blocking(tells=tells) == ()


def test_a_word_about_a_plan_stands_for_one_that_does_the_same():
    later = WEB.model_copy(update={"notes": ("other notes",)})
    other = plan_rollout(CHANGE, InPlace(instance="blue-1"), fleet(), state(fleet()))
    assert same_steps(WEB, later)
    assert not same_steps(WEB, other)


def test_ids_of_components_are_names_of_journals():
    assert component_deployment(ID, 0, "schema") == f"{ID}-1-schema"
    with pytest.raises(ValueError, match="pattern"):
        TakeBackDeployment(component="web", deployment="../web")


def test_a_release_records_no_database():
    with pytest.raises(InvalidRequestError, match="records no database"):
        _ = Plan.model_validate(PLAN.model_dump()).database_before
