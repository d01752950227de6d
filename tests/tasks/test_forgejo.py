"""The forge's API, against a server that follows its published schema."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from lab.forgejo import LabForgejo
from lab.ports import free_port, give_back
from rules.evidence.forgejo import CombinedStatus, CommitStatus, judge_reviews, judge_status
from rules.finding import Result
from tasks.forgejo import (
    ForgejoError,
    close_issue,
    comment,
    commit_status,
    open_issue,
    pull_head,
    pull_reviews,
)

HEAD, NEXT = "a" * 40, "c" * 40


@pytest.fixture
def forge() -> Iterator[LabForgejo]:
    """A repository with one pull request and small pages."""
    with LabForgejo(page_size=2) as running:
        running.open_pull(HEAD)
        running.set_status(HEAD, "", "")
        yield running


def test_a_pull_requests_head_is_read(forge):
    assert pull_head(forge.block(), 1) == HEAD


def test_reviews_are_read_over_all_pages(forge):
    for user in "abcde":
        forge.add_review(user)
    reviews = pull_reviews(forge.block(), 1)
    assert [review.user for review in reviews] == list("abcde")
    assert len([path for _, path in forge.seen if "/reviews" in path]) == 3
    assert judge_reviews(reviews, head=HEAD, required=5).result is Result.PASSED


def test_a_push_makes_reviews_stale_and_they_count_no_more(forge):
    forge.add_review("ada")
    forge.push(NEXT)
    reviews = pull_reviews(forge.block(), 1)
    assert judge_reviews(reviews, head=NEXT).result is Result.FAILED
    forge.add_review("ada")
    assert judge_reviews(pull_reviews(forge.block(), 1), head=NEXT).result is Result.PASSED


def test_the_latest_word_of_each_person_counts(forge):
    forge.add_review("ada")
    forge.add_review("bob", "REQUEST_CHANGES")
    assert judge_reviews(pull_reviews(forge.block(), 1), head=HEAD).result is Result.FAILED
    forge.add_review("bob", "APPROVED")
    assert judge_reviews(pull_reviews(forge.block(), 1), head=HEAD).result is Result.PASSED


def test_checks_are_combined_over_all_pages(forge):
    for name in ("build", "test", "lint"):
        forge.set_status(HEAD, name, "success")
    assert (
        judge_status(commit_status(forge.block(), HEAD), required_contexts=("lint",)).result is Result.PASSED
    )
    # alone on its page: the first page says success
    forge.set_status(HEAD, "lint", "failure")
    status = commit_status(forge.block(), HEAD)
    assert (status.state, status.total_count, status.sha) == ("failure", 3, HEAD)
    assert CommitStatus(context="lint", status="failure") in status.statuses
    assert judge_status(status).result is Result.FAILED


def test_a_commit_without_checks_is_no_error_and_unknown(forge):
    status = commit_status(forge.block(), HEAD)
    assert status == CombinedStatus()
    assert judge_status(status).result is Result.UNKNOWN


def test_an_issue_is_opened_commented_on_and_closed(forge):
    number, address = open_issue(forge.block(), "P1: web was rolled back", "Timeline…")
    assert (number, address) == (1, f"{forge.url}/team/web/issues/1")
    comment(forge.block(), number, "resolved")
    close_issue(forge.block(), number)
    close_issue(forge.block(), number)
    issue = forge.issues[0]
    assert (issue.title, issue.body, issue.comments, issue.state) == (
        "P1: web was rolled back",
        "Timeline…",
        ["resolved"],
        "closed",
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token": SecretStr("wrong")}, "answered 401 (invalid username, password or token)"),
        ({"token": None}, "answered 404"),
        ({"repository": "other"}, "answered 404 (The target couldn't be found.)"),
    ],
)
def test_a_refusal_says_what_the_forge_said_and_that_nothing_was_changed(forge, changed, words):
    with pytest.raises(ForgejoError) as caught:
        pull_head(forge.block(**changed), 1)
    assert words in str(caught.value)
    assert "Nothing was changed." in str(caught.value)
    assert "scopes of its token" in str(caught.value)


def test_what_is_not_there_is_an_error(forge):
    for read in (lambda: pull_head(forge.block(), 9), lambda: pull_reviews(forge.block(), 9)):
        with pytest.raises(ForgejoError, match="404"):
            read()
    with pytest.raises(ForgejoError, match="404"):
        commit_status(forge.block(), "d" * 40)


def test_writing_without_a_token_is_refused(forge):
    with pytest.raises(ForgejoError, match="token is required"):
        open_issue(forge.block(token=None), "title", "body")
    assert forge.issues == []


def test_a_busy_forge_is_asked_again_for_what_is_read(forge):
    forge.failing = [503, 502]
    assert pull_head(forge.block(), 1) == HEAD
    assert len(forge.seen) == 3


def test_what_is_written_is_sent_once_and_an_unknown_end_is_said(forge):
    forge.failing = [503]
    with pytest.raises(ForgejoError, match="Whether it was done all the same is not known"):
        open_issue(forge.block(), "title", "body")
    assert len(forge.seen) == 1


def test_a_forge_that_is_down_is_an_error_within_its_time(forge):
    port = free_port()
    began = time.monotonic()
    with pytest.raises(ForgejoError, match="did not answer"):
        pull_head(forge.block(url=f"http://127.0.0.1:{port}"), 1)
    give_back(port)
    assert time.monotonic() - began < 5


def test_a_server_that_is_no_forge_is_an_error(forge):
    forge.heads[1] = {"no": "id"}
    with pytest.raises(ForgejoError, match="not what its API promises"):
        pull_head(forge.block(), 1)


def test_the_token_is_in_no_error_and_no_address(forge):
    forge.failing = [500]
    with pytest.raises(ForgejoError) as caught:
        pull_head(forge.block(), 1)
    assert forge.token not in str(caught.value)
    assert all(forge.token not in path for _, path in forge.seen)


def test_the_stand_in_answers_as_the_schema_says(forge):
    forge.add_review("ada")
    forge.set_status(HEAD, "build", "success")
    headers = {"Authorization": f"token {forge.token}"}
    with httpx.Client(base_url=forge.block().api_url, headers=headers, trust_env=False) as client:
        reviews = client.get("pulls/1/reviews")
        assert reviews.headers["X-Total-Count"] == "1"
        assert {"id", "user", "state", "commit_id", "stale", "official", "dismissed", "submitted_at"} <= set(
            reviews.json()[0]
        )
        combined = client.get(f"commits/{HEAD}/status").json()
        assert combined["statuses"][0]["status"] == "success"  # not `state`, as elsewhere
        missing = client.get("pulls/9")
        assert (missing.status_code, set(missing.json())) == (404, {"message", "url", "errors"})
        assert client.post("issues", json={"body": "no title"}).status_code == 422
        assert client.post("issues", content=b"{").status_code == 422
