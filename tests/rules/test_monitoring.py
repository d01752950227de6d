"""The watch after a promotion: acts on what is really bad, and is not startled by chance."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.alerts import Alert
from rules.baseline import Comparison, Tolerance
from rules.environment import Monitoring
from rules.evalue import OPENING_BETS_ABOVE, after_look, log_mean
from rules.monitoring import Look, Watch, decide, monitor_times
from rules.traffic import Counts

PROMOTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
POLICY = Monitoring()
LOOKS_A_DAY = 2880
UP = {"green-1": True, "green-2": True}


def look(number: int = 0, **seen: object) -> Look:
    return Look(at=PROMOTED + timedelta(seconds=30 * number), **{"probes": UP, "requests": 100, **seen})


def watched(*looks: Look, policy: Monitoring = POLICY, watch: Watch | None = None) -> Watch:
    watch = watch or Watch()
    for one in looks:
        watch = watch.after(one, policy)
    return watch


def compared(result: str, *, rolls_back: bool, name: str = "error_ratio") -> Comparison:
    return Comparison(
        name=name,
        before=0.01,
        after=0.02,
        change="from 0.01 to 0.02 (+100%)",
        direction="lower_is_better",
        tolerance=Tolerance(relative=0.25, floor=0.001),
        result=result,
        rolls_back=rolls_back,
    )


def alert(severity: str) -> Alert:
    return Alert(name="HighErrorRate", severity=severity, starts_at=PROMOTED, summary="5 % for 5 min")


def test_good_looks_are_fine_and_say_what_was_seen():
    verdict = decide(watched(*[look(n, errors=1) for n in range(20)]), POLICY)
    assert verdict.action == "fine"
    assert verdict.reasons == ("20 looks, all well: 20 errors in the newest 2000 requests",)


@pytest.mark.parametrize(
    ("errors", "action", "limit"),
    [
        (50, "immediate", "immediate_error_ratio 0.1"),
        (8, "delayed", "delayed_error_ratio 0.05"),
        (4, "fine", ""),
    ],
)
def test_an_error_ratio_above_a_limit_is_found_within_minutes(errors, action, limit):
    good = watched(*[look(n, errors=1) for n in range(LOOKS_A_DAY // 2)])
    verdict = decide(watched(*[look(n, errors=errors) for n in range(50)], watch=good), POLICY)
    assert verdict.action == action
    assert limit in verdict.reasons[0]


def test_half_of_all_requests_failing_is_found_in_a_minute_even_after_twenty_good_hours():
    watch = watched(*[look(n, errors=1) for n in range(2400)])
    actions = []
    for n in range(3):
        watch = watch.after(look(n, errors=50), POLICY)
        actions.append(decide(watch, POLICY).action)
    assert actions == ["fine", "immediate", "immediate"]


def test_an_error_ratio_above_a_limit_is_acted_on_once_it_is_shown_at_odds_of_200_to_1():
    watch = watched(*[look(n, errors=1) for n in range(200)])
    odds = []
    while decide(watch, POLICY).action == "fine":
        odds.append(log_mean(watch.log_above_delayed))
        watch = watch.after(look(errors=8), POLICY)
    assert len(odds) > 3
    assert odds[-1] < math.log(200) <= log_mean(watch.log_above_delayed)


def test_a_blip_that_is_over_within_one_look_takes_nothing_back():
    watch = watched(*[look(n) for n in range(100)], look(errors=60))
    assert decide(watch, POLICY).action == "fine"
    assert decide(watched(look(), watch=watch), POLICY).action == "fine"


def test_few_requests_are_not_judged_by_their_error_ratio():
    sparse = [look(n, requests=1, errors=n % 2) for n in range(20)]
    assert decide(watched(*sparse), POLICY).action == "fine"


def test_sparse_traffic_adds_up_until_it_can_be_judged():
    sparse = [look(n, requests=1, errors=1) for n in range(50)]
    assert decide(watched(*sparse[:-1]), POLICY).action == "fine"
    assert decide(watched(*sparse), POLICY).action == "immediate"


def test_an_error_counted_before_its_request_breaks_nothing():
    assert watched(look(requests=0, errors=2)).recent == (Counts(2, 2),)


@pytest.mark.parametrize(
    ("probes", "action"),
    [
        ({"green-1": False, "green-2": False, "green-3": True}, "immediate"),
        ({"green-1": False}, "immediate"),
        ({"green-1": False, "green-2": True}, "delayed"),
    ],
)
def test_dead_instances_are_tolerated_for_a_while_and_no_longer(probes, action):
    looks = [look(n, probes=probes) for n in range(POLICY.tolerated_probes + 1)]
    assert decide(watched(*looks[:-1]), POLICY).action == "fine"
    verdict = decide(watched(*looks), POLICY)
    assert verdict.action == action
    assert "green-1" in verdict.reasons[0]
    assert "3 probes in a row, 2 are tolerated" in verdict.reasons[0]


def test_one_answer_in_between_begins_the_count_anew():
    down, up = look(probes={"green-1": False}), look(probes={"green-1": True})
    assert decide(watched(down, down, up, down, down), POLICY).action == "fine"


def test_a_look_that_asked_no_instance_neither_clears_nor_accuses():
    down, nobody = look(probes={"green-1": False}), look(probes={})
    assert decide(watched(down, down, nobody), POLICY).action == "fine"
    assert decide(watched(down, down, nobody, down), POLICY).action == "immediate"


@pytest.mark.parametrize(
    ("severity", "action"), [("critical", "immediate"), ("warning", "warn"), ("", "fine")]
)
def test_a_new_alert_counts_by_its_severity(severity, action):
    verdict = decide(watched(look(alerts=(alert(severity),))), POLICY)
    assert verdict.action == action
    assert severity == "" or "HighErrorRate" in verdict.reasons[0]


def test_a_metric_that_may_roll_back_must_be_worse_twice_in_a_row():
    worse, same = (look(comparisons=(compared(result, rolls_back=True),)) for result in ("worse", "same"))
    assert decide(watched(worse), POLICY).action == "warn"
    assert decide(watched(worse, same, worse), POLICY).action == "warn"
    verdict = decide(watched(worse, worse), POLICY)
    assert verdict.action == "delayed"
    assert (
        "error_ratio is worse than the baseline in 2 comparisons in a row: from 0.01 to 0.02"
        in verdict.reasons[0]
    )


def test_what_is_short_is_a_warning_and_hides_no_other():
    short = look(requests=0, short="bafy is pinned on 1 of the 2 nodes that are to hold it")
    verdict = decide(watched(*[short] * 10), POLICY)
    assert verdict.action == "warn"
    words = "; ".join(verdict.reasons)
    assert "pinned on 1 of the 2 nodes" in words
    assert "no request in the last" in words
    assert "metrics" not in words


@pytest.mark.parametrize("between", ["no_data", "provider_error", None])
def test_a_look_without_that_metric_neither_clears_nor_accuses(between):
    worse = look(comparisons=(compared("worse", rolls_back=True),))
    comparisons = (compared(between, rolls_back=True),) if between else ()
    assert decide(watched(worse, look(comparisons=comparisons)), POLICY).action == "fine"
    assert decide(watched(worse, look(comparisons=comparisons), worse), POLICY).action == "delayed"


def test_a_slower_p95_warns_and_never_rolls_back():
    slower = look(comparisons=(compared("worse", rolls_back=False, name="latency_p95_s"),))
    verdict = decide(watched(*[slower] * 10), POLICY)
    assert verdict.action == "warn"
    assert verdict.reasons == ("latency_p95_s is worse: from 0.01 to 0.02 (+100%)",)


def test_a_provider_that_is_away_for_hours_is_only_a_warning():
    away = look(requests=0, provider_error="connection refused")
    verdict = decide(watched(look(), *[away] * 500), POLICY)
    assert verdict.action == "warn"
    assert verdict.reasons == ("metrics cannot be read: connection refused",)


def test_looks_in_which_nothing_could_be_counted_are_no_silence():
    away = look(requests=0, provider_error="connection refused")
    assert decide(watched(look(), *[away] * 20, look(requests=0)), POLICY).action == "fine"


def test_a_dead_side_is_found_while_the_provider_is_away():
    away = look(requests=0, provider_error="connection refused", probes=dict.fromkeys(UP, False))
    verdict = decide(watched(*[away] * 3), POLICY)
    assert verdict.action == "immediate"
    assert verdict.also[-1] == "metrics cannot be read: connection refused"


def test_errors_in_the_journal_warn():
    verdict = decide(watched(look(journal_errors=7)), POLICY)
    assert (verdict.action, verdict.reasons) == ("warn", ("7 errors in the units' journal",))


@pytest.mark.parametrize("looks", [0, 1, 30])
def test_no_data_is_never_fine(looks):
    verdict = decide(watched(*[look(requests=0)] * looks), POLICY)
    assert verdict.action == "warn"
    assert "nothing was looked at" in verdict.reasons[0] or "no request in the last" in verdict.reasons[0]


def test_what_asks_for_less_is_kept_beside_the_reasons():
    seen = look(alerts=(alert("critical"), alert("warning")), journal_errors=1)
    verdict = decide(watched(seen), POLICY)
    assert verdict.reasons == ("HighErrorRate (critical): 5 % for 5 min",)
    assert verdict.also == ("HighErrorRate (warning): 5 % for 5 min", "1 errors in the units' journal")


def test_a_watch_is_bounded_and_survives_json():
    watch = Watch()
    sizes = []
    for n in range(600):
        watch = watch.after(look(n, errors=n % 3, comparisons=(compared("worse", rolls_back=True),)), POLICY)
        sizes.append(len(watch.model_dump_json()))
        if n % 100 == 0:
            watch = Watch.model_validate_json(watch.model_dump_json())
    assert sizes[-1] < 8_000
    assert sizes[-1] - sizes[300] < 100
    assert Watch.model_validate_json(watch.model_dump_json()) == watch


def test_looking_all_day_long_accuses_hardly_any_application_that_keeps_its_limit():
    """At the limit itself, which is the worst case; the limit alone, looked at as often, accuses each day."""
    chance = random.Random(20260301)
    days, by_bets, by_limit_alone = 4, 0, 0
    for _ in range(days):
        watch, accused, naive = Watch(), False, False
        for n in range(LOOKS_A_DAY):
            errors = sum(chance.random() < POLICY.delayed_error_ratio for _ in range(8))
            watch = watch.after(look(n, requests=8, errors=errors), POLICY)
            accused = accused or decide(watch, POLICY).action != "fine"
            newest = watch.recent[-8:]
            requests, failed = sum(c.requests for c in newest), sum(c.errors for c in newest)
            naive = naive or (requests >= POLICY.min_requests and failed / requests > 0.10)
        by_bets, by_limit_alone = by_bets + accused, by_limit_alone + naive
    assert by_bets == 0
    assert by_limit_alone == days


def test_the_bets_against_a_limit_are_won_by_chance_in_hardly_any_watch():
    chance = random.Random(7)
    won, watches = 0, 200
    for _ in range(watches):
        bets, highest = OPENING_BETS_ABOVE, 0.0
        for number in range(1, 201):
            errors = sum(chance.random() < 0.10 for _ in range(4))
            bets = after_look(bets, Counts(4, errors), limit=0.10, number=number)
            highest = max(highest, log_mean(bets))
        won += highest >= math.log(200)
    assert (
        won <= 4
    )  # 2 expected at most; 5 or more would be seen in 1 of 20 runs of a rule that just keeps it


@given(
    promoted=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001 - hypothesis wants them bare
    for_s=st.floats(1, 200_000),
    parts=st.floats(1, 300),
    probes=st.floats(1, 50),
)
def test_the_windows_cover_the_monitoring_time_without_gap_or_overlap(promoted, for_s, parts, probes):
    promoted = promoted.replace(tzinfo=UTC)
    every_s = for_s / parts
    policy = Monitoring(every_s=every_s, for_s=for_s, probe_every_s=every_s / probes)
    times = monitor_times(promoted, policy)
    assert times[0].start == promoted
    assert times[-1].end == promoted + timedelta(seconds=for_s)
    assert [one.number for one in times] == list(range(len(times)))
    assert all(one.start < one.end for one in times)
    assert all(one.end == two.start for one, two in pairwise(times))
    longest_s = every_s + policy.probe_every_s + 1e-5
    assert all((one.end - one.start).total_seconds() <= longest_s for one in times)


def test_a_day_is_96_windows_of_a_quarter_of_an_hour():
    times = monitor_times(PROMOTED, POLICY)
    assert len(times) == 96
    assert {one.end - one.start for one in times} == {timedelta(minutes=15)}


def test_a_rest_that_is_shorter_than_a_probe_belongs_to_the_last_window():
    times = monitor_times(PROMOTED, Monitoring(every_s=60, for_s=130, probe_every_s=30))
    assert [(one.end - one.start).total_seconds() for one in times] == [60, 70]
    longer = monitor_times(PROMOTED, Monitoring(every_s=60, for_s=150, probe_every_s=30))
    assert [(one.end - one.start).total_seconds() for one in longer] == [60, 60, 30]
