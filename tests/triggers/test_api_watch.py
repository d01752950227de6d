"""Watching ends when nothing more is to come, and says what is left when patience is over."""

from __future__ import annotations

import pytest

from rules.errors import ApiUnavailableError
from tests.triggers.test_api_progress import progress, without_journal
from triggers.api_progress import Progress
from triggers.api_watch import Patience, watched

QUICK = Patience(every_s=0.001)


def seen(*looks: Progress | Exception, patience: Patience = QUICK) -> list[str]:
    """Return what a watcher sees of these looks, the last of which lasts."""
    left = list(looks)

    def look() -> Progress:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now

    return [f"{one.run_state} {one.state}".strip() for one in watched(look, patience)]


def test_only_what_has_changed_is_told():
    running = progress("RUNNING")
    assert seen(running, running, progress("COMPLETED", "promoted")) == [
        "RUNNING running",
        "COMPLETED promoted",
    ]


def test_a_dead_run_is_watched_until_its_deployment_is_taken_back():
    crashed = progress("CRASHED", "rolling_back")
    assert seen(progress("CRASHED"), crashed, progress("CRASHED", "rolling_back", "rolled_back")) == [
        "CRASHED running",
        "CRASHED rolling_back",
        "CRASHED rolled_back",
    ]


def test_a_dead_run_that_nobody_takes_back_is_told_with_what_to_do():
    with pytest.raises(
        TimeoutError, match=r"web-2-0-0-00000000 is running.*CRASHED.*`recover` takes it back"
    ):
        seen(progress("CRASHED"), patience=Patience(every_s=0.001, abandoned_s=0.01))


def test_an_api_that_is_away_is_waited_for():
    away = ApiUnavailableError("away")
    assert seen(without_journal("RUNNING"), away, away, without_journal("COMPLETED")) == [
        "RUNNING",
        "COMPLETED",
    ]


def test_an_api_that_stays_away_is_told():
    with pytest.raises(ApiUnavailableError, match="away"):
        seen(
            without_journal("RUNNING"),
            ApiUnavailableError("away"),
            patience=Patience(every_s=0.001, away_s=0.01),
        )


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (progress("RUNNING"), "web-2-0-0-00000000 is running, 0 of 0 steps done"),
        (without_journal("SCHEDULED"), "is SCHEDULED"),
        (ApiUnavailableError("away"), "Prefect's API has not answered yet"),
    ],
)
def test_who_gives_up_learns_how_things_are_and_that_they_go_on(look, words):
    with pytest.raises(TimeoutError, match=f"Not over after 0.01 s: .*{words}.*goes on"):
        seen(look, patience=Patience(every_s=0.001, timeout_s=0.01))


def test_who_watches_hears_for_how_long_the_api_is_away_and_that_it_answers_again():
    away, told = ApiUnavailableError("away"), list[float]()
    left = [without_journal("RUNNING"), away, away, without_journal("COMPLETED")]

    def look() -> Progress:
        now = left.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    list(watched(look, QUICK, is_away=told.append))
    assert told[0] == told[-1] == 0.0
    assert 0.0 < told[1] < told[2]


def test_time_in_which_the_api_is_away_is_none_in_which_nobody_goes_on():
    away = ApiUnavailableError("away")
    ended = progress("CRASHED", "rolling_back", "rolled_back")
    patience = Patience(every_s=0.05, abandoned_s=0.2)
    assert seen(progress("CRASHED"), *[away] * 6, progress("CRASHED"), ended, patience=patience) == [
        "CRASHED running",
        "CRASHED rolled_back",
    ]
