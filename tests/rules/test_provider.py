"""A metrics provider that is away: held as long as declared, then decided; flapping holds not for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.baseline import Reading
from rules.judge_metrics import unanswered
from rules.provider import ProviderWatch

PATIENCE_S, STEADY_S = 60.0, 10.0
WATCH = ProviderWatch(patience_s=PATIENCE_S, steady_s=STEADY_S)
#: Seconds since the last tick, and whether it is answered.
TICKS = st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60)


def after(ticks: list[tuple[float, bool]], watch: ProviderWatch = WATCH) -> list[ProviderWatch]:
    """Return the watch after each tick."""
    states, at_s = [], 1000.0
    for pause_s, answered in ticks:
        at_s += pause_s
        watch = watch.ok(at_s) if answered else watch.error("connection refused", at_s)
        states.append(watch)
    return states


def told(ticks: list[tuple[float, bool]], watch: ProviderWatch = WATCH) -> list[str]:
    return [state.standing.state for state in after(ticks, watch)]


def test_before_any_tick_and_with_every_answer_all_is_fine():
    assert WATCH.standing.state == "fine"
    assert set(told([(1, True)] * 100)) == {"fine"}


def test_the_first_silence_holds_and_says_for_how_long():
    standing = after([(1, True), (1, False), (20, False)])[-1].standing
    assert (standing.state, standing.held_s, standing.patience_left_s) == ("hold", 20, 40)
    assert standing.action is None
    assert standing.in_words == (
        "the metrics provider is away for 20 s (connection refused): held, 40 s of patience left"
    )


@pytest.mark.parametrize("action", ["roll_back", "go_on"])
def test_silence_beyond_the_patience_is_decided_by_the_declared_policy(action):
    watch = ProviderWatch(patience_s=PATIENCE_S, on_provider_error=action)
    states = after([(1, False)] * 62, watch)
    assert [state.standing.state for state in states] == ["hold"] * 60 + ["decide"] * 2
    assert states[-1].standing.action == action


def test_an_outage_ends_after_steady_answers_and_the_patience_is_whole_again():
    ticks = [(1, False)] + [(1, True)] * 11
    assert told(ticks) == ["hold"] * 11 + ["fine"]
    standing = after([*ticks, (1, False)])[-1].standing
    assert (standing.state, standing.patience_left_s) == ("hold", PATIENCE_S)


def test_a_provider_that_answers_every_second_time_is_decided_on_not_held_for_ever():
    states = told([(1, number % 2 == 1) for number in range(100)])
    assert states.index("decide") == 60
    assert set(states[:60]) == {"hold"}


def test_nothing_is_decided_while_it_answers_again_however_late():
    assert told([(1, False), (59, False), (30, True)]) == ["hold", "hold", "hold"]
    assert told([(1, False), (59, False), (30, True), (30, True)])[-1] == "fine"


def test_a_clock_that_goes_back_counts_as_standing_still():
    watch = WATCH.error("down", 100.0).error("down", 50.0)
    assert watch.standing.held_s == 0
    assert watch.error("down", 160.0).standing.state == "decide"


def test_a_recovery_without_an_outage_is_refused():
    with pytest.raises(ValidationError, match="there is none"):
        ProviderWatch(answers_since_s=3)


@given(TICKS)
def test_it_never_decides_before_the_patience_is_over_nor_on_an_answer(ticks):
    for (_, answered), watch in zip(ticks, after(ticks), strict=True):
        standing = watch.standing
        assert 0 <= standing.patience_left_s <= PATIENCE_S
        assert (standing.state == "decide") == (standing.action is not None)
        if standing.state == "decide":
            assert not answered
            assert standing.held_s >= PATIENCE_S
        if not answered:
            assert standing.state != "fine"


@given(TICKS)
def test_the_outage_goes_on_until_answers_were_steady(ticks):
    steady_s = None  # an independent count of how long it has answered without a gap
    away = False
    for (pause_s, answered), watch in zip(ticks, after(ticks), strict=True):
        if not answered:
            away, steady_s = True, None
        elif away:
            steady_s = 0.0 if steady_s is None else steady_s + pause_s
            # seconds are summed in two ways here: at the very border either is right
            if abs(steady_s - STEADY_S) < 1e-6:
                return
            away = steady_s < STEADY_S
        assert (watch.standing.state == "fine") == (not away)


@given(TICKS)
def test_it_survives_json_in_mid_outage(ticks):
    for watch in after(ticks):
        assert ProviderWatch.model_validate_json(watch.model_dump_json()) == watch


def test_readings_say_whether_the_provider_answered():
    fine = Reading(name="a", value=1.0, source="prometheus")
    silent = Reading(name="b", source="prometheus")
    away = Reading(name="c", status="provider_error", source="prometheus", note="refused")
    assert unanswered([fine, silent]) is None
    assert unanswered([fine, away, silent]) == "c: refused"
