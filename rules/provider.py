"""The metrics provider is away: hold, for how long, and what then. A dead provider is no bad release.

An outage begins with the first tick that got no answer. One answer does not end it: a provider that
answers every second time would otherwise hold a rollout for ever. It ends after `steady_s` of answers
without a gap. While the provider answers nothing is decided against the rollout; so a decision falls only
on a tick without an answer, `patience_s` after the outage began.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rules.errors import DeployError
from rules.frozen import Frozen, PositiveSeconds, Seconds

OnProviderError = Literal["roll_back", "go_on"]
State = Literal["fine", "hold", "decide"]


class ProviderError(DeployError):
    """The metrics provider gave no answer: it is away, late, failing, or says nothing we can read."""


class QueryRefusedError(ProviderError):
    """The metrics provider answers, but not this question: the query is wrong, or asks for several values."""


class Standing(Frozen):
    """What the watch says now.

    `fine`: judge. `hold`: go neither on nor back. `decide`: do as `action` says, which is the declared
    policy: take the change back, or go on with the balancer's own counters.
    """

    state: State
    since_s: Seconds | None = None
    held_s: Seconds = 0.0
    patience_left_s: Seconds
    action: OnProviderError | None = None
    reason: str = ""

    @property
    def in_words(self) -> str:
        """The same for people."""
        if self.state == "fine":
            return "the metrics provider answers"
        away = f"the metrics provider is away for {self.held_s:.3g} s ({self.reason})"
        if self.state == "hold":
            return f"{away}: held, {self.patience_left_s:.3g} s of patience left"
        then = {
            "roll_back": "the change is taken back",
            "go_on": "judged by the balancer's counters alone",
            None: "",
        }[self.action]
        return f"{away}: patience is over, {then}"


class ProviderWatch(Frozen):
    """All that is remembered of the provider's answers; times are seconds of any clock that only goes on.

    Args:
        patience_s: how long an outage is held.
        on_provider_error: what is done then.
        steady_s: answers without a gap for this long end an outage.
    """

    patience_s: PositiveSeconds = 120.0
    on_provider_error: OnProviderError = "roll_back"
    steady_s: Seconds = 10.0
    away_since_s: float | None = None
    answers_since_s: float | None = None
    last_s: float | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _only_an_outage_has_a_recovery(self) -> Self:
        if self.away_since_s is None and self.answers_since_s is not None:
            raise ValueError("answers_since_s counts the answers within an outage; there is none")
        return self

    def ok(self, at_s: float) -> ProviderWatch:
        """Return the watch after a tick with an answer."""
        at_s = self._not_before(at_s)
        if self.away_since_s is None:
            return self.model_copy(update={"last_s": at_s})
        began_s = at_s if self.answers_since_s is None else self.answers_since_s
        if at_s - began_s >= self.steady_s:
            over = {"away_since_s": None, "answers_since_s": None, "reason": ""}
            return self.model_copy(update={**over, "last_s": at_s})
        return self.model_copy(update={"answers_since_s": began_s, "last_s": at_s})

    def error(self, reason: str, at_s: float) -> ProviderWatch:
        """Return the watch after a tick without an answer, and why there was none."""
        at_s = self._not_before(at_s)
        since_s = at_s if self.away_since_s is None else self.away_since_s
        now = {"away_since_s": since_s, "answers_since_s": None, "last_s": at_s, "reason": reason}
        return self.model_copy(update=now)

    @property
    def standing(self) -> Standing:
        """What the last tick leads to."""
        if self.away_since_s is None or self.last_s is None:
            return Standing(state="fine", patience_left_s=self.patience_s)
        held_s = self.last_s - self.away_since_s
        decided = self.answers_since_s is None and held_s >= self.patience_s
        return Standing(
            state="decide" if decided else "hold",
            since_s=max(0.0, self.away_since_s),
            held_s=held_s,
            patience_left_s=max(0.0, self.patience_s - held_s),
            action=self.on_provider_error if decided else None,
            reason=self.reason,
        )

    def _not_before(self, at_s: float) -> float:
        return at_s if self.last_s is None else max(at_s, self.last_s)
