"""What a forge knows of a commit: who approved it, and what its checks came to."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rules.finding import Finding
from rules.frozen import Count, Frozen
from rules.words import listed

_OPINIONS = frozenset({"APPROVED", "REQUEST_CHANGES"})
_BAD = frozenset({"error", "failure"})


class Review(Frozen):
    """One review of a pull request, as Forgejo tells it."""

    id: int
    user: str
    state: str
    commit_id: str
    official: bool = False
    stale: bool = False
    dismissed: bool = False
    submitted_at: datetime = datetime.min.replace(tzinfo=UTC)


class CommitStatus(Frozen):
    """What one check says of a commit: pending, success, error, failure or warning."""

    context: str
    status: str


class CombinedStatus(Frozen):
    """What all checks of a commit say; without any, `state` is empty."""

    sha: str = ""
    state: str = ""
    total_count: Count = 0
    statuses: tuple[CommitStatus, ...] = ()


def judge_reviews(reviews: Iterable[Review], *, head: str, required: int = 1) -> Finding:
    """Return whether the commit `head` is approved by `required` persons, and nobody asks for changes.

    Each person's last approval or request for changes counts; a comment takes neither back. An approval
    counts when it is official (from somebody whom the repository asks), on this very commit, and neither
    stale nor dismissed. A request for changes stands until its author or a dismissal ends it.
    """
    last: dict[str, Review] = {}
    for review in sorted(reviews, key=lambda r: (r.submitted_at, r.id)):
        if review.state in _OPINIONS:
            last[review.user] = review
    against = sorted(r.user for r in last.values() if r.state == "REQUEST_CHANGES" and not r.dismissed)
    if against:
        return Finding.failed(f"changes are requested by {listed(against)}.")
    approved = {r.user: _why_not(r, head) for r in last.values() if r.state == "APPROVED"}
    counted = sorted(user for user, why in approved.items() if not why)
    words = (
        f"{len(counted)} approvals of {head[:12]} count ({listed(counted) or 'nobody'}), {required} needed."
    )
    passed_over = sorted(f"{user}'s is {why}" for user, why in approved.items() if why)
    if passed_over:
        words += f" Not counted: {listed(passed_over)}."
    return Finding.judged(words, ok=len(counted) >= required)


def judge_status(
    status: CombinedStatus, *, required_contexts: Iterable[str] = (), commit: str | None = None
) -> Finding:
    """Return whether all checks of a commit succeeded, and each of `required_contexts` is among them.

    Args:
        status: what the forge says.
        required_contexts: names of checks that must have run.
        commit: the commit that was asked for; None: whichever it is.

    A commit without any check is unknown: nothing has looked at it.
    """
    if not status.total_count or not status.statuses:
        return Finding.unknown("no check has reported on this commit.")
    if commit is not None and status.sha != commit:
        return Finding.unknown(
            f"the forge answered for commit {status.sha[:12] or 'none'}, not {commit[:12]}."
        )
    said = {check.context: check.status for check in status.statuses}
    problems = [f"{name} has not reported" for name in sorted(set(required_contexts) - set(said))]
    problems += [
        f"{name} says {said[name]}" for name in sorted(said) if _spoils(name, said, required_contexts)
    ]
    words = f"{status.total_count} checks, together {status.state or 'nothing'}"
    if problems:
        return Finding.failed(f"{words}: {listed(problems)}.")
    return Finding.judged(f"{words}.", ok=status.state == "success")


def _spoils(name: str, said: dict[str, str], required: Iterable[str]) -> bool:
    if name in set(required):
        return said[name] != "success"
    return said[name] in _BAD or said[name] == "pending"


def _why_not(review: Review, head: str) -> str:
    """Say why an approval does not count; empty when it does."""
    reasons = {
        "dismissed": review.dismissed,
        "stale": review.stale,
        "not official": not review.official,
        f"of commit {review.commit_id[:12] or 'none'}": review.commit_id != head,
    }
    return next((words for words, holds in reasons.items() if holds), "")
