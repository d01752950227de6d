"""The final checklist: what a journal shows to have gone as it should, and what it does not show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.backup import BackupTaken
from rules.baseline import Baseline, Reading, compare
from rules.checklist import Attestation, Item, judge
from rules.entries import (
    Approved,
    BackedUp,
    Compared,
    Decided,
    Done,
    Entry,
    Gated,
    Intent,
    Locked,
    Measured,
    Monitored,
    MonitoringScheduled,
    Moved,
    Noted,
    Opened,
    Planned,
    Undone,
    stamped,
)
from rules.environment import Environment, Stage
from rules.final_checklist import FINAL_ITEMS, final_findings, judge_final
from rules.finding import Finding, Result
from rules.journal import view
from rules.plan import ObserveBatch, WatchSide
from rules.rollout import plan_rollout
from rules.strategy import BlueGreen, Canary, InPlace, Rolling, Strategy
from rules.verdict import Outcome
from tests.rules.builders import CHANGE, bare_fleet, fleet, state

BEGAN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
BACKUP = "sovereign-zfs-snapshots/web"
PRODUCTION = Environment(name="production", stage=Stage.PRODUCTION, backups=(BACKUP,))
ROW = Item(id="team-notified", title="Team", section="environment", blocks_from=Stage.CANARY, remedy="Tell.")
TOLD = Finding.passed("2 services accepted it.")
VERIFIED = Finding.passed("3 files read back.")
Journal = list[Entry]


def measured(moment: Any, error_ratio: float | None = 0.01, **update: Any) -> Measured:
    readings = (
        Reading(name="error_ratio", value=error_ratio, source="balancer"),
        Reading(name="cpu_ratio", value=0.2, source="psutil"),
    )
    baseline = Baseline(**{"window_s": 60, "at": BEGAN, "readings": readings, **update})
    return Measured(moment=moment, baseline=baseline)


def gated(finding: Finding = TOLD, **said: Any) -> Gated:
    return Gated(report=judge([ROW], {ROW.id: finding}, stage=Stage.PRODUCTION, **said))


def backed_up(verified: Finding = VERIFIED, source: str = BACKUP) -> BackedUp:
    taken = BackupTaken(source=source, kind="zfs_snapshot", identity="tank/web@1", taken_at=BEGAN)
    return BackedUp(taken=taken, verified=verified)


def compared(error_ratio: float | None = 0.01) -> Compared:
    after = measured("after", error_ratio)
    return Compared(comparisons=compare(measured("before").baseline, after.baseline))


def moved(to: Any, after_s: float = 60, reason: str = "15 % errors.") -> Entry:
    return stamped(Moved(state=to, reason=reason, by="flow"), BEGAN + timedelta(seconds=after_s))


def went_well(strategy: Strategy, environment: Environment = PRODUCTION, members: Any = None) -> Journal:
    members = members or fleet()
    plan = plan_rollout(CHANGE, strategy, members, state(members))
    opened = Opened(
        at=BEGAN,
        deployment="web-2-0-abc",
        target="application-web",
        flow_run_id="run",
        host="host-a",
        fleet=members,
        summary="web",
        environment=environment,
    )
    steps: Journal = []
    for step in plan.steps:
        if step.undo:
            steps += [Intent(number=step.number, title=step.title, undo=step.undo), Done(number=step.number)]
        elif isinstance(step.action, WatchSide | ObserveBatch) and members.route:
            steps.append(Decided(title=step.title, outcome=Outcome.PASS, reasons=("good",)))
    return [
        opened,
        Locked(token="t"),
        Planned(plan=plan),
        gated(),
        Approved(by="Ada", words="go"),
        measured("before"),
        backed_up(),
        *steps,
        compared(),
        moved("promoted", reason="All done."),
        MonitoringScheduled(runs=96, until=BEGAN + timedelta(days=1)),
    ]


def taken_back(journal: Journal, end: str = "rolled_back") -> Journal:
    """The same, but taken back before its promotion."""
    entries = [e for e in journal if not isinstance(e, Moved | MonitoringScheduled | Compared)]
    undone = [Undone(number=e.number) for e in reversed(entries) if isinstance(e, Intent)]
    if end == "rolling_back":
        return [*entries, moved("rolling_back")]
    if end == "rollback_failed":
        return [*entries, moved("rolling_back"), moved(end, 63, reason="host gone.")]
    return [*entries, moved("rolling_back"), *undone, moved(end, 63)]


def result(journal: Journal, row: str) -> Result:
    return final_findings(view(journal))[f"final-{row}"].result


def evidence(journal: Journal, row: str) -> str:
    return final_findings(view(journal))[f"final-{row}"].evidence


# --- what can be missing or wrong ------------------------------------------------------------------


def without(kind: type) -> Callable[[Journal], Journal]:
    return lambda journal: [e for e in journal if not isinstance(e, kind)]


def with_instead(entry: Any) -> Callable[[Journal], Journal]:
    """The first entry of this kind is another."""

    def change(journal: Journal) -> Journal:
        at = next(n for n, e in enumerate(journal) if isinstance(e, type(entry)))
        return [*journal[:at], entry, *(e for e in journal[at + 1 :] if not isinstance(e, type(entry)))]

    return change


def without_done_of(title: str) -> Callable[[Journal], Journal]:
    def change(journal: Journal) -> Journal:
        numbers = {e.number for e in journal if isinstance(e, Intent) and title in e.title}
        assert numbers
        return [e for e in journal if not (isinstance(e, Done) and e.number in numbers)]

    return change


def with_verdict(outcome: Outcome, title: str) -> Callable[[Journal], Journal]:
    def change(journal: Journal) -> Journal:
        return [
            e.model_copy(update={"outcome": outcome}) if isinstance(e, Decided) and title in e.title else e
            for e in journal
        ]

    return change


def with_note(*abouts: str) -> Callable[[Journal], Journal]:
    return lambda journal: [*journal, *(Noted(about=about, words="lunch.", by="Ada") for about in abouts)]


FAILING: list[tuple[Strategy, str, Callable[[Journal], Journal]]] = [
    (Canary(), "planned", without(Planned)),
    (Canary(), "gate-open", without(Gated)),
    (Canary(), "gate-open", with_instead(gated(Finding.failed("no service accepted it.")))),
    (Canary(), "approved", without(Approved)),
    (Canary(), "baseline-measured", without(Measured)),
    (Canary(), "baseline-measured", with_instead(measured("before", readings=()))),
    (Canary(), "backups-verified", without(BackedUp)),
    (Canary(), "backups-verified", with_instead(backed_up(Finding.failed("a file is missing.")))),
    (Canary(), "backups-verified", with_instead(backed_up(Finding.unknown("not read back.")))),
    (Canary(), "backups-verified", with_instead(backed_up(source="sovereign-restic/other"))),
    (Canary(), "team-told", with_instead(gated(Finding.failed("no service accepted it.")))),
    (BlueGreen(), "switch-rehearsed", without_done_of("rehearse")),
    (Canary(), "switch-rehearsed", without_done_of("rehearse")),
    (Rolling(), "switch-rehearsed", without_done_of("blue-1: drain")),
    (Rolling(), "switch-rehearsed", without_done_of("blue-1: rejoin")),
    (Canary(), "switch-rehearsed", without(Done)),
    (Canary(), "steps-done", without_done_of("send 25 %")),
    (Rolling(), "steps-done", without_done_of("blue-2: rejoin")),
    (Canary(), "steps-done", without(Planned)),
    (Canary(), "verdicts-passed", with_verdict(Outcome.FAIL, "at 25 %")),
    (Canary(), "verdicts-passed", with_verdict(Outcome.HOLD, "at 100 %")),
    (Canary(), "verdicts-passed", without(Decided)),
    (Rolling(), "verdicts-passed", with_verdict(Outcome.FAIL, "blue-2")),
    (Canary(), "no-pause-open", with_note("paused")),
    (Canary(), "no-pause-open", with_note("paused", "resumed", "paused", "alert")),
    (Canary(), "verified", taken_back),
    (Canary(), "verified", lambda journal: [*journal, moved("rolling_back", 900), moved("rolled_back", 902)]),
    (Canary(), "compared", without(Compared)),
    (Canary(), "compared", with_instead(compared(0.2))),
    (Canary(), "monitoring-scheduled", without(MonitoringScheduled)),
    (Canary(), "monitoring-scheduled", with_instead(MonitoringScheduled(runs=0, until=BEGAN))),
    (Canary(), "monitoring-scheduled", lambda journal: [*journal, moved("completed", 90_000)]),
    (Canary(), "rolled-back", lambda journal: taken_back(journal, "rollback_failed")),
]


@pytest.mark.parametrize("strategy", [BlueGreen(), Canary(), Rolling(), InPlace(instance="blue-1")])
def test_a_deployment_that_went_well_passes_every_row_that_arises(strategy):
    report = judge_final(view(went_well(strategy)), Stage.PRODUCTION)
    assert report.blocking == report.warnings == ()
    arises_not = {check.id for check in report.checks if check.result is Result.NOT_APPLICABLE}
    in_place = {"final-switch-rehearsed", "final-verdicts-passed"} if isinstance(strategy, InPlace) else set()
    assert arises_not == {"final-rolled-back"} | in_place


@pytest.mark.parametrize(("strategy", "row", "change"), FAILING)
def test_a_row_fails_on_what_it_is_there_for(strategy, row, change):
    good = went_well(strategy)
    assert result(good, row) in (Result.PASSED, Result.NOT_APPLICABLE)
    assert result(change(good), row) is Result.FAILED
    blocking = {check.id for check in judge_final(view(change(good)), Stage.PRODUCTION).blocking}
    assert f"final-{row}" in blocking


def test_each_row_is_among_those_that_are_shown_failing_and_nobodys_word_stands_for_it():
    assert {f"final-{row}" for _, row, _ in FAILING} == {item.id for item in FINAL_ITEMS}
    words = [Attestation(item=item.id, by="Ada", words="trust me") for item in FINAL_ITEMS]
    report = judge(FINAL_ITEMS, {}, stage=Stage.PRODUCTION, attestations=words)
    assert len(report.blocking) == len(FINAL_ITEMS)


def test_the_rows_are_those_of_before_during_and_after_in_this_order():
    phases = [item.phase for item in FINAL_ITEMS]
    assert phases == sorted(phases, key=["before", "during", "after"].index)
    assert set(phases) == {"before", "during", "after"}
    assert list(final_findings(view(went_well(Canary())))) == [item.id for item in FINAL_ITEMS]


def test_what_was_completed_after_its_runs_passes():
    seen = Monitored(number=0, since=BEGAN, action="fine", reasons=("all well",))
    journal = [*went_well(Canary()), seen, moved("completed", 90_000)]
    assert result(journal, "monitoring-scheduled") is Result.PASSED


def test_what_was_taken_back_and_verified_says_so_and_is_no_promotion():
    journal = taken_back(went_well(Canary()))
    assert evidence(journal, "rolled-back") == (
        "read back as before, 3.0 s after it began to go back: 15 % errors."
    )
    assert evidence(journal, "verified") == "not promoted: 15 % errors."
    assert result(journal, "monitoring-scheduled") is result(journal, "compared") is Result.NOT_APPLICABLE


def test_a_failed_way_back_names_what_is_left():
    journal = taken_back(went_well(Canary()), "rollback_failed")
    assert "host gone. Not taken back: all traffic back to blue" in evidence(journal, "rolled-back")


def test_a_way_back_under_way_is_not_judged_yet():
    assert result(taken_back(went_well(Canary()), "rolling_back"), "rolled-back") is Result.UNKNOWN


@pytest.mark.parametrize("end", ["blocked", "aborted"])
def test_where_nothing_was_changed_only_what_was_looked_at_is_judged(end):
    opened, _, planned, *_ = went_well(Canary())
    blocked = gated(Finding.failed("no service accepted it."))
    report = judge_final(view([opened, planned, blocked, moved(end)]), Stage.PRODUCTION)
    assert [check.id for check in report.blocking] == ["final-gate-open", "final-team-told"]
    later = {check.result for check in report.checks if check.phase != "before"}
    assert later == {Result.NOT_APPLICABLE, Result.PASSED}
    assert [c.id for c in report.checks if c.phase != "before" and c.result is Result.PASSED] == [
        "final-no-pause-open"
    ]


@given(st.data())
def test_while_it_runs_what_has_not_come_yet_is_unknown_never_failed_or_passed(data):
    whole = went_well(data.draw(st.sampled_from([BlueGreen(), Canary(), Rolling()])))
    end = next(n for n, entry in enumerate(whole) if isinstance(entry, Moved))
    journal = whole[: data.draw(st.integers(1, end))]
    found = final_findings(view(journal))
    assert Result.FAILED not in {finding.result for finding in found.values()}
    assert found["final-verified"].result is Result.UNKNOWN
    has_all = sum(isinstance(e, Done) for e in journal) == sum(isinstance(e, Done) for e in whole)
    assert (found["final-steps-done"].result is Result.PASSED) is has_all


def test_a_failed_verdict_is_a_failure_at_once():
    journal = with_verdict(Outcome.FAIL, "at 10 %")(went_well(Canary()))
    until = next(n for n, e in enumerate(journal) if isinstance(e, Decided))
    assert result(journal[: until + 1], "verdicts-passed") is Result.FAILED
    assert result(journal[:until], "verdicts-passed") is Result.UNKNOWN


def test_a_batch_that_was_only_not_shown_to_be_bad_is_not_passed():
    journal = with_verdict(Outcome.HOLD, "observe blue-1")(went_well(Rolling()))
    assert result(journal, "verdicts-passed") is Result.UNKNOWN
    assert "observe blue-1: HOLD" in evidence(journal, "verdicts-passed")


def test_of_two_verdicts_for_one_watch_the_newest_counts():
    journal = went_well(Canary())
    at = next(n for n, entry in enumerate(journal) if isinstance(entry, Decided))
    held = journal[at].model_copy(update={"outcome": Outcome.PROVIDER_ERROR})
    assert result([*journal[:at], held, *journal[at:]], "verdicts-passed") is Result.PASSED


def test_without_a_balancer_batches_are_probed_and_there_is_no_switch_to_rehearse():
    journal = went_well(Rolling(), members=bare_fleet(3))
    assert result(journal, "switch-rehearsed") is Result.NOT_APPLICABLE
    assert result(journal, "verdicts-passed") is Result.NOT_APPLICABLE
    assert judge_final(view(journal), Stage.PRODUCTION).blocking == ()


def test_an_environment_without_backups_or_approval_is_not_asked_for_them():
    journal = went_well(Canary(), Environment())
    journal = [e for e in journal if not isinstance(e, BackedUp | Approved)]
    assert result(journal, "backups-verified") is Result.NOT_APPLICABLE
    assert result(journal, "approved") is Result.NOT_APPLICABLE


def test_a_baseline_without_the_users_errors_is_not_known_to_be_one():
    silent = with_instead(measured("before", None))(went_well(Canary()))
    assert result(silent, "baseline-measured") is Result.UNKNOWN
    bare = with_instead(measured("before", None))(went_well(Rolling(), members=bare_fleet(3)))
    assert result(bare, "baseline-measured") is Result.PASSED


def test_a_comparison_without_data_for_what_takes_back_is_no_comparison():
    journal = with_instead(compared(None))(went_well(Canary()))
    assert result(journal, "compared") is Result.UNKNOWN
    assert evidence(journal, "compared").endswith("without data: error_ratio.")


def test_a_word_or_a_waiver_about_telling_the_team_is_said_to_be_one():
    said = Attestation(item="team-notified", by="Ada", words="told at stand-up.")
    journal = with_instead(gated(Finding.unknown("not sent."), attestations=[said]))(went_well(Canary()))
    assert result(journal, "team-told") is Result.PASSED
    assert evidence(journal, "team-told") == "told at stand-up. (attested by Ada)"
    untold = with_instead(Gated(report=judge([], {}, stage=Stage.CANARY)))(went_well(Canary()))
    assert result(untold, "team-told") is Result.UNKNOWN


def test_a_pause_that_was_ended_is_none():
    journal = with_note("paused", "resumed")(went_well(Canary()))
    assert evidence(journal, "no-pause-open") == "1 pauses, none left open."
    assert result(journal, "no-pause-open") is Result.PASSED
