"""What journals add up to: counts that never fall, and durations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.entries import Moved, Opened, Planned
from rules.environment import Environment
from rules.exposition import BUCKETS_S, MOST_TARGETS, OTHER, Exposition, Observations, exposition_of
from rules.journal import TRANSITIONS, JournalView, view
from rules.plan import Plan
from rules.strategy import Canary
from tests.rules.builders import CHANGE, fleet, state

AT = datetime(2026, 11, 25, 14, 0, tzinfo=UTC)


def journal(
    *moves: tuple[str, float] | tuple[str, float, str],
    deployment: str = "web-1",
    target: str = "application-web",
    planned: bool = True,
    began_s: float = 0.0,
) -> JournalView:
    """Return a journal that came to each state so many seconds after it began."""
    began = AT + timedelta(seconds=began_s)
    opened = Opened(
        at=began,
        deployment=deployment,
        target=target,
        flow_run_id="run",
        host="host-a",
        fleet=fleet(),
        summary="web 2.0",
        environment=Environment(name="production"),
    )
    entries: list[object] = [opened]
    if planned:
        plan = Plan(change=CHANGE, strategy=Canary(), before=state(fleet()), steps=())
        entries.append(Planned(at=began, plan=plan))
    for name, after_s, *by in moves:
        at = began + timedelta(seconds=after_s)
        entries.append(Moved(at=at, state=name, reason="because", by=by[0] if by else "flow"))
    return view(entries)


def samples(exposition: Exposition, name: str) -> dict[tuple[str, ...], float]:
    (family,) = [one for one in exposition.families if one.name == name]
    return {tuple(value for _, value in sample.labels): sample.value for sample in family.samples}


def counted(exposition: Exposition, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples that are not 0."""
    return {labels: value for labels, value in samples(exposition, name).items() if value}


def times(exposition: Exposition, name: str) -> dict[tuple[str, ...], tuple[float, ...]]:
    (family,) = [one for one in exposition.histograms if one.name == name]
    return {tuple(value for _, value in one.labels): one.values_s for one in family.observations}


def test_no_journal_is_no_sample():
    exposition = exposition_of([])
    assert all(family.samples == () for family in exposition.families)
    assert all(family.observations == () for family in exposition.histograms)


def test_a_good_deployment_counts_once_with_all_its_labels():
    exposition = exposition_of([journal(("promoted", 12.5), ("completed", 86_412.5))])
    assert counted(exposition, "sovereign_deployments") == {
        ("application", "application-web", "canary", "production", "promoted"): 1.0
    }
    assert counted(exposition, "sovereign_rollbacks") == {}
    assert samples(exposition, "sovereign_deployment_state") == {}
    assert times(exposition, "sovereign_deployment_duration_seconds") == {
        ("application", "promoted"): (12.5,)
    }


def test_one_taken_back_counts_with_who_did_it_and_how_long_it_took():
    exposition = exposition_of([journal(("rolling_back", 7, "hook Crashed"), ("rolled_back", 9.5))])
    assert counted(exposition, "sovereign_rollbacks") == {("application", "application-web", "hook"): 1.0}
    assert times(exposition, "sovereign_rollback_duration_seconds") == {("application",): (2.5,)}
    assert times(exposition, "sovereign_deployment_duration_seconds") == {
        ("application", "rolled_back"): (9.5,)
    }


def test_one_promoted_and_taken_back_later_counts_for_both():
    exposition = exposition_of([journal(("promoted", 10), ("rolling_back", 1200), ("rolled_back", 1203))])
    outcomes = {key[-1]: value for key, value in counted(exposition, "sovereign_deployments").items()}
    assert outcomes == {"promoted": 1.0, "rolled_back": 1.0}
    assert times(exposition, "sovereign_deployment_duration_seconds") == {
        ("application", "promoted"): (10.0,)
    }


