"""Records found again: by what was asked, once each, and good enough for the next environment or not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.checklist import Check, ChecklistReport, Result
from rules.entries import Gated
from rules.history import (
    completed_in_staging,
    export_page,
    from_metadata,
    history_page,
    history_rows,
    matching,
    to_metadata,
    united,
)
from rules.pieces import from_pieces, in_pieces
from rules.record import DeploymentRecord, record_of
from rules.strategy import Canary
from tests.rules.ended import ended, failed_watch, planned, walked

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
CHANGE = "application:2.0:" + "a" * 64


def record(name: str = "web-1", *, hours_ago: float = 48, **fields: object) -> DeploymentRecord:
    began = NOW - timedelta(hours=hours_ago)
    known = {
        "deployment": name,
        "target": "application-web",
        "component": "application",
        "release": "2.0",
        "strategy": "canary",
        "environment": "stage",
        "stage": "staging",
        "change_id": CHANGE,
        "state": "completed",
        "reason": "all well",
        "started_at": began,
        "ended_at": began + timedelta(hours=1),
        "promoted_at": began,
    }
    return DeploymentRecord(**{**known, **fields})


def test_what_is_asked_for_is_found_newest_first():
    old, new = record("old", hours_ago=9), record("new", hours_ago=1)
    other = record("other", component="schema", environment="live", state="blocked", target="schema-web")
    all_of_them = (old, other, new)
    assert matching(all_of_them) == (new, old, other)
    assert matching(all_of_them, component="application") == (new, old)
    assert matching(all_of_them, environment="live") == (other,)
    assert matching(all_of_them, state="blocked") == (other,)
    assert matching(all_of_them, target="schema-web") == (other,)
    assert matching(all_of_them, since=NOW - timedelta(hours=9)) == (new, old)
    assert matching(all_of_them, component="application", state="blocked") == ()


def test_of_two_records_of_one_deployment_the_one_that_goes_further_counts():
    running = record(state="running", ended_at=NOW - timedelta(hours=40))
    ended_there = record(state="rolled_back", ended_at=NOW - timedelta(hours=39))
    assert united([running], [ended_there]) == united([ended_there], [running]) == (ended_there,)
    assert united([running, record("b", hours_ago=1)], [])[0].deployment == "b"


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"state": "promoted", "promoted_at": NOW - timedelta(hours=3)}, True),
        ({"state": "promoted", "promoted_at": NOW - timedelta(hours=1)}, False),
        (
            {
                "state": "superseded",
                "promoted_at": NOW - timedelta(hours=9),
                "ended_at": NOW - timedelta(hours=7),
            },
            True,
        ),
        (
            {
                "state": "superseded",
                "promoted_at": NOW - timedelta(hours=9),
                "ended_at": NOW - timedelta(hours=8),
            },
            False,
        ),
        ({"windows_watched": 96}, True),
        ({"windows_watched": 0}, False),  # completed by the clock: no worker ran what was scheduled
        ({"windows_watched": 0, "state": "promoted", "promoted_at": NOW - timedelta(hours=3)}, False),
        ({"state": "rolled_back", "ended_at": NOW}, False),
        ({"state": "running", "promoted_at": None}, False),
        ({"stage": "development"}, False),
        ({"change_id": "application:2.0:" + "b" * 64}, False),
    ],
)
def test_only_the_same_change_that_stayed_good_in_staging_counts(fields, counts):
    one = record(**fields)
    found = completed_in_staging([one], CHANGE, now=NOW, bake_s=2 * 3600)
    assert found == (one if counts else None)


def test_where_no_time_is_asked_for_nobody_need_have_watched():
    one = record(windows_watched=0)
    assert completed_in_staging([one], CHANGE, now=NOW, bake_s=0) == one


def test_no_change_matches_an_unknown_one():
    assert completed_in_staging([record(change_id="")], "", now=NOW, bake_s=0) is None


@given(st.text(max_size=3000))
def test_a_record_survives_its_trip_through_the_servers_metadata(reason):
    metadata = to_metadata(record(reason=reason))
    assert all(len(value) <= 500 for value in metadata.values())
    assert from_metadata({**metadata, "other-00000": "x"}) == record(reason=reason)


def test_metadata_of_something_else_is_no_record_and_a_part_of_one_is_refused():
    assert from_metadata({"first": "0"}) is None
    metadata = to_metadata(record(reason="x" * 2000))
    metadata.popitem()
    with pytest.raises(ValueError, match="JSON"):
        from_metadata(metadata)


def test_very_long_texts_keep_their_order():
    text = "".join(f"{n:08}" for n in range(1000))
    assert from_pieces(dict(reversed(in_pieces(text, prefix="p").items())), prefix="p") == text


def test_the_table_shows_what_a_person_looks_for_and_is_not_broken_by_a_reason():
    page = history_page([record(reason="a | b\nc"), record("b", hours_ago=1, state="rolled_back")])
    rows = [row for row in page.splitlines() if row.startswith("| 2026")]
    assert [row.split(" | ")[1] for row in rows] == ["b", "web-1"]
    assert "a \\| b c" in rows[1]
    assert len({row.replace("\\|", "").count("|") for row in page.splitlines() if row.startswith("|")}) == 1


def test_the_hours_of_monitoring_are_not_what_a_deployment_took():
    watched = record(promoted_at=NOW - timedelta(hours=48) + timedelta(seconds=90))
    assert history_rows([watched])[0]["took"] == "90.0 s"


def test_an_exported_page_holds_record_plan_decisions_and_every_entry():
    plan = planned(Canary())
    row = Check(
        id="tests-passing",
        title="Tests are passing",
        section="code",
        phase="before",
        result=Result.WAIVED,
        blocks=False,
        evidence="urgent",
        by="ada",
    )
    gated = Gated(report=ChecklistReport(checks=(row,)))
    journal = ended([gated, *walked(plan, until="send 10 %"), failed_watch(100, 15)], plan=plan)
    page = export_page(journal)
    assert page.startswith("# web-2-0-abc\n")
    for heading in (
        "# application-web: release 2.0, canary",
        "# Checklist",
        "# Decisions of",
        "# Timeline of",
    ):
        assert heading in page
    timeline = page.split("# Timeline of", 1)[1]
    assert sum(row.startswith("| 2026") for row in timeline.splitlines()) == len(journal.entries)
    assert "waived by ada | urgent |" in page
    assert record_of(journal).reason in page
