"""Incidents: as bad as users noticed, with times to act by, and a life of which nothing is forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rules.entries import Monitored, Moved
from rules.impact import Impact, Scope
from rules.incident import (
    IllegalEventError,
    IncidentEvent,
    IncidentState,
    after,
    event_line,
    incident_of,
    incident_state,
    parse_events,
    status_page,
)
from rules.journal import view
from rules.severity import RESPONSES, Severity, act_by, severity, severity_once_taken_back
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from tests.rules.builders import NEW, bare_fleet, fleet, state
from tests.rules.ended import BEGAN, DEPLOYMENT, ended, failed_watch, moved, opened, planned, walked

FRIDAY = datetime(2026, 1, 2, 16, 0, tzinfo=UTC)
P0, P1, P2, P3 = Severity


@pytest.mark.parametrize(
    ("scope", "outage", "data_at_risk", "degraded"),
    [
        (Scope.ALL_USERS, P0, P0, P1),
        (Scope.SOME_USERS, P1, P1, P2),
        (Scope.ONE_COMPONENT, P2, P1, P3),
        (Scope.NOBODY, P3, P2, P3),
    ],
)
def test_severity_follows_from_scope_and_impact(scope, outage, data_at_risk, degraded):
    found = [severity(scope, impact) for impact in (Impact.OUTAGE, Impact.DATA_AT_RISK, Impact.DEGRADED)]
    assert found == [outage, data_at_risk, degraded]
    assert severity(scope, Impact.NONE) is P3


@pytest.mark.parametrize("scope", Scope)
def test_what_was_taken_back_is_one_grade_less_but_never_below_p2_where_users_were_touched(scope):
    for impact in Impact:
        one_less = {P0: P1, P1: P2, P2: P3, P3: P3}[severity(scope, impact)]
        lowest = P2 if "users" in scope else P3
        assert severity_once_taken_back(scope, impact) is min(one_less, lowest)


def test_each_severity_leaves_more_time_than_the_one_before():
    asked = [RESPONSES[one] for one in Severity]
    for field in ("act_within_s", "resolve_within_s", "update_every_s"):
        times = [getattr(response, field) for response in asked]
        assert times == sorted(set(times))
    assert (asked[0].act_within_s, asked[0].resolve_within_s, asked[0].update_every_s) == (0, 300, 900)
    assert asked[0].post_mortem_within_s == 24 * 3600
    assert (asked[1].act_within_s, asked[2].act_within_s) == (900, 3600)


def test_what_is_read_in_the_morning_waits_over_the_weekend():
    assert act_by(P3, FRIDAY) == FRIDAY + timedelta(days=3)
    assert act_by(P3, FRIDAY - timedelta(days=1)) == FRIDAY
    assert act_by(P0, FRIDAY) == FRIDAY
    assert act_by(P2, FRIDAY) == FRIDAY + timedelta(hours=1)


def found(plan, entries, end="rolled_back"):
    incident = incident_of(ended(entries, end, plan=plan))
    assert incident
    return incident.severity, incident.scope, incident.impact


def test_a_release_that_fails_before_it_gets_traffic_is_read_in_the_morning():
    plan = planned(Canary())
    assert found(plan, walked(plan, until="green-1: restart")) == (P3, Scope.NOBODY, Impact.NONE)
    incident = incident_of(ended(walked(plan, until="green-1: restart"), plan=plan))
    assert incident.impact_in_words == "No user was sent to what was deployed."
    assert "verified to be as before" in incident.left_in


@pytest.mark.parametrize(
    ("strategy", "until", "watch", "expected"),
    [
        (Canary(), "send 10 %", failed_watch(100, 15), (P2, Scope.SOME_USERS, Impact.DEGRADED)),
        (Canary(), "send 10 %", failed_watch(100, 0), (P2, Scope.SOME_USERS, Impact.NONE)),
        (Canary(), "send 10 %", failed_watch(100, 90), (P2, Scope.SOME_USERS, Impact.OUTAGE)),
        (Canary(), "send 10 %", None, (P2, Scope.SOME_USERS, Impact.DEGRADED)),
        (BlueGreen(), "switch all", failed_watch(100, 15), (P2, Scope.ALL_USERS, Impact.DEGRADED)),
        (BlueGreen(), "switch all", failed_watch(100, 90), (P1, Scope.ALL_USERS, Impact.OUTAGE)),
        (Rolling(), "blue-1: rejoin", None, (P2, Scope.SOME_USERS, Impact.DEGRADED)),
        (Rolling(), "blue-1: restart", None, (P3, Scope.NOBODY, Impact.NONE)),
        (InPlace(instance="blue-1"), "blue-1: restart", None, (P2, Scope.SOME_USERS, Impact.DEGRADED)),
    ],
)
def test_scope_and_impact_are_read_from_the_journal(strategy, until, watch, expected):
    plan = planned(strategy)
    entries = (*walked(plan, until=until), *([watch] if watch else []))
    assert found(plan, entries) == expected


def test_a_restart_of_the_only_instance_reaches_all_users():
    only = bare_fleet(1)
    plan = planned(InPlace(instance="node-1"), only, state(only))
    journal = view(
        [opened(only), *ended(walked(plan, until="node-1: restart"), plan=plan).entries[1:]],
    )
    incident = incident_of(journal)
    assert (incident.scope, incident.impact) == (Scope.ALL_USERS, Impact.DEGRADED)


def test_a_release_that_turned_bad_under_all_users_counts_what_the_monitoring_saw():
    plan = planned(Canary())
    bad = Monitored(
        number=3, since=BEGAN, action="immediate", reasons=("40 errors in 100",), requests=1000, errors=700
    )
    fine = bad.model_copy(update={"number": 2, "action": "fine", "requests": 9000, "errors": 0})
    incident = incident_of(ended([*walked(plan), moved("promoted"), fine, bad], plan=plan))
    assert (incident.severity, incident.scope, incident.impact) == (P1, Scope.ALL_USERS, Impact.OUTAGE)
    assert "Up to 100% of the traffic" in incident.impact_in_words
    assert "700 of 1,000 watched requests failed (70.00%)" in incident.impact_in_words


@pytest.mark.parametrize("until", ["", "green-1: restart", "send 10 %"])
def test_a_rollback_that_failed_wakes_a_person_whoever_was_touched(until):
    plan = planned(Canary())
    entries = walked(plan, until=until) if until else ()
    assert found(plan, entries, "rollback_failed")[0] is P0


@pytest.mark.parametrize(("end", "severity"), [("rolled_back", P2), ("blocked", P3), ("rollback_failed", P0)])
def test_without_any_evidence_the_state_alone_decides(end, severity):
    assert incident_of(ended((), end)).severity is severity


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("rollback_failed", "stays locked"),
        ("rolled_back", "verified to be as before"),
        ("blocked", "was not changed"),
        ("aborted", "was not changed"),
    ],
)
def test_an_incident_says_where_things_were_left_and_what_to_do(end, words):
    incident = incident_of(ended((), end))
    page = status_page(lived(event("opened", incident=incident)))
    assert page.startswith(f"# {incident.severity}: {DEPLOYMENT} is {end}")
    assert words in page
    assert "15 % errors" in page
    assert incident.next_step in page


def test_an_aborted_deployment_is_an_incident_unless_there_was_nothing_to_do():
    assert incident_of(ended((), "aborted", plan=planned(Canary()))).severity is P3
    same = planned(Canary(), None, state(fleet(), release=NEW))
    assert incident_of(ended((), "aborted", plan=same)) is None
    never_locked = view([opened(), Moved(state="aborted", reason="another has it", by="flow")])
    assert incident_of(never_locked) is None


@pytest.mark.parametrize("end", ["promoted", "completed", "superseded"])
def test_what_went_well_is_no_incident(end):
    assert incident_of(ended((), end)) is None


def event(kind: str, minutes: float = 0, **fields: object) -> IncidentEvent:
    at = FRIDAY + timedelta(minutes=minutes)
    return IncidentEvent(**{"event": kind, "at": at, "by": "ada", "words": f"it is {kind}", **fields})


def opening(end: str = "rollback_failed") -> IncidentEvent:
    return event("opened", incident=incident_of(ended((), end)))


def lived(*events: IncidentEvent) -> IncidentState:
    state = incident_state(events)
    assert state
    return state


def test_a_life_from_opening_to_the_end_keeps_every_word():
    kinds = ("communicated", "updated", "mitigated", "communicated", "updated", "resolved", "communicated")
    events = [opening(), *(event(kind, n) for n, kind in enumerate(kinds, 1))]
    state = lived(*events)
    assert state.events == tuple(events)
    assert state.status == "resolved"
    assert [lived(*events[: n + 1]).status for n in range(len(events))] == [
        *["open"] * 3,
        *["mitigated"] * 3,
        *["resolved"] * 2,
    ]


@pytest.mark.parametrize("kind", ["opened", "mitigated", "resolved"])
def test_what_was_done_once_is_not_done_again(kind):
    state = lived(opening(), event("mitigated"), event("resolved"))
    assert after(state, event(kind, 5)) is state


@pytest.mark.parametrize(
    ("before", "kind"),
    [(("mitigated", "resolved"), "updated"), (("resolved",), "updated"), (("resolved",), "mitigated")],
)
def test_what_is_resolved_stays_resolved(before, kind):
    state = lived(opening(), *(event(one) for one in before))
    with pytest.raises(IllegalEventError, match=f"is resolved and cannot be {kind} any more"):
        after(state, event(kind))


def test_nothing_happens_to_an_incident_that_was_never_opened():
    assert incident_state(()) is None
    with pytest.raises(IllegalEventError, match="must be opened before"):
        incident_state([event("resolved")])


def test_times_to_act_by_are_told_until_it_is_over():
    state = lived(opening(), event("updated", 4))
    assert state.act_by == FRIDAY
    assert state.resolve_by == FRIDAY + timedelta(minutes=5)
    assert state.next_update_by == FRIDAY + timedelta(minutes=19)
    assert state.post_mortem_by == FRIDAY + timedelta(days=1)
    assert after(state, event("resolved", 5)).next_update_by is None
    assert lived(opening("blocked")).post_mortem_by is None


def test_who_was_told_and_where_the_issue_is_can_be_read_from_the_events():
    told = event("communicated", channel="people")
    issue = event("communicated", channel="issue", url="https://forge/1")
    assert not lived(opening(), issue).people_are_told
    assert lived(opening(), told, issue, event("updated")).people_are_told
    assert lived(opening(), told, issue).issue_url == "https://forge/1"
    assert lived(opening(), told).issue_url == ""


def test_events_survive_their_file_and_a_torn_line_does_not_count():
    events = (opening(), event("updated", words="eins | zwei\n\u2028drei"))
    text = b"".join(map(event_line, events))
    assert parse_events(text) == events
    assert parse_events(text + event_line(event("resolved"))[:-9]) == events


def test_the_page_says_what_is_due_what_was_done_and_what_comes_next():
    state = lived(opening(), event("updated", 4, words="a | b\nc"))
    page = status_page(state)
    assert page.startswith(f"# P0: {DEPLOYMENT} is rollback_failed")
    assert "| act | by 2026-01-02 16:00:00 UTC |" in page
    assert "| tell people again | by 2026-01-02 16:19:00 UTC |" in page
    assert f"run roll-back for {DEPLOYMENT}" in page
    assert "run update-incident" in page
    assert "| 2026-01-02 16:04:00 | updated | ada | a \\| b c |" in page
    resolved = status_page(after(state, event("resolved", 5)))
    assert "tell people again" not in resolved
    assert "Complete the post-mortem by 2026-01-03 16:00:00 UTC." in resolved