def test_one_that_has_begun_counts_as_nothing_yet_so_that_its_end_is_seen_as_a_rise():
    exposition = exposition_of([journal()])
    outcomes = {key[-1]: value for key, value in samples(exposition, "sovereign_deployments").items()}
    assert outcomes == dict.fromkeys(
        ("promoted", "rolled_back", "rollback_failed", "blocked", "aborted"), 0.0
    )
    assert set(samples(exposition, "sovereign_rollbacks").values()) == {0.0}


def test_one_blocked_before_it_had_a_plan_counts_too():
    exposition = exposition_of([journal(("blocked", 1), planned=False)])
    assert counted(exposition, "sovereign_deployments") == {
        ("application", "application-web", "none", "production", "blocked"): 1.0
    }


@pytest.mark.parametrize(
    ("moves", "now"),
    [([], "running"), ([("promoted", 1)], "promoted"), ([("rolling_back", 1)], "rolling_back")],
)
def test_an_open_one_is_in_one_state(moves, now):
    states = samples(exposition_of([journal(*moves)]), "sovereign_deployment_state")
    assert {key: value for key, value in states.items() if value} == {("web-1", now): 1.0}
    assert len(states) == 3


def test_the_newest_beginning_counts_as_the_last():
    exposition = exposition_of([journal(began_s=60, deployment="b"), journal(deployment="a")])
    assert list(samples(exposition, "sovereign_last_deployment_timestamp_seconds").values()) == [
        AT.timestamp() + 60
    ]


def test_who_began_a_rollback_is_one_of_a_few_words():
    actors = ["flow", "hook Crashed", "hook Cancelled", "recover", "person", "monitor", "Bob <b@x>", ""]
    journals = [journal(("rolling_back", 1, by), deployment=f"web-{n}") for n, by in enumerate(actors)]
    counts = counted(exposition_of(journals), "sovereign_rollbacks")
    assert {key[-1]: value for key, value in counts.items()} == {
        "flow": 1.0, "hook": 2.0, "recover": 1.0, "person": 1.0, "monitor": 1.0, OTHER: 2.0
    }  # fmt: skip


def test_targets_are_bounded_and_no_count_falls_when_one_more_comes():
    journals = [
        journal(("promoted", 1), deployment=f"d-{n}", target=f"application-{n}", began_s=n)
        for n in range(MOST_TARGETS + 5)
    ]
    before = counted(exposition_of(journals[:-1]), "sovereign_deployments")
    after = counted(exposition_of(journals), "sovereign_deployments")
    assert len(after) == MOST_TARGETS + 1
    assert {key[1]: value for key, value in after.items()}[OTHER] == 5.0
    assert all(after[key] >= value for key, value in before.items())


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 100_000), min_size=4, max_size=4))
def test_counts_never_fall_while_a_deployment_goes_its_way(choices, seconds):
    moves: list[tuple[str, float]] = []
    now, before = "running", exposition_of([journal()])
    for choice, after_s in zip(choices, sorted(seconds), strict=False):
        ways = sorted(TRANSITIONS.get(now, ()))
        if not ways:
            return
        now = ways[choice % len(ways)]
        moves.append((now, after_s))
        after = exposition_of([journal(*moves)])
        for name in ("sovereign_deployments", "sovereign_rollbacks"):
            old, new = samples(before, name), samples(after, name)
            assert all(new.get(key, 0) >= value for key, value in old.items())
        for name in ("sovereign_deployment_duration_seconds", "sovereign_rollback_duration_seconds"):
            assert all(times(after, name)[key] == value for key, value in times(before, name).items())
        before = after


def test_buckets_are_cumulative():
    observed = Observations(labels=(), values_s=(0.5, 1.0, 40.0, 1e6))
    counts = [count for _, count in observed.buckets]
    assert counts == sorted(counts)
    assert dict(observed.buckets)["1"] == 2.0
    assert dict(observed.buckets)["60"] == 3.0
    assert observed.buckets[-1] == ("+Inf", 4.0)
    assert len(counts) == len(BUCKETS_S) + 1
