"""Counters and splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rules.traffic import Counts, Traffic

counts = st.builds(Counts, st.integers(0, 10_000), st.integers(0, 10_000))


def test_counts_are_given_by_position_or_by_name():
    assert (
        Counts(20, 1) == Counts(requests=20, errors=1) == Counts.model_validate({"requests": 20, "errors": 1})
    )


@pytest.mark.parametrize("fields", [{"requests": -1}, {"errors": -1}, {"unknown": 1}, {"requests": "many"}])
def test_counts_refuse_what_is_none(fields):
    with pytest.raises(ValidationError):
        Counts(**fields)


@given(counts, counts)
def test_what_was_counted_since_is_what_was_added(earlier, more):
    assert (earlier + more).since(earlier) == more


@given(counts, counts)
def test_a_counter_that_went_down_was_restarted(now, earlier):
    if now.requests < earlier.requests or now.errors < earlier.errors:
        assert now.since(earlier) == now


def test_no_requests_have_no_error_ratio():
    assert Counts().error_ratio is None
    assert Counts(8, 2).error_ratio == 0.25


@pytest.mark.parametrize(
    ("share", "carrying"), [(0, ("blue",)), (1, ("blue", "green")), (10_000, ("green",))]
)
def test_a_side_without_a_share_carries_nothing(share, carrying):
    assert Traffic(live="blue", candidate="green", canary_basis_points=share).carrying == carrying
