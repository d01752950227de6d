"""The draft of a post-mortem: what the journal knows is in it, what only people know is left open."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rules.baseline import Comparison, Tolerance
from rules.entries import Compared, Monitored
from rules.incident import IncidentEvent, IncidentState, incident_of, incident_state
from rules.journal import JournalView
from rules.post_mortem import durations, post_mortem
from rules.strategy import Canary
from tests.rules.ended import BEGAN, DEPLOYMENT, ended, failed_watch, moved, planned, walked

PLAN = planned(Canary())
TO_TEN_PERCENT = walked(PLAN, until="send 10 %")
RESOLVED = datetime(2026, 1, 2, 13, 0, tzinfo=UTC)


def incident(journal: JournalView) -> IncidentState:
    told = incident_of(journal)
    opened = IncidentEvent(event="opened", at=BEGAN, by="flow", words="15 % errors.", incident=told)
    resolved = IncidentEvent(event="resolved", at=RESOLVED, by="ada | ops", words="the cache\nwas cold")
    state = incident_state([opened, resolved])
    assert state
    return state


def draft(journal: JournalView) -> str:
    return post_mortem(journal, incident(journal))


def section(page: str, title: str) -> str:
    return page.split(f"## {title}\n\n", 1)[1].split("\n## ", 1)[0]


def test_it_says_what_happened_how_far_it_went_and_why():
    page = draft(ended([*TO_TEN_PERCENT, failed_watch(100, 15)], plan=PLAN))
    assert page.startswith(f"# Post-mortem: P2, {DEPLOYMENT} is rolled_back")
    assert "Release 2.0 of application-web, canary, was begun in development" in section(page, "Summary")
    assert "verified to be as before" in section(page, "Summary")
    impact = section(page, "Impact")
    assert "some users: degraded" in impact
    assert "Up to 10% of the traffic" in impact
    assert "15 of 100 watched requests failed (15.00%)" in impact
    why = "15 errors in 100 requests: above the failure limit 0.1"
    assert f"| watch green at 10 % | FAIL | 15.00% | 1.00% | {why} |" in section(page, "Cause")


def test_a_metric_that_got_worse_is_named_with_value_and_threshold():
    worse = Comparison(
        name="latency_p95_s",
        before=0.2,
        after=0.5,
        change="from 0.2 to 0.5 (+150%)",
        direction="lower_is_better",
        tolerance=Tolerance(relative=0.25, floor=0.01),
        result="worse",
    )
    same = worse.model_copy(update={"name": "cpu_ratio", "result": "same"})
    cause = section(draft(ended([Compared(comparisons=(worse, same))], plan=PLAN)), "Cause")
    assert "| latency_p95_s | 0.2 | 0.5 | 0.05 | from 0.2 to 0.5 (+150%) |" in cause
    assert "cpu_ratio" not in cause


def test_times_to_detect_decide_and_restore_are_measured_between_entries():
    watch = failed_watch(100, 15)
    journal = ended([*TO_TEN_PERCENT, watch], plan=PLAN)
    took = durations(journal)
    # an entry a second: the intents come after the three first entries, the verdict right before the decision
    assert took.detect_s == len(TO_TEN_PERCENT)
    assert (took.decide_s, took.restore_s) == (1, 1)
    how_long = section(draft(journal), "How long it took")
    assert "to restore: from the decision until verified as before | 1.0 s |" in how_long
    assert "to its end | 3,600.0 s |" in how_long


def test_what_the_monitoring_saw_is_the_first_sign():
    bad = Monitored(number=1, since=BEGAN, action="delayed", reasons=("7 % errors",), requests=100, errors=7)
    journal = ended([*walked(PLAN), moved("promoted"), bad], plan=PLAN)
    assert durations(journal).detect_s == len(walked(PLAN)) + 1
    assert "- monitoring run 2: 7 % errors" in section(draft(journal), "Cause")


def test_what_did_not_happen_has_no_duration():
    took = durations(ended((), "blocked"))
    assert (took.detect_s, took.decide_s, took.restore_s) == (None, None, None)
    failed = durations(ended(TO_TEN_PERCENT, "rollback_failed", plan=PLAN))
    assert failed.restore_s is None
    assert "| not known |" in draft(ended((), "blocked"))


def test_the_timeline_has_journal_and_incident_in_one_order_and_is_not_broken_by_words():
    page = draft(ended([*TO_TEN_PERCENT, failed_watch(100, 15)], plan=PLAN))
    rows = [row for row in section(page, "Timeline (UTC)").splitlines() if row.startswith("| 2026")]
    times = [row.split(" | ")[0] for row in rows]
    assert times == sorted(times)
    assert rows[-1] == "| 2026-01-02 13:00:00 | incident | **resolved** by ada \\| ops: the cache was cold |"
    assert any("**opened** by flow" in row for row in rows)
    assert any("send 10 % of traffic to green" in row for row in rows)


@pytest.mark.parametrize("title", ["What went well", "What did not go well", "Root cause", "Action items"])
def test_what_only_people_know_is_left_to_them(title):
    assert section(draft(ended((), "blocked")), title).startswith("> **For people to fill in.**")


def test_a_draft_is_the_same_each_time():
    journal = ended([*TO_TEN_PERCENT, failed_watch(100, 15)], plan=PLAN)
    assert draft(journal) == draft(journal)
