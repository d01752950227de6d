"""What taking a promoted deployment back means: shown to people before it is done."""

from __future__ import annotations

from rules.backup import Loss
from rules.baseline import Comparison
from rules.frozen import Frozen


class Assessment(Frozen):
    """The impact of a deployment and of taking it back, as read just now."""

    deployment: str
    target: str
    release: str
    back_to: str
    promoted_for_s: float
    comparisons: tuple[Comparison, ...] = ()
    losses: tuple[Loss, ...] = ()
    steps: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()


def assessment_page(assessment: Assessment, *, reason: str) -> str:
    """Return an assessment as a Markdown page: why, how users are doing, the steps, what would be lost."""
    since, release = f"{assessment.promoted_for_s / 3600:.1f} h", assessment.release
    runs = f"{assessment.target} has run release {release} for {since}; it goes back to {assessment.back_to}."
    lines = [
        f"# Take back {assessment.deployment}?",
        "",
        runs,
        "",
        f"**Why.** {reason}",
        "",
        "**How users are doing, against before the change.**",
        "",
        *(f"- {c.name}: {c.result.replace('_', ' ')}, {c.change}" for c in assessment.comparisons),
        "",
        "**What is done, in this order.**",
        "",
        *(f"{number}. {step}" for number, step in enumerate(assessment.steps, 1)),
        "",
        f"**Data.** {_data(assessment)}",
    ]
    if assessment.obstacles:
        lines += ["", "**In the way.** It will be refused as things stand:", ""]
        lines += [f"- {obstacle}" for obstacle in assessment.obstacles]
    return "\n".join(lines)


def _data(assessment: Assessment) -> str:
    kept = (
        "Taking the release back loses no data: it changes links, services and traffic, and no stored data."
    )
    if not assessment.losses:
        return f"{kept} The environment names no backups."
    losses = "; ".join(loss.in_words for loss in assessment.losses)
    return f"{kept} Going back to the backups as well, by hand, would lose: {losses}"
