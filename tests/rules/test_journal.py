"""What a journal means: also torn, also when undone by several processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.backup import BackupTaken
from rules.baseline import Baseline, Reading, compare
from rules.checklist import judge
from rules.entries import (
    ENTRY,
    Approved,
    BackedUp,
    Compared,
    Decided,
    Done,
    Gated,
    Held,
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
    line,
    parse,
    stamped,
)
from rules.environment import Stage
from rules.finding import Finding
from rules.items import GUIDE
from rules.journal import TERMINAL, TRANSITIONS, IllegalTransitionError, check_transition, view
from rules.record import decision_page, in_words, progress_page, record_of, record_page
from rules.rollout import plan_rollout
from rules.strategy import Canary
from rules.traffic import Counts, Traffic
from rules.undo import RemoveRehearsal, RemoveRelease, RestoreRelease, RestoreServer, RestoreTraffic
from rules.verdict import Outcome
from tests.rules.builders import CHANGE, fleet, state

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
OPENED = Opened(
    at=BEGAN,
    deployment="web-2-0-abc",
    target="application-web",
    flow_run_id="run",
    host="host-a",
    fleet=fleet(),
    summary="web",
)
UNDO_STEPS = [
    RestoreTraffic(traffic=Traffic(live="blue", candidate="green")),
    RestoreServer(instance="blue-1", admin="ready"),
    RestoreRelease(instance="blue-1", release="1.0", running=None),
    RemoveRelease(instance="blue-1", release="2.0"),
    RemoveRehearsal(),
]
MEASURED = Baseline(
    window_s=5, at=BEGAN, readings=(Reading(name="error_ratio", value=0.01, source="balancer"),)
)
BACKUP = BackupTaken(
    source="sovereign-zfs-snapshots/web", kind="zfs_snapshot", identity="tank/web@sovereign-x", taken_at=BEGAN
)
ENTRIES = [
    OPENED,
    Locked(token="token"),
    Planned(plan=plan_rollout(CHANGE, Canary(), fleet(), state(fleet()))),
    *(Intent(number=n, title=f"step {n}", undo=undo) for n, undo in enumerate(UNDO_STEPS)),
    Done(number=0),
    Decided(
        title="watch",
        outcome=Outcome.PASS,
        reasons=("shown to be below 0.05",),
        canary_requests=200,
        canary_error_ratio=0.01,
    ),
    Gated(report=judge(GUIDE, {"coverage": Finding.passed("91 %")}, stage=Stage.PRODUCTION)),
    Approved(by="Ada", words="looks good"),
    Measured(moment="before", baseline=MEASURED),
    Compared(comparisons=compare(MEASURED, MEASURED)),
    BackedUp(taken=BACKUP, verified=Finding.passed("read back")),
    Noted(about="held", words="Prometheus is away"),
    MonitoringScheduled(runs=96, until=BEGAN + timedelta(days=1), counters=Counts(20, 1)),
    Monitored(number=0, since=BEGAN, action="fine", reasons=("all well",), requests=20, errors=1),
    Undone(number=4),
    Held(number=0, reason="blue is dead"),
    Moved(state="rolling_back", reason="15 % errors", by="flow"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.entry)
def test_every_entry_survives_its_line(entry):
    assert parse(line(entry)) == (entry,)
    assert ENTRY.validate_json(ENTRY.dump_json(entry)) == entry
    assert in_words(entry)


@given(st.integers(0, 10_000))
def test_a_journal_cut_anywhere_reads_as_its_whole_lines(cut):
    text = b"".join(line(entry) for entry in ENTRIES)
    kept = text[: min(cut, len(text))]
    assert parse(kept) == tuple(ENTRIES[: kept.count(b"\n")])


def test_what_is_to_be_undone_comes_newest_first_without_what_was_undone():
    assert [intent.number for intent in view(ENTRIES).to_undo] == [3, 2, 1, 0]


def test_an_intent_without_its_done_is_undone_too():
    journal = view([OPENED, Intent(number=7, title="half", undo=UNDO_STEPS[0])])
    assert [intent.number for intent in journal.to_undo] == [7]


def test_a_journal_that_does_not_open_a_deployment_is_refused():
    with pytest.raises(ValueError, match="opening entry"):
        view([Done(number=1)])


def test_terminal_states_never_change():
    for old in TERMINAL:
        for new in (*TERMINAL, *TRANSITIONS):
            with pytest.raises(IllegalTransitionError):
                check_transition(old, new)


@given(st.lists(st.sampled_from([*TERMINAL, *TRANSITIONS]), max_size=6))
def test_legal_moves_always_lead_forward_to_one_terminal_state(wanted):
    now = "running"
    seen = [now]
    for new in wanted:
        if new in TRANSITIONS.get(now, ()):
            check_transition(now, new)
            now = new
            seen.append(now)
    assert len(seen) == len(set(seen)), "a deployment never returns to a state it has left"


def test_the_record_tells_why_and_how_long_the_way_back_took():
    entries = [
        OPENED,
        stamped(Moved(state="rolling_back", reason="15 % errors", by="flow"), BEGAN + timedelta(seconds=5)),
        stamped(Moved(state="rolled_back", reason="15 % errors", by="flow"), BEGAN + timedelta(seconds=8)),
    ]
    record = record_of(view(entries))
    assert (record.state, record.reason, record.rolled_back_s) == ("rolled_back", "15 % errors", 3.0)
    assert "15 % errors" in record_page(view(entries))


def test_a_failed_rollback_names_what_is_left_and_what_to_do():
    entries = [*ENTRIES, Moved(state="rollback_failed", reason="host gone", by="recover")]
    page = record_page(view(entries))
    assert "not taken back" in page
    assert "run roll-back for web-2-0-abc" in page


def test_pages_are_bounded_and_newest_first():
    entries = [OPENED, *(Done(number=n) for n in range(1000))]
    page = progress_page("web", entries)
    assert page.index("step 1000 done") < page.index("step 991 done")
    assert "976 earlier entries are not shown" in page
    assert len(page) < 2000


def test_decisions_are_shown_with_their_arithmetic():
    assert (
        "| watch | **PASS** | 1.00% of 200 failed | no requests | shown to be below 0.05 |"
        in decision_page(view(ENTRIES))
    )
