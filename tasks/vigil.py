"""Watch the system beside a rollout: health, alerts, logs and metrics. It only reads.

A thread looks every `probe_every_s`; the flow's own thread heeds what it saw, so that only that one writes
the journal and decides.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from rules.baseline import Baseline
from rules.entries import Noted
from rules.errors import AlarmError, BalancerError, CommandError
from rules.journal_errors import units_by_host
from rules.plan import Plan
from rules.provider import ProviderError
from rules.strategy import InPlace
from tasks.alertmanager import alerts_since
from tasks.application import running_release
from tasks.deployment import OpenDeployment
from tasks.fleet import serving_now
from tasks.journald import JournalFollower
from tasks.metrics_watch import MetricsWatch
from tasks.services import Services

log = logging.getLogger(__name__)
_CRITICAL = "critical"
_END_S = 10.0


class Vigil:
    """What is seen beside a rollout, and what follows from it."""

    def __init__(
        self, deployment: OpenDeployment, plan: Plan, services: Services, *, before: Baseline
    ) -> None:
        self._deployment, self._plan, self._services = deployment, plan, services
        self._policy = deployment.opened.environment.monitoring
        self._began = datetime.now(UTC)
        self.metrics = MetricsWatch(deployment, services, before=before)
        self._failed_probes: Counter[str] = Counter()
        self._known_alerts: set[tuple[str, ...]] = set()
        self._unanswered: set[str] = set()
        self._notes: deque[Noted] = deque()
        self._alarm = ""
        self._stop, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)
        self._followers: tuple[JournalFollower, ...] = ()
        self._logged = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Watch until this block ends."""
        opened = self._deployment.opened
        units = units_by_host(opened.fleet.instances, opened.database_server)
        with ExitStack() as stack:
            self._followers = tuple(
                stack.enter_context(JournalFollower(host, names, self._began))
                for host, names in units.items()
            )
            self._thread.start()
            stack.callback(self._thread.join, _END_S)
            stack.callback(self._stop.set)
            yield

    def heed(self) -> None:
        """Write down what was seen, and stop the rollout where it must not go on.

        Raises:
            AlarmError: an alarm; says what was seen.
        """
        while self._notes:
            self._deployment.record(self._notes.popleft())
        self.metrics.heed()
        if self._alarm:
            raise AlarmError(self._alarm)

    def look(self) -> None:
        """Look at everything once, now. Any thread may; what is seen counts once it is heeded."""
        looks = (self.metrics.look, self._look_at_health, self._look_at_alerts, self._look_at_logs)
        with self._looking:
            for look in looks:
                try:
                    look()
                except Exception:
                    log.exception("a look beside the rollout failed")

    def _watch(self) -> None:
        while not self._stop.wait(self._policy.probe_every_s):
            self.look()

    def _look_at_health(self) -> None:
        """Probe what users are served by; what the rollout has touched may fail it, the rest is told."""
        try:
            serving = serving_now(self._deployment.fleet)
        except (BalancerError, CommandError) as error:
            self._note_unanswered("health", f"who serves users is not known: {error}")
            return
        self._unanswered.discard("health")
        for instance in serving:
            if running_release(instance) is not None:
                self._failed_probes[instance.name] = 0
                continue
            self._failed_probes[instance.name] += 1
            self._judge_probe(instance.name, failed=self._failed_probes[instance.name])

    def _judge_probe(self, name: str, *, failed: int) -> None:
        tolerated = self._policy.tolerated_probes
        words = f"{name} has not answered {failed} looks in a row"
        if failed in (1, tolerated + 1):
            self._note("health", words)
        # one that was touched may be in the middle of its own restart: its plan waits for it and judges it;
        # behind a balancer only in place, as the other strategies restart none that serves users
        restarts = self._deployment.fleet.route is None or isinstance(self._plan.strategy, InPlace)
        if failed > tolerated and name in self._plan.touched and not restarts:
            self._alarm = f"{words} ({tolerated} are tolerated)."

    def _look_at_alerts(self) -> None:
        if self._services.alertmanager is None:
            return
        try:
            alerts = alerts_since(self._services.alertmanager, self._began)
        except ProviderError as error:
            self._note_unanswered("alerts", f"Alertmanager does not answer: {error}")
            return
        self._unanswered.discard("alerts")
        for alert in alerts:
            key = (alert.name, *(f"{name}={value}" for name, value in sorted(alert.labels.items())))
            if key in self._known_alerts:
                continue
            self._known_alerts.add(key)
            self._note("alert", alert.in_words)
            if alert.severity == _CRITICAL:
                self._alarm = f"A critical alert began during the rollout: {alert.in_words}."

    def _look_at_logs(self) -> None:
        errors = [error for follower in self._followers for error in follower.errors()]
        for error in errors[self._logged :]:
            self._note("log_error", f"{error.unit}: {error.message}")
        self._logged = len(errors)

    def _note_unanswered(self, about: str, words: str) -> None:
        """Note once that nobody answers, not at each look; anew after an answer."""
        if about not in self._unanswered:
            self._unanswered.add(about)
            self._note(about, words)

    def _note(self, about: str, words: str) -> None:
        self._notes.append(Noted(about=about, words=words, by="vigil"))


@contextmanager
def keeping_vigil(
    deployment: OpenDeployment, plan: Plan, services: Services, *, before: Baseline
) -> Iterator[Vigil]:
    """Watch beside the rollout while this block runs; its findings are heeded at each step and tick."""
    vigil = Vigil(deployment, plan, services, before=before)
    deployment.heed, deployment.held_by = vigil.heed, vigil.metrics.held_by
    try:
        with vigil.kept():
            yield vigil
    finally:
        deployment.heed, deployment.held_by = (lambda: None), (lambda: "")
