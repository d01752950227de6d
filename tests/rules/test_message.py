"""What people are told: each event says what happened, the state and the next step, and no secret."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rules.entries import Moved, Opened
from rules.environment import Environment
from rules.journal import JournalView, view
from rules.message import Event, message_of, without_secrets
from tests.rules.builders import fleet

AT = datetime(2026, 11, 25, 14, 0, tzinfo=UTC)


def journal(*states: str, reason: str = "8 of 100 failed") -> JournalView:
    opened = Opened(
        at=AT,
        deployment="web-2-0-abc",
        target="application-web",
        flow_run_id="run",
        host="host-a",
        fleet=fleet(),
        summary="web 2.0 to production, canary",
        environment=Environment(name="production"),
    )
    return view([opened, *(Moved(at=AT, state=state, reason=reason, by="flow") for state in states)])


@pytest.mark.parametrize("event", list(Event))
@pytest.mark.parametrize("known", [None, journal()])
def test_each_event_says_state_and_next_step(event, known):
    message = message_of(event, known)
    assert "**State:**" in message.body
    assert "**Next:**" in message.body
    assert message.title
    assert "\n" not in message.title
    assert len(message.body) < 3_000


def test_every_event_has_a_name_of_its_own():
    titles = {message_of(event, None).title for event in Event}
    assert len(titles) == len(Event)


def test_a_rollback_names_the_cause_the_place_and_what_to_do():
    message = message_of(Event.ROLLED_BACK, journal("rolling_back", "rolled_back"))
    assert message.title == "Rolled back: web 2.0 to production, canary"
    assert message.severity == "warning"
    assert "**What:** 8 of 100 failed" in message.body
    assert "verified to be as before" in message.body
    for line in ("- deployment: web-2-0-abc", "- target: application-web", "- environment: production"):
        assert line in message.body


def test_a_failed_rollback_is_the_loudest():
    message = message_of(Event.ROLLBACK_FAILED, journal("rolling_back", "rollback_failed"))
    assert message.title.startswith("P0 ROLLBACK FAILED: ")
    assert message.severity == "failure"
    assert "stays locked" in message.body
    assert "run roll-back for web-2-0-abc" in message.body


def test_facts_replace_words_and_add_lines():
    message = message_of(
        Event.APPROVAL_NEEDED,
        journal(),
        reason="rules of production",
        next_step="Approve before 15:00.",
        flow_run_url="http://prefect/runs/1",
        left_out=None,
        empty="",
    )
    assert "**What:** rules of production" in message.body
    assert "**Next:** Approve before 15:00." in message.body
    assert "- flow run url: http://prefect/runs/1" in message.body
    assert "left out" not in message.body
    assert "empty" not in message.body


def test_an_incident_is_told_with_its_severity():
    opened = message_of(Event.INCIDENT_OPENED, journal("rolling_back", "rolled_back"))
    assert opened.title.startswith("P2 Incident opened: ")
    told = message_of(Event.INCIDENT_UPDATED, None, severity="P1", what="web is slow", reason="p95 7 s")
    assert (told.title, told.severity) == ("P1 Incident updated: web is slow", "warning")


def test_an_endless_reason_is_cut():
    message = message_of(Event.BLOCKED, journal("blocked", reason="x" * 100_000), what="y" * 100_000)
    assert len(message.title) <= 120
    assert len(message.body) < 2_000
    assert "…" in message.body


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://deploy:s3cr3t@db/sovereign refused",
        "PGPASSWORD=s3cr3t psql",
        "password: s3cr3t",
        'FORGEJO_TOKEN="s3cr3t with space"',
        '{"api_key": "s3cr3t"}',
        "GET /?token=s3cr3t&x=1",
        "Authorization: Bearer s3cr3t-s3cr3t",
        "-----BEGIN OPENSSH PRIVATE KEY-----\ns3cr3t\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ns3cr3t and no end",
    ],
)
def test_what_looks_like_a_secret_is_left_out(text):
    assert "s3cr3t" not in without_secrets(text)
    assert "s3cr3t" not in message_of(Event.ROLLED_BACK, journal(reason=text), reason=text).body


@pytest.mark.parametrize(
    "text",
    [
        "8 of 100 failed (0.08), odds 150 to 1",
        "see https://prefect.example.com/runs/1?tab=logs",
        "blue-1: release is 1.0, not 2.0",
        "tokens per second fell from 40 to 12",
        "basic checks passed",
    ],
)
def test_ordinary_words_stay_as_they_are(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "a-" * 100_000, "://" * 60_000, "token" * 40_000, " " * 200_000]
)
def test_no_text_takes_long_to_look_through(text):
    # in time that grows with the square of the length, each of these would take minutes
    assert message_of(Event.BLOCKED, None, reason=text)
