"""Reviews and checks of a commit, as the forge tells them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.evidence.forgejo import CombinedStatus, CommitStatus, Review, judge_reviews, judge_status
from rules.finding import Result

HEAD, OLD = "a" * 40, "b" * 40


def review(state="APPROVED", *, at=0, user="ada", commit=HEAD, official=True, **flags):
    when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=at)
    return Review(
        id=at, user=user, state=state, commit_id=commit, official=official, submitted_at=when, **flags
    )


APPROVED, REFUSED = review(at=1), review("REQUEST_CHANGES", at=2)


@pytest.mark.parametrize(
    ("reviews", "result"),
    [
        ([APPROVED], Result.PASSED),
        ([], Result.FAILED),
        ([review(official=False)], Result.FAILED),
        ([review(stale=True)], Result.FAILED),
        ([review(dismissed=True)], Result.FAILED),
        ([review(commit=OLD)], Result.FAILED),
        ([review("COMMENT")], Result.FAILED),
        ([review("PENDING")], Result.FAILED),
        ([APPROVED, REFUSED], Result.FAILED),
        ([REFUSED, review(at=3)], Result.PASSED),  # the latest word counts
        ([REFUSED, APPROVED], Result.FAILED),  # whatever order they are told in
        ([APPROVED, review("COMMENT", at=2)], Result.PASSED),  # a comment takes nothing back
        ([APPROVED, review("REQUEST_REVIEW", at=2)], Result.PASSED),
        ([APPROVED, review("REQUEST_CHANGES", at=2, user="bob", official=False)], Result.FAILED),
        ([APPROVED, review("REQUEST_CHANGES", at=2, user="bob", stale=True)], Result.FAILED),
        ([APPROVED, review("REQUEST_CHANGES", at=2, user="bob", dismissed=True)], Result.PASSED),
        (
            [APPROVED, review("REQUEST_CHANGES", at=2, dismissed=True)],
            Result.FAILED,
        ),  # no word of hers is left
    ],
)
def test_an_approval_counts_on_this_commit_until_it_is_taken_back(reviews, result):
    assert judge_reviews(reviews, head=HEAD).result is result


def test_two_approvals_are_of_two_persons():
    assert judge_reviews([review(at=1), review(at=2)], head=HEAD, required=2).result is Result.FAILED
    assert judge_reviews([APPROVED, review(user="bob")], head=HEAD, required=2).result is Result.PASSED


def test_words_say_who_counts_and_why_others_do_not():
    found = judge_reviews([APPROVED, review(user="bob", stale=True)], head=HEAD, required=2)
    assert "1 approvals of aaaaaaaaaaaa count (ada), 2 needed." in found.evidence
    assert "bob's is stale" in found.evidence


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.lists(
        st.builds(
            review,
            st.sampled_from(["APPROVED", "COMMENT", "REQUEST_CHANGES"]),
            at=st.integers(0, 9),
            user=st.sampled_from("xyz"),
        )
    )
)
def test_a_last_request_for_changes_always_blocks(reviews):
    found = judge_reviews([*reviews, review("REQUEST_CHANGES", at=99, user="x")], head=HEAD)
    assert found.result is Result.FAILED


def status(state="success", *, sha=HEAD, **checks):
    rows = tuple(CommitStatus(context=name, status=said) for name, said in checks.items())
    return CombinedStatus(sha=sha, state=state, total_count=len(rows), statuses=rows)


@pytest.mark.parametrize(
    ("given_status", "result"),
    [
        (status(build="success", test="success"), Result.PASSED),
        (status(build="success"), Result.FAILED),  # a required one has not reported
        (status(build="success", test="warning"), Result.FAILED),  # nor is it a success
        (status(build="success", test="success", extra="failure"), Result.FAILED),
        (status("failure", build="success", test="success"), Result.FAILED),
        (status("pending", build="pending", test="success"), Result.FAILED),
        (status("", build="success", test="success"), Result.FAILED),
        (CombinedStatus(), Result.UNKNOWN),  # what Forgejo says of a commit that no check has looked at
        (CombinedStatus(state="success"), Result.UNKNOWN),
        (status(sha=OLD, build="success", test="success"), Result.UNKNOWN),
    ],
)
def test_all_checks_and_each_required_one_must_have_succeeded(given_status, result):
    found = judge_status(given_status, required_contexts=("build", "test"), commit=HEAD)
    assert found.result is result


def test_words_name_the_check_that_failed():
    found = judge_status(status("failure", build="failure", lint="success"), required_contexts=("deploy",))
    assert found.evidence == "2 checks, together failure: deploy has not reported, build says failure."
