"""What a person reads of a deployment: true in every state, and never broken by what it quotes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rules.entries import Decided, Done, Intent, Moved, Opened, Planned, stamped
from rules.journal import view
from rules.plan import Plan
from rules.record import decision_page, plan_page, progress_page, record_of, record_page
from rules.rollout import plan_rollout
from rules.strategy import Canary, InPlace
from rules.undo import RestoreRelease
from rules.verdict import Outcome
from tests.rules.builders import CHANGE, NEW, fleet, state

BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
OPENED = Opened(
    at=BEGAN,
    deployment="web-2-0-abc",
    target="application-web",
    flow_run_id="run",
    host="host-a",
    fleet=fleet(),
    summary="web",
)
BACK = RestoreRelease(instance="blue-1", release="1.0", running="1.0")
INTENT = Intent(number=0, title="blue-1: switch", undo=BACK)


def plan(strategy: Canary | InPlace) -> Plan:
    return plan_rollout(CHANGE, strategy, fleet(), state(fleet()))


def moved(name: str, reason: str = "15 % errors", after_s: float = 1.0) -> Moved:
    return stamped(Moved(state=name, reason=reason, by="flow"), BEGAN + timedelta(seconds=after_s))


def test_before_there_is_a_plan_the_record_knows_its_component_but_no_release():
    record = record_of(view([OPENED]))
    assert (record.component, record.release, record.strategy) == ("application", "", "")
    assert (record.state, record.reason, record.ended_at) == ("running", "", BEGAN)


def test_the_record_of_a_plan_names_release_and_strategy():
    record = record_of(view([OPENED, Planned(at=BEGAN, plan=plan(Canary()))]))
    assert (record.release, record.strategy) == (NEW, "canary")


@pytest.mark.parametrize("end", ["rollback_failed", "rolling_back"])
def test_a_way_back_that_was_not_verified_has_no_duration(end):
    moves = [moved("rolling_back"), *([moved(end, after_s=9)] if end != "rolling_back" else [])]
    record = record_of(view([OPENED, INTENT, *moves]))
    assert record.rollback_began_at == BEGAN + timedelta(seconds=1)
    assert record.rolled_back_s is None
    assert record.left_to_undo == (BACK.describe(),)


def test_the_reason_is_why_it_began_to_go_back_not_how_that_ended():
    entries = [OPENED, INTENT, moved("rolling_back"), moved("rollback_failed", "host gone", 9)]
    assert record_of(view(entries)).reason == "15 % errors"


def test_a_table_is_not_broken_by_what_it_quotes():
    hostile = "a | b\nc"
    intent = Intent(number=0, title=hostile, undo=BACK)
    decided = Decided(title=hostile, outcome=Outcome.FAIL, reasons=(hostile, "d"))
    entries = view([OPENED, intent, decided, moved("rolling_back", hostile)])
    pages = [
        progress_page("web", entries.entries),
        decision_page(entries),
        record_page(entries),
    ]
    for page in pages:
        assert "a \\| b c" in page
        rows = [row for row in page.splitlines() if row.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_a_short_journal_is_shown_whole():
    page = progress_page("web", [OPENED, Done(number=3)])
    assert page.index("step 4 done") < page.index("opened: web")
    assert "not shown" not in page


def test_a_plan_shows_each_step_its_way_back_and_what_users_will_notice():
    page = plan_page(plan(InPlace(instance="blue-1")))
    assert "# application-web: release 2.0, in_place" in page
    assert "Users will notice: blue-1 does not answer while it restarts into 2.0." in page
    assert "| 2 | blue-1: switch to 2.0 | blue-1: link to 1.0, 1.0 running |" in page
    assert "| 4 | blue-1: wait until ready | reads only |" in page
    assert "Users will notice: nothing." in plan_page(plan(Canary()))


def test_a_plan_without_steps_says_that_there_is_nothing_to_do():
    same = plan_rollout(CHANGE, Canary(), fleet(), state(fleet(), release=NEW))
    assert "the release is in place already" in plan_page(same)


def test_a_promotion_is_remembered_also_when_it_was_taken_back_later():
    entries = [OPENED, INTENT, moved("promoted", after_s=3), moved("rolling_back", after_s=9)]
    assert record_of(view(entries)).promoted_at == BEGAN + timedelta(seconds=3)
    assert record_of(view([OPENED, INTENT, moved("rolling_back")])).promoted_at is None
