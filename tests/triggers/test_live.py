"""The live view is right for any beginning of any journal, at any size, and obeys nothing that it quotes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live

from rules.checklist import judge
from rules.entries import (
    Approved,
    Compared,
    Decided,
    Done,
    Entry,
    Gated,
    Held,
    Intent,
    Locked,
    Measured,
    Monitored,
    MonitoringScheduled,
    Noted,
    Planned,
    Undone,
    stamped,
)
from rules.environment import Environment, Stage
from rules.finding import Finding
from rules.items import GUIDE
from rules.journal import JournalView, view
from rules.release_plan import plan_release
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.traffic import Counts
from rules.undo import RestoreTraffic
from rules.verdict import Outcome
from tests.rules.builders import bare_fleet
from tests.rules.ended import BEGAN, failed_watch, moved, opened, planned, walked
from tests.rules.releases import whole
from tests.rules.test_journal import ENTRIES, MEASURED
from triggers.live import Frame, LiveView, drawn
from triggers.live_lines import new_lines
from triggers.live_notes import Look
from triggers.live_picture import picture, steps_walked
from triggers.live_text import clean, clock

RUN = "1a2b3c4d-0000-0000-0000-000000000000"
CANARY = planned(Canary())
GATE = Gated(report=judge(GUIDE, {"coverage": Finding.failed("71 %")}, stage=Stage.STAGING))
PASSED = Decided(
    title="watch green at 10 %",
    outcome=Outcome.PASS,
    reasons=("shown to be below 0.05",),
    canary_requests=220,
    canary_error_ratio=0.0,
    stable_requests=1980,
    stable_error_ratio=0.001,
)
BEGUN = (opened(), Locked(token="t"), Planned(plan=CANARY))
HALFWAY = (
    *BEGUN,
    Measured(moment="before", baseline=MEASURED),
    *walked(CANARY, until="send 10"),
    PASSED,
    *walked(CANARY, until="send 25")[-2:],
)
WORSE = "watch green at 25 %: FAIL: 40 errors in 200 requests."
FAILED = (*HALFWAY, failed_watch(200, 40, "watch green at 25 %"), moved("rolling_back", WORSE))
UNDONE = tuple(Undone(number=e.number) for e in reversed(HALFWAY) if isinstance(e, Intent))
ROLLED_BACK = (*FAILED, *UNDONE, moved("rolled_back", WORSE))
STUCK = (
    *FAILED,
    Held(number=13, reason="blue is dead: all traffic is held on green"),
    moved("rollback_failed", "blue is dead"),
)
PROMOTED = (
    *BEGUN,
    *walked(CANARY),
    Compared(comparisons=()),
    moved("promoted", "Every step was done, watched and verified."),
    MonitoringScheduled(runs=96, until=BEGAN + timedelta(days=1), counters=Counts(20, 1)),
    Monitored(number=0, since=BEGAN, action="fine", reasons=("all well",)),
)
APPROVED = (
    opened().model_copy(update={"environment": Environment(name="production", stage=Stage.PRODUCTION)}),
    *BEGUN[1:],
    GATE,
    Approved(by="Ada"),
)
RELEASE_PLAN = plan_release(whole(), "emily-2-0-abc")
RELEASE_BEGUN = (
    opened().model_copy(update={"component": "release", "environment": Environment(approval=True)}),
    Planned(plan=RELEASE_PLAN),
)
ROLLING = planned(Rolling())
JOURNALS: dict[str, tuple[Entry, ...]] = {
    "halfway": HALFWAY,
    "rolled back": ROLLED_BACK,
    "stuck": STUCK,
    "promoted": PROMOTED,
    "completed": (*PROMOTED, moved("completed", "Good for 24 hours.")),
    "blocked": (*BEGUN, GATE, moved("blocked", "The checklist blocks this deployment.")),
    "approved": APPROVED,
    "aborted": (opened(), moved("aborted", "Another deployment has the target.")),
    "blue-green": (*BEGUN[:2], Planned(plan=planned(BlueGreen())), *walked(planned(BlueGreen()))),
    "rolling": (*BEGUN[:2], Planned(plan=ROLLING), *walked(ROLLING, until="blue-1: smoke")),
    "in place, no balancer": (
        opened(bare_fleet()),
        Planned(plan=planned(InPlace(), bare_fleet())),
        *walked(planned(InPlace(), bare_fleet())),
    ),
    "every kind of entry": tuple(ENTRIES),
    "release": (*RELEASE_BEGUN, *walked(RELEASE_PLAN)[:-1]),
    "release, taken back": (*RELEASE_BEGUN, *walked(RELEASE_PLAN), moved("rolling_back", "web failed")),
}
RUN_STATES = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING", "COMPLETED", "CRASHED", ""]


def journal(entries: Iterable[Entry]) -> JournalView:
    return view(stamped(entry, BEGAN + timedelta(seconds=n)) for n, entry in enumerate(entries))


def look(entries: Iterable[Entry], run_state: str = "RUNNING", steps_done: int = 0) -> Look:
    return Look(
        flow_run_id=RUN, run_state=run_state, journal=journal(entries), steps_done=steps_done, run_message=""
    )


def text(of: Look, *, width: int = 80, height: int | None = 24, after_s: float = 60) -> str:
    frame = Frame(width=width, height=height, now=BEGAN + timedelta(seconds=after_s))
    return "\n".join(line.plain.rstrip() for line in drawn(picture(of), frame))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", JOURNALS)
def test_every_state_fits_the_terminal(name, width):
    for height in (24, 12, 5, 1):
        frame = Frame(width=width, height=height, now=BEGAN + timedelta(minutes=5))
        lines = drawn(picture(look(JOURNALS[name])), frame)
        assert len(lines) <= height
        assert max(line.cell_len for line in lines) <= width


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(JOURNALS)),
    part=st.floats(0, 1),
    run_state=st.sampled_from(RUN_STATES),
    size=st.tuples(st.integers(1, 200), st.none() | st.integers(1, 60)),
    steps_done=st.integers(0, 99),
)
def test_any_beginning_of_a_journal_is_drawn_and_told(*, name, part, run_state, size, steps_done):
    width, height = size
    entries = JOURNALS[name]
    kept = entries[: max(1, round(part * len(entries)))]
    seen = look(kept, run_state, steps_done)
    for is_ascii in (False, True):
        frame = Frame(width=width, height=height, now=BEGAN, is_ascii=is_ascii)
        lines = drawn(picture(seen), frame)
        assert lines
        assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)
        assert not is_ascii or all(line.plain.isascii() for line in lines)
    told = new_lines(None, seen, BEGAN)
    assert len(told) >= len(kept)
    assert all(line.startswith("2026-01-02T") for line in told)


def test_a_running_canary_shows_its_step_its_traffic_and_its_verdict():
    shown = text(look(HALFWAY), width=100)
    assert "web 2.0 · canary · development" in shown
    assert " RUNNING " in shown
    assert "step 15 of 20: watch green at 25 %" in shown
    assert "blue 75 % " in shown
    assert " 25 % green" in shown
    assert "✓  13  watch green at 10 %" in shown
    assert "·  16  send 50 % of traffic to green" in shown
    assert "Verdict  PASS  watch green at 10 %" in shown
    assert "new: 0 % of 220 failed, stable: 0.1 % of 1,980 failed" in shown
    assert "sovereign abort web-2-0-abc --by NAME --reason WHY" in shown


def test_the_bar_of_traffic_is_as_long_as_its_share():
    (bar,) = [line for line in text(look(HALFWAY)).splitlines() if line.startswith("Traffic")]
    blue, green = bar.count("█"), bar.count("░")
    assert green / (blue + green) == pytest.approx(0.25, abs=0.02)
    (switched,) = [line for line in text(look(PROMOTED)).splitlines() if line.startswith("Traffic")]
    assert "blue 0 % " in switched
    assert "█" not in switched


def test_the_time_of_the_present_step_goes_on_between_two_looks():
    began_s = len(HALFWAY) - 1
    assert "15  watch green at 25 %" in text(look(HALFWAY), after_s=began_s + 61)
    row = next(line for line in text(look(HALFWAY), after_s=began_s + 61).splitlines() if "  15  " in line)
    assert row.endswith("1:01")


def test_what_the_journal_has_not_heard_yet_is_known_from_the_count_of_steps():
    # its copy in the API is renewed before an effect: the newest `done` is still on its way
    mirrored = HALFWAY[:-1]
    assert steps_walked(look(mirrored)) == 13
    assert steps_walked(look(mirrored, steps_done=14)) == 14


def test_a_rollback_is_shown_as_it_goes_newest_first():
    shown = text(look((*FAILED, *UNDONE[:2])), height=40)
    assert " ROLLING BACK " in shown
    assert "2 of 9 steps are back" in shown
    assert WORSE in " ".join(shown.split())
    rows = [line for line in shown.splitlines() if line[:1] in "↩⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏·" and line]
    assert rows[0].startswith("↩  14  all traffic back to blue")
    assert rows[1].startswith("↩  12  all traffic back to blue")
    assert rows[2][0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    assert rows[3].startswith("·")
    numbers = [int(row.split()[1]) for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    assert "blue 100 %" in shown


def test_each_end_says_how_things_are_and_what_to_do_next():
    rolled_back = text(look(ROLLED_BACK, "FAILED"))
    assert " ROLLED BACK " in rolled_back
    assert "verified to be as before, 0:10 after that was decided" in " ".join(rolled_back.split())
    stuck = text(look(STUCK, "FAILED"))
    assert " ROLLBACK FAILED " in stuck
    assert "✗  14" in stuck
    assert "mend the cause, then: sovereign rollback web-2-0-abc --reason WHY" in stuck
    promoted = " ".join(text(look(PROMOTED, "COMPLETED")).split())
    assert "watched until 2026-01-03 12:00 UTC (1 of 96 looks)" in promoted
    assert "to take it back: sovereign rollback web-2-0-abc --reason WHY" in promoted
    blocked = text(look(JOURNALS["blocked"], "FAILED"))
    assert "nothing was changed" in blocked
    assert "✗ tests-passing: unknown, no evidence was given" in blocked


def test_a_deployment_whose_run_is_dead_is_not_shown_as_if_it_went_on():
    shown = text(look(HALFWAY, "CRASHED"))
    assert "its run is CRASHED by Prefect's word" in shown
    assert picture(look(HALFWAY, "CRASHED")).tone == "waiting"


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        pytest.param([("paused", "a slow query")], "Paused by Ada: a slow query. Traffic stays", id="paused"),
        pytest.param([("held", "Prometheus is away")], "Held: Prometheus is away. Traffic stays", id="held"),
        pytest.param([("paused", "x"), ("resumed", "after 3 s")], None, id="resumed"),
        pytest.param([("held", "x"), ("released", "it answers")], None, id="released"),
    ],
)
def test_a_pause_or_a_hold_is_shown_as_long_as_it_lasts(notes, words):
    entries = (*HALFWAY, *(Noted(about=about, words=said, by="Ada") for about, said in notes))
    banners = " ".join(banner.words for banner in picture(look(entries)).banners)
    assert (words in banners) if words else not banners
    word = "resume" if notes[-1][0] == "paused" else "abort"
    assert picture(look(entries)).next_step.startswith(f"sovereign {word} web-2-0-abc")


def test_a_release_measures_and_compares_nothing_itself():
    asked = picture(look(RELEASE_BEGUN, "PAUSED"))
    assert asked.words == "waiting for a person's approval"
    begun = picture(look((*RELEASE_BEGUN, Approved(by="Ada"), *walked(RELEASE_PLAN))))
    names = ["plan", "checklist", "approval", "rollout", "promote"]
    assert [phase.name for phase in begun.phases] == names
    assert begun.words == "promoting"


def test_a_component_that_asks_again_is_answered_by_its_own_run():
    asks = look(JOURNALS["release"]).model_copy(update={"asked_run": "9f8e7d6c-0000"})
    assert "A component asks again" in text(asks)
    assert "Next: sovereign approve 9f8e7d6c --by NAME" in text(asks)
    before = look(JOURNALS["release"])
    (told,) = new_lines(before, asks, BEGAN)
    assert told.endswith("sovereign approve 9f8e7d6c --by NAME, or with --refuse")
    assert new_lines(asks, asks, BEGAN) == ()


@pytest.mark.parametrize("of", [look(HALFWAY), Look(flow_run_id=RUN, run_state="PENDING")])
def test_what_is_shown_while_the_api_is_away_says_so(of):
    assert "has not answered" not in text(of)
    away = text(of.model_copy(update={"away_s": 75.0}))
    assert "Prefect's API has not answered for 1:15; what is shown is from before." in away


def test_who_waits_for_approval_is_told_how_to_give_it():
    shown = text(look(APPROVED[:-1], "PAUSED"))
    assert "A person is asked to approve it; nothing was changed yet." in shown
    assert "sovereign approve 1a2b3c4d --by NAME, or with --refuse" in shown
    assert "waiting for a person's approval" in shown


def test_before_there_is_a_journal_the_run_itself_is_shown():
    waiting = Look(flow_run_id=RUN, run_state="SCHEDULED")
    assert "waits for a worker to take it" in text(waiting)
    failed = Look(flow_run_id=RUN, run_state="FAILED", run_message="no block called web")
    assert "the run is failed: no block called web" in text(failed)


def test_what_is_taken_out_of_the_balancer_is_shown_until_it_is_back():
    assert picture(look(JOURNALS["rolling"])).out == ("blue-1",)
    rejoined = (*BEGUN[:2], Planned(plan=ROLLING), *walked(ROLLING, until="blue-1: rejoin"))
    assert picture(look(rejoined)).out == ()


def test_nothing_that_is_quoted_reaches_the_terminal_as_a_command():
    hostile = "\x1b[2J\x1b]0;owned\x07\x9b31m bad\r\nline\u202e [red]x[/red]"
    entries = (*HALFWAY, Noted(about="held", words=hostile), moved("rolling_back", hostile))
    shown = text(look(entries), height=None) + "".join(new_lines(None, look(entries), BEGAN))
    assert not any(letter in shown for letter in "\x1b\x9b\x07\r\u202e")
    assert "bad line [red]x[/red]" in shown
    assert clean("a\x1b[31mb\x1b[0m\tc") == "ab c"


def test_lines_tell_each_event_once_with_its_time_and_without_colour():
    first = look(HALFWAY[:5])
    assert new_lines(None, first, BEGAN)[2].startswith("2026-01-02T12:00:02Z  planned 20 steps")
    assert not new_lines(first, first, BEGAN)
    later = new_lines(first, look(HALFWAY, "COMPLETED"), BEGAN + timedelta(minutes=1))
    assert len(later) == len(HALFWAY) - 5 + 1
    assert later[-1] == "2026-01-02T12:01:00Z  flow run 1a2b3c4d is COMPLETED"
    assert any("watch green at 10 %: PASS, shown to be below 0.05" in line for line in later)


def test_lines_name_each_row_that_blocks():
    told = new_lines(None, look(JOURNALS["blocked"]), BEGAN)
    assert sum("  blocks: " in line for line in told) == len(GATE.report.blocking)


def test_lengths_of_time_are_as_people_read_them():
    assert [clock(s) for s in (-1, 0.42, 9.94, 42, 3723)] == ["0.0 s", "0.4 s", "9.9 s", "0:42", "1:02:03"]


def test_a_terminal_is_redrawn_in_place_and_keeps_within_its_size():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=24, legacy_windows=False)
    seen = [look(HALFWAY)]
    with Live(LiveView(lambda: seen[0]), console=console, screen=True, auto_refresh=False) as live:
        live.refresh()
        console.size = (60, 20)
        seen[0] = look(FAILED)
        live.refresh()
    drawn_text = screen.getvalue()
    assert "\x1b[?1049h" in drawn_text
    assert "\x1b[?1049l" in drawn_text
    assert "\x1b[2J" not in drawn_text  # nothing is cleared between two drawings: it would flicker
    last = drawn_text.split("\x1b[H")[-1]
    assert "ROLLING BACK" in last
    assert last.count("\n") < 20


def test_restored_traffic_counts_only_once_it_is():
    back = RestoreTraffic(traffic=CANARY.before.traffic)
    entries = (*BEGUN, Intent(number=11, title="send", undo=back), Done(number=11), moved("rolling_back"))
    before, after = picture(look(entries)), picture(look((*entries, Undone(number=11))))
    assert before.traffic.share == pytest.approx(0.1)
    assert after.traffic.share == 0


def test_the_clock_of_this_machine_may_be_behind_that_of_the_worker():
    frame = Frame(now=datetime(2020, 1, 1, tzinfo=UTC))
    assert "0.0 s" in drawn(picture(look(HALFWAY)), frame)[0].plain
