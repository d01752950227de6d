"""Watch the declared metrics beside a rollout, and hold it while their provider is away."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from datetime import UTC, datetime

from rules.alerts import Alert
from rules.baseline import Baseline
from rules.entries import Decided, Noted
from rules.errors import AlarmError
from rules.judge_metrics import judge_declared, unanswered
from rules.message import Event
from rules.provider import ProviderError, ProviderWatch, Standing
from rules.verdict import Outcome
from tasks.aftermath import tell
from tasks.alertmanager import send_alert
from tasks.baseline import declared_readings
from tasks.deployment import OpenDeployment
from tasks.prometheus import query
from tasks.services import Services

log = logging.getLogger(__name__)
#: What proves that the provider answers, where no metric is declared.
_ANSWERS = "vector(1)"
#: A look this new stands for now: a provider that hangs must not hold up the watch at each tick.
_FRESH_S = 2.0
#: Alertmanager forgets an alert that is not sent again within five minutes.
_CALL_AGAIN_S = 60.0
#: A single bad look is no reason to go back.
_BAD_LOOKS = 2
_HELD = "SovereignDeploymentHeld"


class MetricsWatch:
    """What the metrics provider says during one rollout. `look` may be called by any thread."""

    def __init__(self, deployment: OpenDeployment, services: Services, *, before: Baseline) -> None:
        environment = deployment.opened.environment
        self._deployment, self._services, self._before = deployment, services, before
        self._metrics = environment.metrics
        self._provider = ProviderWatch(
            patience_s=environment.provider_patience_s, on_provider_error=environment.on_provider_error
        )
        self._worse_looks: Counter[str] = Counter()
        self._alarm = ""
        self._lock = threading.Lock()
        self._looked_at = self._called_at = float("-inf")
        self._held_since: datetime | None = None

    def look(self) -> None:
        """Ask for each declared metric, once."""
        prometheus = self._services.prometheus
        if prometheus is None:
            return
        with self._lock:
            readings = declared_readings(prometheus, self._metrics, window_s=self._before.window_s)
            why = unanswered(readings)
            try:
                if not self._metrics:
                    query(prometheus, _ANSWERS)
            except ProviderError as error:
                why = str(error)
            now = self._looked_at = time.monotonic()
            if why is not None:
                self._provider = self._provider.error(why, now)
                return
            self._provider = self._provider.ok(now)
            for one in judge_declared(readings, self._before, self._metrics):
                self._worse_looks[one.name] = self._worse_looks[one.name] + 1 if one.takes_back else 0
                if self._worse_looks[one.name] >= _BAD_LOOKS:
                    self._alarm = f"{one.name}: {one.change}, in {_BAD_LOOKS} looks in a row."

    def held_by(self) -> str:
        """Look, unless that was just done, and say why nothing may go on; empty: it may.

        Raises:
            AlarmError: see `heed`.
        """
        if self._services.prometheus is None:
            return ""
        if time.monotonic() - self._looked_at > _FRESH_S:
            self.look()
        self.heed()
        standing = self._provider.standing
        return "" if standing.state == "fine" or self.has_given_up else standing.in_words

    @property
    def has_given_up(self) -> bool:
        """Whether the provider is away, patience is over, and the policy is to go on without it."""
        standing = self._provider.standing
        return standing.state == "decide" and standing.action == "go_on"

    def heed(self) -> None:
        """Tell people once that the provider is away, and do as the policy says when patience is over.

        Only the flow's own thread may call this: it writes the journal.

        Raises:
            AlarmError: a metric is worse than before, or the provider was away for too long.
        """
        standing = self._provider.standing
        if standing.state == "fine":
            self._released(standing)
        else:
            self._held(standing)
        if self._alarm:
            raise AlarmError(self._alarm)
        if standing.state == "decide" and standing.action == "roll_back":
            words = standing.in_words
            self._deployment.record(
                Decided(title="metrics provider", outcome=Outcome.PROVIDER_ERROR, reasons=(words,))
            )
            raise AlarmError(f"PROVIDER_ERROR: {words}.")

    def _held(self, standing: Standing) -> None:
        words = standing.in_words
        if self._held_since is None:
            self._held_since = datetime.now(UTC)
            self._deployment.keep(Noted(about="held", words=words))
            tell(self._deployment.journal.read(), self._services, Event.HELD, reason=words)
        if time.monotonic() - self._called_at > _CALL_AGAIN_S:
            self._called_at = time.monotonic()
            self._call(words, self._held_since)

    def _released(self, standing: Standing) -> None:
        if self._held_since is None:
            return
        self._deployment.record(Noted(about="released", words=standing.in_words))
        self._call(standing.in_words, self._held_since, ends_at=datetime.now(UTC))
        self._held_since, self._called_at = None, float("-inf")

    def _call(self, words: str, since: datetime, *, ends_at: datetime | None = None) -> None:
        """Have Alertmanager call people, or take the call back; without one this does nothing."""
        if self._services.alertmanager is None:
            return
        labels = {"deployment": self._deployment.name, "target": self._deployment.opened.target}
        alert = Alert(
            name=_HELD, severity="warning", labels=labels, starts_at=since, ends_at=ends_at, summary=words
        )
        try:
            send_alert(self._services.alertmanager, alert)
        except ProviderError as error:
            log.warning("Alertmanager does not know that %s is held: %s", self._deployment.name, error)
