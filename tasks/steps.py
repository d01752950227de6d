"""Each action of a plan as a Prefect task, named after what it does to which instance."""

from __future__ import annotations

import time
from typing import assert_never

from rules.change import ApplicationRelease, FleetChange, ModelRelease, RayRelease
from rules.content_actions import ContentAction
from rules.content_change import ContentRelease
from rules.database_plan import DatabaseAction
from rules.errors import InvalidRequestError, StepFailedError, VerdictFailedError, WorldMovedError
from rules.fleet import Fleet, FleetState, Instance
from rules.model_actions import ModelAction
from rules.nixos_actions import NixosAction
from rules.plan import (
    DrainServer,
    FleetAction,
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
from rules.ray_actions import RayAction
from rules.system_change import SystemRelease
from rules.traffic import Route, Traffic
from rules.verdict import Outcome, Verdict
from tasks import application, balancer, watch
from tasks.as_task import as_task
from tasks.content_steps import change_content
from tasks.database_steps import change_database
from tasks.deployment import OpenDeployment
from tasks.fleet import admin_state, place
from tasks.model_steps import change_model, stage_model
from tasks.nixos_steps import change_system
from tasks.ray_steps import change_nodes, restart_node

#: A batch of a rolling update goes on unless it is shown to be bad: its probes passed, traffic may be low.
_ALL_BUT_FAIL = frozenset(Outcome) - {Outcome.FAIL}

stage_release = as_task(application.stage_release, "stage release", "{instance.name}: stage", retries=2)
switch_release = as_task(application.switch_release, "switch release", "{instance.name}: switch", retries=2)
restart_service = as_task(
    application.restart_service, "restart service", "{instance.name}: restart", retries=1
)
wait_until_ready = as_task(
    application.wait_until_ready, "wait until ready", "{instance.name}: wait until ready"
)
smoke_test = as_task(application.smoke_test, "smoke test", "{instance.name}: smoke tests")
watch_side = as_task(watch.watch_side, "watch", "{title}")
observe_batch = as_task(watch.observe_batch, "observe", "{title}")


def _set_traffic(route: Route, traffic: Traffic, *, timeout_s: float) -> None:
    """Change the split once every instance that gets traffic by it is up in the balancer."""
    for side in traffic.carrying:
        balancer.wait_until_up(route, side, deadline_s=timeout_s)
    balancer.set_traffic(route, traffic)


def _drain_server(fleet: Fleet, instance: Instance, drain_s: float) -> None:
    route, side, server = place(fleet, instance)
    balancer.drain(route, side, server, deadline_s=drain_s)


def _rejoin_server(fleet: Fleet, instance: Instance) -> None:
    route, side, server = place(fleet, instance)
    balancer.rejoin(route, side, server, deadline_s=instance.start_timeout_s)


set_traffic = as_task(_set_traffic, "set traffic", "traffic: {traffic.live}, {traffic.candidate}", retries=2)
rehearse_switch = as_task(
    balancer.rehearse_switch, "rehearse switch", "{route.key}: rehearse the switch", retries=2
)
drain_server = as_task(_drain_server, "drain", "{instance.name}: drain", retries=1)
rejoin_server = as_task(_rejoin_server, "rejoin", "{instance.name}: rejoin", retries=1)


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
    if isinstance(step.action, DatabaseAction):
        change_database(deployment, plan, step.action)
    elif isinstance(step.action, ContentAction) and isinstance(plan.change, ContentRelease):
        change_content(deployment, plan.change, step.action)
    elif isinstance(step.action, NixosAction) and isinstance(plan.change, SystemRelease):
        change_system(deployment, plan.change, step.action)
    elif isinstance(step.action, ModelAction) and isinstance(plan.change, ModelRelease):
        change_model(deployment, plan.change, step.action)
    elif isinstance(step.action, RayAction) and isinstance(plan.change, RayRelease):
        change_nodes(deployment, plan.change, step.action)
    elif isinstance(step.action, FleetAction) and isinstance(plan.change, FleetChange):
        _change_fleet(deployment, plan.change, step.action, title=step.title)
    else:
        raise InvalidRequestError(
            f"'{step.title}' is no step of a {plan.change.component}; nothing was done."
        )


def _change_fleet(
    deployment: OpenDeployment, change: FleetChange, action: FleetAction, *, title: str
) -> None:
    fleet, settings = deployment.fleet, deployment.settings
    match action:
        case StageRelease(instance=name):
            _stage(deployment, change, fleet.instance(name))
        case SwitchRelease(instance=name):
            switch_release(fleet.instance(name), change.pointer)
        case RestartService(instance=name):
            _restart(deployment, change, fleet.instance(name))
        case ProbeInstance(instance=name):
            _wait_until_ready(deployment, fleet.instance(name), change.release)
        case TestInstance(instance=name):
            smoke_test(fleet.instance(name), fleet, release=change.release, settings=settings)
        case SetTraffic():
            set_traffic(_route(fleet), action.traffic, timeout_s=settings.command_timeout_s)
        case RehearseSwitch():
            rehearse_switch(_route(fleet), action.splits)
        case DrainServer(instance=name):
            drain_server(fleet, fleet.instance(name), action.drain_s)
        case RejoinServer(instance=name):
            rejoin_server(fleet, fleet.instance(name))
        case WatchSide():
            verdict = watch_side(deployment, action, title=title)
            _judge(deployment, title, verdict, goes_on=frozenset({Outcome.PASS}))
        case ObserveBatch():
            observed = observe_batch(deployment, action, title=title)
            _judge(deployment, title, observed, goes_on=_ALL_BUT_FAIL)
        case unknown:
            assert_never(unknown)


def _stage(deployment: OpenDeployment, change: FleetChange, instance: Instance) -> None:
    match change:
        case ModelRelease():
            stage_model(deployment, change, instance)
        case ApplicationRelease() | RayRelease():
            stage_release(instance, change, deployment=deployment.name, settings=deployment.settings)
        case SystemRelease():
            raise _not_of_systems(instance)


def _restart(deployment: OpenDeployment, change: FleetChange, instance: Instance) -> None:
    if not isinstance(change, ApplicationRelease):  # which is back at once
        deployment.stopped_at[instance.name] = time.monotonic()
    match change:
        case RayRelease():
            restart_node(deployment, instance)
        case ApplicationRelease() | ModelRelease():
            restart_service(instance, settings=deployment.settings)
        case SystemRelease():
            raise _not_of_systems(instance)


def _not_of_systems(instance: Instance) -> InvalidRequestError:
    return InvalidRequestError(f"{instance.name} is deployed to as a whole; nothing was done by this step.")


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
    stopped_at = deployment.stopped_at.pop(instance.name, None)
    if stopped_at is not None:
        words = f"{instance.name} did not answer for {time.monotonic() - stopped_at:.1f} s"
        deployment.note("restart", words)


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
            now, planned = balancer.read_traffic(fleet.route), expected.traffic
        case DrainServer(instance=name) | RejoinServer(instance=name):
            now, planned = admin_state(fleet, fleet.instance(name)), expected.servers[name]
        case _:
            return
    if now != planned:
        raise WorldMovedError(
            f"Before '{step.title}': {now!r} is there, the plan was made for {planned!r}. Somebody else "
            "changed it meanwhile."
        )
