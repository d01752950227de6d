"""Watch a side's answers, tick by tick, until a verdict is reached."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rules.errors import BalancerError, StepFailedError
from rules.fleet import Fleet, Instance
from rules.plan import ObserveBatch, WatchSide
from rules.traffic import Counts, Route
from rules.verdict import CanaryEvidence, Outcome, Verdict
from tasks import balancer
from tasks.application import settled_release
from tasks.deployment import OpenDeployment
from tasks.pause import is_paused

log = logging.getLogger(__name__)
_TRY_AGAIN_S = 0.5
_NOBODY_COUNTS = "the balancer is not set up to count what the sides answer: see its block"
#: New answers of the watched and of the stable side, as counters since they began.
Reading = Callable[[], tuple[Counts, Counts]]


def watch_side(deployment: OpenDeployment, action: WatchSide, *, title: str) -> Verdict:  # noqa: ARG001 - names the task run
    """Watch until the side passes and its bake is over, or until it cannot pass any more.

    Returns:
        The verdict: PASS, or why the deployment must not go on. Not shown to be good in time is a HOLD.

    Raises:
        AlarmError: what watches beside the rollout raised an alarm.
        FencedError, CutOffError, RevokedError, AbortedError: the deployment must not go on.
    """
    limits, deadline_s = action.watch.limits, action.watch.deadline_s
    # one evidence for all steps, so that the budget of false alarms is that of the whole deployment
    evidence = deployment.evidence.next_step()
    passed_at: float | None = None
    last_s = 0.0
    for elapsed_s, canary, stable in _ticks(
        deployment, _sides(deployment.fleet, action), action.watch.tick_s
    ):
        evidence = deployment.evidence = _after(evidence, canary, stable)
        verdict = evidence.verdict(limits, elapsed_s=elapsed_s)
        _keep_sample(deployment, action, verdict, canary=canary, stable=stable)
        if verdict.outcome in (Outcome.FAIL, Outcome.NO_DATA):
            return verdict
        if verdict.outcome is Outcome.PASS and passed_at is None:
            passed_at = elapsed_s
        is_ready = verdict.outcome is Outcome.PASS and elapsed_s - (passed_at or 0.0) >= action.bake_s
        is_held = is_paused(deployment) or (is_ready and bool(deployment.held_by()))
        if is_ready and not is_held:
            return verdict
        # time in which it could not have gone on does not count against it
        deadline_s, last_s = deadline_s + (elapsed_s - last_s if is_held else 0.0), elapsed_s
        if elapsed_s > deadline_s + action.bake_s:
            late = f"not shown to be good within {deadline_s + action.bake_s:g} s"
            return verdict.model_copy(update={"outcome": Outcome.HOLD, "reasons": (late, *verdict.reasons)})
    raise AssertionError("a watch only ends with a verdict")


def _after(evidence: CanaryEvidence, canary: Counts | None, stable: Counts | None) -> CanaryEvidence:
    if canary is None or stable is None:
        return evidence.unobserved("the balancer does not answer")
    return evidence.observe(canary, stable)


def observe_batch(deployment: OpenDeployment, action: ObserveBatch, *, title: str) -> Verdict | None:  # noqa: ARG001 - names the task run
    """Watch a batch that has just rejoined, beside those that are not updated yet, for a fixed time.

    Returns:
        The last verdict; None where no balancer counts.

    Raises:
        StepFailedError: an instance of the batch stopped answering its probe.
        FencedError, CutOffError, RevokedError: the deployment must not go on.
    """
    fleet, evidence = deployment.fleet, CanaryEvidence()
    verdict: Verdict | None = None
    is_counted = fleet.route is not None and fleet.route.counts
    reading = _batch(fleet, action) if is_counted else _nothing
    for elapsed_s, canary, stable in _ticks(deployment, reading, min(1.0, max(action.observe_s / 2, 0.1))):
        if is_counted and canary is not None and stable is not None:
            evidence = evidence.observe(canary, stable)
            verdict = evidence.verdict(action.limits, elapsed_s=elapsed_s)
        if elapsed_s >= action.observe_s or (verdict and verdict.outcome is Outcome.FAIL):
            break
    for name in action.instances:
        # one slow answer takes nothing back
        if settled_release(fleet.instance(name), pause_s=_TRY_AGAIN_S) is None:
            raise StepFailedError(
                f"{name} stopped answering its probe within {action.observe_s:g} s of its update."
            )
    return verdict


def _ticks(
    deployment: OpenDeployment, reading: Reading, tick_s: float
) -> Iterator[tuple[float, Counts | None, Counts | None]]:
    """Yield, each tick, the seconds since the start and the new counts of both sides; None: unreadable."""
    began = time.monotonic()
    earlier = _read_patiently(deployment, reading, tick_s)
    tick = 0
    while True:
        tick += 1
        time.sleep(max(0.0, began + tick * tick_s - time.monotonic()))
        deployment.prove_ours()
        deployment.heed()
        try:
            now = reading()
        except BalancerError as error:
            log.warning("no reading: %s", error)
            yield time.monotonic() - began, None, None
            continue
        yield time.monotonic() - began, now[0].since(earlier[0]), now[1].since(earlier[1])
        earlier = now


def _read_patiently(deployment: OpenDeployment, reading: Reading, pause_s: float) -> tuple[Counts, Counts]:
    """Return the first reading: without one there is nothing to count from."""
    for _ in range(10):
        deployment.prove_ours()
        try:
            return reading()
        except BalancerError as error:
            log.warning("no first reading: %s", error)
            time.sleep(pause_s)
    return reading()


def _sides(fleet: Fleet, action: WatchSide) -> Reading:
    route = _route(fleet)

    def read() -> tuple[Counts, Counts]:
        stable = _counted(route, action.stable) if action.stable else Counts()
        return _counted(route, action.side), stable

    return read


def _batch(fleet: Fleet, action: ObserveBatch) -> Reading:
    """Count the batch's answers, and those of the rest of its side: who serves users beside it."""
    route = _route(fleet)
    batch = tuple(fleet.instance(name) for name in action.instances)
    backend = batch[0].backend or ""
    rest = tuple(member for member in fleet.side(backend) if member not in batch)

    def read() -> tuple[Counts, Counts]:
        counted = balancer.server_counts(route, backend)
        if counted is None:
            raise BalancerError(_NOBODY_COUNTS)
        return _total(counted, batch), _total(counted, rest)

    return read


def _total(counted: dict[str, Counts], members: tuple[Instance, ...]) -> Counts:
    return sum((counted[member.server or ""] for member in members), Counts())


def _nothing() -> tuple[Counts, Counts]:
    return Counts(), Counts()


def _route(fleet: Fleet) -> Route:
    if fleet.route is None:
        raise StepFailedError(f"{fleet.application} has no balancer to count its answers.")
    return fleet.route


def _counted(route: Route, side: str) -> Counts:
    counted = balancer.counts(route, side)
    if counted is None:
        raise BalancerError(_NOBODY_COUNTS)
    return counted


def _keep_sample(
    deployment: OpenDeployment,
    action: WatchSide,
    verdict: Verdict,
    *,
    canary: Counts | None,
    stable: Counts | None,
) -> None:
    """Append one tick to the deployment's samples, for plots and for later questions."""
    sample = {
        "t": time.time(),
        "side": action.side,
        "share": action.share,
        "canary": canary.model_dump() if canary else None,
        "stable": stable.model_dump() if stable else None,
        "outcome": verdict.outcome,
    }
    with (Path(deployment.journal.directory) / "samples.jsonl").open("a") as file:
        file.write(json.dumps(sample) + "\n")
