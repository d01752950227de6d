"""How many users a deployment that went wrong has touched, and how badly: read from its journal."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from rules.content_actions import SetReferences
from rules.entries import Decided
from rules.frozen import Frozen, Ratio
from rules.journal import JournalView
from rules.model_actions import HotSwap
from rules.nixos_actions import ActivateSystem, RebootHost, SwitchSystem
from rules.plan import Action, DrainServer, Plan, RejoinServer, RestartService, SetTraffic
from rules.release import Release
from rules.rollout import serving
from rules.traffic import Counts, Traffic
from rules.verdict import Outcome

#: From this part of failed requests on, users would call it an outage.
_OUTAGE_ERROR_RATIO = 0.5
_BAD_WATCHES = frozenset({"immediate", "delayed"})

#: What changes an instance for whoever it serves at that moment.
_CHANGES = RestartService | HotSwap | ActivateSystem | SwitchSystem | RebootHost


class Scope(StrEnum):
    """Who notices."""

    ALL_USERS = "all_users"
    SOME_USERS = "some_users"
    ONE_COMPONENT = "one_component"
    NOBODY = "nobody"


class Impact(StrEnum):
    """What they notice."""

    OUTAGE = "outage"
    DATA_AT_RISK = "data_at_risk"
    DEGRADED = "degraded"
    NONE = "none"


class Reach(Frozen):
    """How far it went.

    `share` is the largest part of the users' traffic that what was deployed had, None where the journal
    cannot tell; `answers` are those of the watches that did not pass.
    """

    scope: Scope
    impact: Impact
    share: Ratio | None
    answers: Counts
    is_of_parts: bool = Field(default=False, description="a release: each component says so for itself")

    @property
    def in_words(self) -> str:
        """The same for people."""
        if self.is_of_parts:
            return "What users have noticed is told by the deployments of its components."
        if self.share == 0:
            return "No user was sent to what was deployed."
        reached = "An unknown part" if self.share is None else f"Up to {self.share:.0%}"
        had = f"{reached} of the traffic went to what was deployed"
        if not self.answers.requests:
            return f"{had}; failed requests were not counted."
        counted = f"{self.answers.errors:,} of {self.answers.requests:,} watched requests failed"
        return f"{had}; {counted} ({self.answers.error_ratio or 0.0:.2%})."


def reach(view: JournalView) -> Reach:
    """Return how far a deployment that did not go through has reached its users."""
    if view.plan and isinstance(view.plan.change, Release):
        nothing = Counts()
        return Reach(scope=Scope.NOBODY, impact=Impact.NONE, share=None, answers=nothing, is_of_parts=True)
    share, answers = _share(view), _bad_answers(view)
    if view.state == "rollback_failed" and share == 0:
        # users were never sent there, but the target is between two states and locked
        return Reach(scope=Scope.ONE_COMPONENT, impact=Impact.DEGRADED, share=share, answers=answers)
    return Reach(scope=_scope(share), impact=_impact(share, answers), share=share, answers=answers)


def _scope(share: float | None) -> Scope:
    if share == 0:
        return Scope.NOBODY
    return Scope.ALL_USERS if share is not None and share >= 1 else Scope.SOME_USERS


def _impact(share: float | None, answers: Counts) -> Impact:
    if share == 0:
        return Impact.NONE
    if answers.error_ratio is None:
        return Impact.DEGRADED  # not counted is not none
    if answers.error_ratio >= _OUTAGE_ERROR_RATIO:
        return Impact.OUTAGE
    return Impact.DEGRADED if answers.errors else Impact.NONE


def _share(view: JournalView) -> float | None:
    """Return the largest part of the traffic that was sent to what the deployment changed."""
    if view.state in {"blocked", "aborted"}:
        return 0.0
    plan = view.plan
    if plan is None:
        return None
    numbers = {intent.number for intent in view.intents}
    actions = tuple(step.action for step in plan.steps if step.number in numbers)
    # whoever reads a row gets what it refers to
    referred = float(any(isinstance(action, SetReferences) for action in actions))
    return max(referred, _moved_share(plan, actions), _instance_share(view, plan, actions))


def _moved_share(plan: Plan, actions: tuple[Action, ...]) -> float:
    """Return the largest part of the traffic that was moved away from where it went before."""
    if plan.before.traffic is None:
        return 0.0
    home = plan.before.traffic.live
    moved = (1 - _part_of(action.traffic, home) for action in actions if isinstance(action, SetTraffic))
    return max(moved, default=0.0)


def _part_of(traffic: Traffic, side: str) -> float:
    canary = traffic.canary_basis_points / 10_000
    return (1 - canary) * (traffic.live == side) + canary * (traffic.candidate == side)


def _instance_share(view: JournalView, plan: Plan, actions: tuple[Action, ...]) -> float:
    """Return the part of the instances that serve users which were changed under them, or rejoined."""
    names = {instance.name for instance in serving(view.opened.fleet, plan.before)}
    drained = {action.instance for action in actions if isinstance(action, DrainServer)}
    rejoined = {action.instance for action in actions if isinstance(action, RejoinServer)}
    changed = {action.instance for action in actions if isinstance(action, _CHANGES)}
    return len(names & ((changed - drained) | rejoined)) / len(names) if names else 0.0


def _bad_answers(view: JournalView) -> Counts:
    """Return the answers of all watches that did not pass; each says what it counted from its beginning."""
    newest: dict[str, Counts] = {}
    for entry in view.entries:
        if isinstance(entry, Decided) and entry.outcome is not Outcome.PASS:
            errors = round(entry.canary_requests * (entry.canary_error_ratio or 0.0))
            newest[entry.title] = Counts(entry.canary_requests, errors)
    for window in view.monitored:
        if window.action in _BAD_WATCHES:
            newest[f"monitoring run {window.number}"] = Counts(window.requests, window.errors)
    return sum(newest.values(), Counts())
