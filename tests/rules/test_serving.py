"""Answers to declared prompts, and the flags that a release's server is started with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.errors import InvalidRequestError
from rules.serving import (
    OWN_FLAGS,
    SECRET_FLAGS,
    Answered,
    DeclaredPrompt,
    ModelServing,
    ServedBefore,
    ServingLimits,
    answer_faults,
    content_faults,
    flags_that_differ,
    server_flags,
    speed_faults,
)

LIMITS = ServingLimits(max_first_token_ratio=2.0, first_token_grace_s=0.2, min_speed_ratio=0.5)


def answer(text: str = "Paris is it", *, tokens: int = 3, first_s: float = 0.1, speed: float | None = 100.0):
    return Answered(prompt="france", text=text, tokens=tokens, first_token_s=first_s, tokens_per_s=speed)


def prompt(**fields) -> DeclaredPrompt:
    return DeclaredPrompt(name="france", text="The capital of France is", **fields)


# --- content ---------------------------------------------------------------------------------------


def test_an_answer_with_what_was_declared_has_no_fault():
    declared = prompt(matches=r"\bParis\b", lacks=r"(?i)\bsorry\b", min_tokens=3, same_as_before=True)
    assert answer_faults(declared, answer(), answer(), LIMITS) == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"matches": "Rome"}, "france: nothing in the answer matches 'Rome': it answered 'Paris is it'"),
        (
            {"lacks": "P.ris"},
            "france: the answer has 'Paris', which 'P.ris' forbids: it answered 'Paris is it'",
        ),
        ({"min_tokens": 4}, "france: 3 tokens, 4 are the least: it answered 'Paris is it'"),
    ],
)
def test_each_fault_is_told_with_what_was_answered(fields, words):
    assert content_faults(prompt(**fields), answer(), None) == (words,)


def test_all_faults_are_told():
    declared = prompt(matches="Rome", lacks="Paris", min_tokens=9, same_as_before=True)
    slow = answer(first_s=9.0, speed=1.0)
    assert len(answer_faults(declared, slow, answer("Rome"), LIMITS)) == 6


def test_another_answer_than_before_is_a_fault_only_where_that_was_declared():
    before = answer("Lyon")
    assert content_faults(prompt(), answer(), before) == ()
    (words,) = content_faults(prompt(same_as_before=True), answer(), before)
    assert "not the answer from before, 'Lyon'" in words
    assert content_faults(prompt(same_as_before=True), answer(), None) == ()


def test_a_long_answer_is_shown_in_part():
    (words,) = content_faults(prompt(matches="Rome"), answer("x" * 10_000), None)
    assert len(words) < 400


def test_an_empty_answer_is_a_fault_of_any_prompt():
    assert content_faults(prompt(), answer("", tokens=0), None)


@pytest.mark.parametrize("field", ["matches", "lacks"])
def test_what_is_no_regular_expression_is_refused_when_it_is_declared(field):
    with pytest.raises(ValidationError, match="no regular expression"):
        prompt(**{field: "(unclosed"})


# --- speed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before_s", "now_s", "is_fault"),
    [
        (0.1, 0.3, False),  # within the grace, though three times as long
        (0.1, 0.31, True),
        (1.0, 2.0, False),  # twice as long, beyond the grace
        (1.0, 2.01, True),
        (0.0, 0.2, False),
        (1.0, 0.1, False),
    ],
)
def test_a_first_token_may_be_late_by_the_ratio_or_by_the_grace(before_s, now_s, is_fault):
    assert bool(speed_faults(answer(first_s=now_s), answer(first_s=before_s), LIMITS)) is is_fault


@pytest.mark.parametrize(
    ("before", "now", "is_fault"),
    [(100.0, 50.0, False), (100.0, 49.9, True), (None, 1.0, False), (100.0, None, False), (0.0, 0.0, False)],
)
def test_an_answer_may_be_slower_by_the_ratio(before, now, is_fault):
    assert bool(speed_faults(answer(speed=now), answer(speed=before), LIMITS)) is is_fault


def test_what_is_too_slow_is_told_with_both_figures_and_the_limit():
    first, speed = speed_faults(answer(first_s=0.5, speed=10.0), answer(), LIMITS)
    assert first == (
        "france: first token after 0.500 s, 0.100 s before; at most 2 times that or 0.2 s more, 0.300 s, is "
        "allowed"
    )
    assert speed == "france: 10.0 tokens/s, 100.0 before; 0.5 of that, 50.0, is the least"


@given(st.floats(0, 100), st.floats(0.001, 1e4))
def test_as_fast_as_before_is_never_too_slow_and_without_a_before_there_is_no_limit(first_s, speed):
    now = answer(first_s=first_s, speed=speed)
    assert speed_faults(now, now, LIMITS) == ()
    assert speed_faults(now, None, LIMITS) == ()


def test_an_answer_is_found_by_its_prompts_name():
    before = ServedBefore(answers=(answer(),))
    assert before.of("france") == answer()
    assert before.of("spain") is None


def test_answers_at_another_servers_pace_keep_their_texts():
    users, idle = answer("Paris"), answer("Rome", first_s=0.7, speed=None)
    mixed = ServedBefore(answers=(users,)).at_the_pace_of(ServedBefore(answers=(idle,)))
    assert mixed.answers == (answer("Paris", first_s=0.7, speed=None),)
    assert ServedBefore(answers=(users,)).at_the_pace_of(ServedBefore()).answers == (users,)


# --- flags -----------------------------------------------------------------------------------------


def flags(serving: dict | None = None, change: dict | None = None, **more):
    return server_flags(
        ModelServing(flags=serving or {}), change or {}, root="/srv/chat", release="m2", **more
    )


def test_a_releases_flags_win_over_the_models_and_ours_are_added():
    said = flags({"context-length": 2048, "tp-size": 2}, {"context-length": 4096, "sleep-on-idle": True})
    assert said == {
        "context-length": 4096,
        "model-path": "/srv/chat/current/model",
        "sleep-on-idle": True,
        "tp-size": 2,
        "weight-version": "m2",
    }
    assert list(said) == sorted(said)


def test_gguf_is_named_by_its_file():
    assert flags(gguf="tiny.gguf") == {
        "load-format": "gguf",
        "model-path": "/srv/chat/current/model/tiny.gguf",
        "tokenizer-path": "/srv/chat/current/model",
        "weight-version": "m2",
    }


@pytest.mark.parametrize("flag", sorted(OWN_FLAGS | SECRET_FLAGS))
def test_what_is_ours_or_secret_is_refused_wherever_it_is_declared(flag):
    for declared in (({flag: "x"}, {}), ({}, {flag: "x"})):
        with pytest.raises(
            InvalidRequestError, match=rf"flags {flag} (say where|are secrets).*Nothing was touched"
        ):
            flags(*declared)


def test_a_secret_is_not_repeated_in_its_refusal():
    with pytest.raises(InvalidRequestError) as raised:
        flags({"api-key": "hunter2"})
    assert "hunter2" not in str(raised.value)


def test_flags_differ_by_value_and_by_being_there_but_not_by_the_release():
    one = {"weight-version": "m1", "tp-size": 2, "device": "cpu", "model-path": "/a"}
    other = {"weight-version": "m2", "tp-size": 4, "sleep-on-idle": True, "model-path": "/a"}
    assert flags_that_differ(one, other) == ("device", "sleep-on-idle", "tp-size")
    assert flags_that_differ(one, {**one, "weight-version": "m2"}) == ()
