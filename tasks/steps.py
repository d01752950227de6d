"""Each action of a plan as a Prefect task, named after what it does to which instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, assert_never

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from rules.errors import StepFailedError, VerdictFailedError, WorldMovedError
from rules.fleet import Fleet, FleetState, Instance
from rules.plan import (
    DrainServer,
    ObserveBatch,
    Plan,
    ProbeInstance,
    RehearseSwitch,
    RejoinServer,
    RestartService,
    SetTraffic,
    StageRelease,
    Step,
    SwitchRelease,
    TestInstance,
    WatchSide,
)
from rules.traffic import Route, Traffic
from rules.verdict import Outcome, Verdict
from tasks import application, haproxy, watch
from tasks.deployment import OpenDeployment
from tasks.fleet import admin_state, place

#: A batch of a rolling update goes on unless it is shown to be bad: its probes passed, traffic may be low.
_ALL_BUT_FAIL = frozenset(Outcome) - {Outcome.FAIL}
P = ParamSpec("P")
R = TypeVar("R")


def _as_task(function: Callable[P, R], name: str, run_name: str, *, retries: int = 0) -> Task[P, R]:
    """Every effect is idempotent, so a retry is safe; nothing is cached: the world may have moved."""
    decorate = task(
        name=name,
        task_run_name=run_name,
        retries=retries,
        retry_delay_seconds=1,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(function)


stage_release = _as_task(application.stage_release, "stage release", "{instance.name}: stage", retries=2)
switch_release = _as_task(application.switch_release, "switch release", "{instance.name}: switch", retries=2)
restart_service = _as_task(
    application.restart_service, "restart service", "{instance.name}: restart", retries=1
)
wait_until_ready = _as_task(
    application.wait_until_ready, "wait until ready", "{instance.name}: wait until ready"
)
smoke_test = _as_task(application.smoke_test, "smoke test", "{instance.name}: smoke tests")
watch_side = _as_task(watch.watch_side, "watch", "{title}")
observe_batch = _as_task(watch.observe_batch, "observe", "{title}")


def _set_traffic(route: Route, traffic: Traffic, *, timeout_s: float) -> None:
    """Change the split once every instance that gets traffic by it is up in the balancer."""
    for side in traffic.carrying:
        haproxy.wait_until_up(route.balancer, side, deadline_s=timeout_s)
    haproxy.set_traffic(route, traffic)


def _drain_server(fleet: Fleet, instance: Instance, drain_s: float) -> None:
    address, backend, server = place(fleet, instance)
    haproxy.drain(address, backend, server, deadline_s=drain_s)


def _rejoin_server(fleet: Fleet, instance: Instance) -> None:
    address, backend, server = place(fleet, instance)
    haproxy.rejoin(address, backend, server, deadline_s=instance.start_timeout_s)


set_traffic = _as_task(_set_traffic, "set traffic", "traffic: {traffic.live}, {traffic.candidate}", retries=2)
rehearse_switch = _as_task(
    haproxy.rehearse_switch, "rehearse switch", "{route.key}: rehearse the switch", retries=2
)
drain_server = _as_task(_drain_server, "drain", "{instance.name}: drain", retries=1)
rejoin_server = _as_task(_rejoin_server, "rejoin", "{instance.name}: rejoin", retries=1)


def perform(deployment: OpenDeployment, plan: Plan, step: Step, *, expected: FleetState) -> None:
    """Do one step of a plan on the live system, its way back journaled before.

    Args:
        deployment: the open deployment.
        plan: the plan the step belongs to.
        step: the step.
        expected: the state that the plan promises before this step.

    Raises:
        WorldMovedError: what the step changes is not as the plan expects; nothing was done.
        DeployError: it failed; see each task.
    """
    _refuse_moved_world(deployment.fleet, step, expected)
    deployment.perform(step, lambda: _effect(deployment, plan, step))


def _effect(deployment: OpenDeployment, plan: Plan, step: Step) -> None:
    fleet, settings, change = deployment.fleet, deployment.settings, plan.change
    match step.action:
        case StageRelease(instance=name):
            stage_release(fleet.instance(name), change, deployment=deployment.name, settings=settings)
        case SwitchRelease(instance=name):
            switch_release(fleet.instance(name), change.pointer)
        case RestartService(instance=name):
            restart_service(fleet.instance(name), settings=settings)
        case ProbeInstance(instance=name):
            _wait_until_ready(deployment, fleet.instance(name), change.release)
        case TestInstance(instance=name):
            smoke_test(fleet.instance(name), fleet, release=change.release, settings=settings)
        case SetTraffic():
            set_traffic(_route(fleet), step.action.traffic, timeout_s=settings.command_timeout_s)
        case RehearseSwitch():
            rehearse_switch(_route(fleet), step.action.splits)
        case DrainServer(instance=name):
            drain_server(fleet, fleet.instance(name), step.action.drain_s)
        case RejoinServer(instance=name):
            rejoin_server(fleet, fleet.instance(name))
        case WatchSide():
            verdict = watch_side(deployment, step.action, title=step.title)
            _judge(deployment, step.title, verdict, goes_on=frozenset({Outcome.PASS}))
        case ObserveBatch():
            observed = observe_batch(deployment, step.action, title=step.title)
            _judge(deployment, step.title, observed, goes_on=_ALL_BUT_FAIL)
        case unknown:
            assert_never(unknown)


def _judge(
    deployment: OpenDeployment, title: str, verdict: Verdict | None, *, goes_on: frozenset[Outcome]
) -> None:
    """Keep a verdict, and raise when the deployment does not go on with it."""
    if verdict is None:
        return
    deployment.decide(title, verdict)
    if verdict.outcome not in goes_on:
        raise VerdictFailedError(f"{title}: {verdict.outcome}: {'; '.join(verdict.reasons)}.")


def _wait_until_ready(deployment: OpenDeployment, instance: Instance, release: str) -> None:
    wait_until_ready(
        instance, release, timeout_s=instance.start_timeout_s, still_wanted=deployment.prove_ours
    )


def _route(fleet: Fleet) -> Route:
    if fleet.route is None:
        raise StepFailedError(f"{fleet.application} has no balancer; nothing was changed by this step.")
    return fleet.route


def _refuse_moved_world(fleet: Fleet, step: Step, expected: FleetState) -> None:
    """Compare just what the step is about to change: somebody may have been at it since the plan."""
    match step.action:
        case SwitchRelease(instance=name):
            now: object = application.current_release(fleet.instance(name))
            planned: object = expected.instances[name].release
        case SetTraffic() if fleet.route:
            now, planned = haproxy.read_traffic(fleet.route), expected.traffic
        case DrainServer(instance=name) | RejoinServer(instance=name):
            now, planned = admin_state(fleet, fleet.instance(name)), expected.servers[name]
        case _:
            return
    if now != planned:
        raise WorldMovedError(
            f"Before '{step.title}': {now!r} is there, the plan was made for {planned!r}. Somebody else "
            "changed it meanwhile."
        )
