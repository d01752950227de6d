"""Release several components in a declared order: all of them end promoted, or all are taken back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from blocks.environment import load_environment
from flows.approval import approve
from flows.deploy import deploy
from flows.guard import guarded, take_back_after
from flows.rollout import PART, Part, keep_plan, opening
from rules.entries import Opened
from rules.errors import DeployError, GateBlockedError
from rules.frozen import slug
from rules.message import Event
from rules.plan import Plan
from rules.record import DeploymentRecord, plan_page, record_of
from rules.release import Component, Release
from rules.release_actions import DeployComponent
from rules.release_plan import Foreseen, component_deployment, foreseen_page, plan_release
from rules.strategy import InPlace
from tasks.aftermath import keep_books, tell
from tasks.checklist import refuse_unknown_rows, run_checklist
from tasks.deployment import OpenDeployment, supersede_promoted
from tasks.pause import proceed
from tasks.planning import plan_now
from tasks.prefect_api import PrefectApi
from tasks.release import refuse_fallen
from tasks.release_bake import schedule_after_bake
from tasks.report import publish_page, publish_progress
from tasks.services import Services, load_services
from tasks.settings import Settings

#: Each component may wait for a person, build an index, or watch a canary for long.
_TIMEOUT_S = 7 * 24 * 3600


@flow(
    name="release",
    flow_run_name="{change.name} {change.release}",
    timeout_seconds=_TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def release(
    change: Release,
    environment: str = "development",
    dry_run: bool = False,  # noqa: FBT001, FBT002 - a field of the run form
) -> DeploymentRecord | Plan:
    """Hold all targets, plan and gate every component, approve once, deploy one after the other, promote.

    Each component is deployed by the whole way of a deployment: gate, baseline, backups, strategy, watch.
    When one fails, or is taken back before the last one stands, all are taken back, newest first.

    Args:
        change: the components, and their order.
        environment: name of the Sovereign Environment block; `development` needs none.
        dry_run: only show the order, the plan and the gate of each component.

    Raises:
        InvalidRequestError: a component makes no sense for its system; nothing was changed.
        GateBlockedError: the checklist of a component does not allow it.
        RefusedError: nobody approved it; nothing was changed.
        LockHeldError: another deployment has one of the targets; nothing was changed.
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    settings, where = Settings(), load_environment(environment)
    services = load_services(where)
    opened = opening(change, InPlace(), settings, environment=where)
    if dry_run:
        return _show(change, opened, services, settings=settings)
    with guarded(opened, settings, services) as whole:
        plan = plan_release(change, whole.name)
        keep_plan(whole, plan)
        foreseen = tuple(_foreseen_in(whole, change, services))
        pages = plan.model_copy(update={"notes": (*plan.notes, foreseen_page(foreseen))})
        publish_page(
            whole.api,
            whole.journal.read(),
            "components",
            plan_page(pages),
            words="The plan of each component",
        )
        _gate(foreseen, services)
        approve(whole, pages, services)
        tell(whole.journal.read(), services, Event.STARTED)
        keep_books(settings)
        _walk(whole, change, {one.component: one.plan for one in foreseen if one.plan})
        whole.promote(f"All {len(plan.steps)} components were deployed, watched and verified.")
        supersede_promoted(whole.opened, whole.api, settings)
        schedule_after_bake(whole.journal, whole.api, settings)
    return record_of(whole.journal.read())


def _show(change: Release, opened: Opened, services: Services, *, settings: Settings) -> Plan:
    plan = plan_release(change, opened.deployment)
    with PrefectApi(settings) as api:
        foreseen = tuple(
            _foreseen(one, opened, services, number=number, api=api, settings=settings)
            for number, one in enumerate(change.now)
        )
    page = f"{plan_page(plan)}\n\n{foreseen_page(foreseen)}"
    create_markdown_artifact(page, key=f"dry-run-{slug(change.target)}", description="What would be done")
    get_run_logger().info("%s", page)
    return plan


def _foreseen_in(whole: OpenDeployment, change: Release, services: Services) -> Iterator[Foreseen]:
    for number, one in enumerate(change.now):
        proceed(whole)
        yield _foreseen(
            one, whole.opened, services, number=number, api=whole.api, settings=whole.settings, whole=whole
        )


def _foreseen(
    one: Component,
    of: Opened,
    services: Services,
    *,
    number: int,
    api: PrefectApi,
    settings: Settings,
    whole: OpenDeployment | None = None,
) -> Foreseen:
    """Plan one component, and judge its checklist, before anything is changed.

    Raises:
        DeployError: it cannot be planned, and waits for no other component that could change that.
    """
    own = component_deployment(of.deployment, number, one.name)
    with _as_part(Part(own, of.deployment, whole, None)):
        opened = opening(one.change, one.strategy, settings, environment=of.environment)
    try:
        plan = plan_now(one.change, one.strategy, opened, settings)
    except DeployError as error:
        if not one.after:
            raise
        return Foreseen(component=one.name, why_later=f"after {', '.join(one.after)}. Now: {error}")
    refuse_unknown_rows(plan, one.papers)
    report = run_checklist(plan, opened, services, papers=one.papers, api=api, settings=settings, tell=False)
    return Foreseen(component=one.name, plan=plan, report=report)


def _gate(foreseen: tuple[Foreseen, ...], services: Services) -> None:
    """Let nothing begin where a later component would be blocked.

    Raises:
        GateBlockedError: says which component lacks what; nothing was changed.
    """
    tells = services.notifications is not None
    blocked = {one.component: one.blocking(tells=tells) for one in foreseen}
    words = [f"{name}: {' '.join(row.in_words for row in rows)}" for name, rows in blocked.items() if rows]
    if words:
        raise GateBlockedError(f"The checklist blocks this release, nothing was changed. {' '.join(words)}")


def _walk(whole: OpenDeployment, change: Release, seen: Mapping[str, Plan]) -> None:
    """Deploy one component after the other, as long as all before it stand.

    Raises:
        DeployError: one failed, or does not stand any more; all are to be taken back.
    """
    logger, plan, done = get_run_logger(), whole.plan, list[str]()
    for step in plan.steps:
        if not isinstance(step.action, DeployComponent):
            continue
        proceed(whole)
        refuse_fallen(whole.journal.read(), whole.settings, done=done)
        one = change.named(step.action.component)
        logger.info("component %d of %d: %s", step.number + 1, len(plan.steps), step.title)
        part = Part(step.action.deployment, whole.name, whole, seen.get(one.name))
        whole.perform(step, partial(_deploy, one, part, environment=whole.opened.environment.name))
        done.append(one.name)
        publish_progress(whole, plan, step)
    refuse_fallen(whole.journal.read(), whole.settings, done=done)


def _deploy(one: Component, part: Part, *, environment: str) -> None:
    with _as_part(part):
        deploy(
            one.change,
            one.strategy,
            environment=environment,
            evidence=one.evidence,
            attestations=list(one.attestations),
            waivers=list(one.waivers),
        )


@contextmanager
def _as_part(part: Part) -> Iterator[None]:
    """Have what is opened meanwhile be opened as this part of a release."""
    token = PART.set(part)
    try:
        yield
    finally:
        PART.reset(token)
