"""Walk a plan: the part that the parent flow and the update flows share."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from prefect import get_run_logger, runtime

from blocks.systems import load_systems
from rules.entries import Opened
from rules.environment import Environment
from rules.errors import StepFailedError
from rules.frozen import slug
from rules.plan import Plan, applied
from rules.release import Deployed, Release
from rules.strategy import Strategy
from tasks.deployment import OpenDeployment
from tasks.observed import differences_from_promised
from tasks.pause import proceed
from tasks.report import publish_plan, publish_progress
from tasks.settings import Settings
from tasks.steps import perform

#: The deployment that a parent flow has opened and its update flow goes on with, in the same process.
OPEN: ContextVar[OpenDeployment | None] = ContextVar("open_deployment", default=None)


class Part(NamedTuple):
    """What a deployment gets from the release that it is a component of, in the same process.

    `deployment` is its own id, `release` that of the release. `whole` is None where the release only looks
    ahead; `seen` is the plan that a person approves with the release, None where it is made later.
    """

    deployment: str
    release: str
    whole: OpenDeployment | None
    seen: Plan | None


#: Set by a release around the deployment of each of its components.
PART: ContextVar[Part | None] = ContextVar("part", default=None)


def opening(
    change: Deployed, strategy: Strategy, settings: Settings, *, environment: Environment | None = None
) -> Opened:
    """Return the opening entry for this flow run's deployment, with all that it is about.

    Raises:
        ValueError: the change names a block that does not exist.
    """
    run_id, systems, part = str(runtime.flow_run.id), load_systems(change), PART.get()
    attempt = runtime.flow_run.run_count
    again = f"-{attempt}" if attempt > 1 else ""  # a run that a person retries is a fresh attempt
    own = f"{slug(change.subject)}-{slug(change.release)[:32].rstrip('-')}-{run_id[:8]}{again}"
    return Opened(
        deployment=part.deployment if part else own,
        part_of=part.release if part else "",
        holds=change.holds if isinstance(change, Release) else (),
        target=change.target,
        component=change.component,
        flow_run_id=run_id,
        host=settings.host,
        fleet=systems.fleet,
        database=systems.database,
        content=systems.content,
        users=systems.users,
        environment=environment or Environment(),
        summary=f"{change.component} {change.subject}, release {change.release}, {strategy.strategy}",
    )


def keep_plan(deployment: OpenDeployment, plan: Plan) -> None:
    """Keep the plan in the journal, and show it."""
    deployment.planned(plan)
    publish_plan(deployment, plan)


def ended_with_nothing_to_do(deployment: OpenDeployment, plan: Plan) -> bool:
    """End a deployment whose plan has no steps; return whether that was so."""
    if plan.steps:
        return False
    deployment.end_unchanged("aborted", f"Release {plan.change.release} is in place already.")
    return True


def walk(deployment: OpenDeployment, plan: Plan) -> None:
    """Do every step of the plan, in order, each with its way back journaled before.

    Raises:
        DeployError: a step failed; what was done is to be taken back.
    """
    logger = get_run_logger()
    state = plan.before
    for step in plan.steps:
        proceed(deployment)
        logger.info("step %d of %d: %s", step.number + 1, len(plan.steps), step.title)
        perform(deployment, plan, step, expected=state)
        state = applied(state, step.action, plan.change)
        publish_progress(deployment, plan, step)


def verify(deployment: OpenDeployment, plan: Plan) -> None:
    """Prove, by reading the system, that it is in the state the plan promised.

    Raises:
        StepFailedError: it is not; says where.
    """
    left = differences_from_promised(deployment.opened, plan, touched=plan.touched)
    if left:
        raise StepFailedError(f"After the rollout the system is not as planned: {'; '.join(left)}")
