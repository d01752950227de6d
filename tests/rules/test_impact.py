"""How far a deployment has reached its users, by what it changed under them."""

from __future__ import annotations

import pytest

from rules.content_plan import plan_content
from rules.entries import Entry, Planned
from rules.impact import Impact, Scope, reach
from rules.journal import JournalView, view
from rules.plan import Plan
from rules.strategy import BlueGreen, InPlace, Rolling
from tests.rules import contents, nixos_hosts
from tests.rules.builders import fleet
from tests.rules.ended import ended, moved, opened, planned, walked


def journal(plan: Plan, of, until: str = "") -> JournalView:
    """Return the journal of a plan that was walked up to a step, and taken back."""
    back = (moved("rolling_back"), moved("rolled_back"))
    entries: list[Entry] = [
        opened().model_copy(update={"fleet": of}),
        Planned(plan=plan),
        *walked(plan, until=until),
        *back,
    ]
    return view(entries)


def content_plan() -> Plan:
    return plan_content(contents.change(), contents.content(), contents.watched(), contents.situation())


def test_content_that_no_row_came_to_refer_to_has_touched_nobody() -> None:
    found = reach(journal(content_plan(), fleet(), until="two: fetch and pin"))
    assert (found.scope, found.impact, found.share) == (Scope.NOBODY, Impact.NONE, 0)


def test_whoever_reads_a_row_gets_what_it_refers_to() -> None:
    found = reach(journal(content_plan(), fleet(), until="public.episodes: 2 rows"))
    assert (found.scope, found.share) == (Scope.ALL_USERS, 1)
    assert found.impact is Impact.DEGRADED, "not counted is not none"


@pytest.mark.parametrize("state", ["aborted", "blocked"])
def test_what_was_never_begun_has_touched_nobody(state) -> None:
    assert reach(ended((), state, plan=content_plan())).scope is Scope.NOBODY


def system_journal(of, strategy, until: str = "") -> JournalView:
    return journal(nixos_hosts.planned(strategy, of), of, until)


def test_a_system_that_is_changed_under_its_users_reaches_those_of_that_host() -> None:
    of = nixos_hosts.bare()
    assert reach(system_journal(of, InPlace())).share == 1


def test_a_host_that_is_only_drained_and_prepared_reaches_nobody() -> None:
    of = nixos_hosts.sides()
    known = system_journal(of, Rolling())
    titles = [entry.title for entry in known.entries if hasattr(entry, "title")]
    drain = next(title for title in titles if "drain" in title)
    assert reach(system_journal(of, Rolling(), until=drain)).share == 0
    assert reach(known).share == 1, "in the end every host was"


def test_a_switch_reaches_all_that_it_moves() -> None:
    plan = planned(BlueGreen())
    assert reach(journal(plan, fleet())).share == 1
    assert reach(journal(plan, fleet(), until="rehearse")).share == 0
