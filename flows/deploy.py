"""Deploy a change, and always end in a known good state."""

from __future__ import annotations

import time
from functools import partial
from typing import assert_never, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from blocks.environment import load_environment
from flows.application import update_application
from flows.approval import approve
from flows.guard import guarded, take_back_after
from flows.ipfs_content import update_content
from flows.nixos_system import update_systems
from flows.pgvector_index import update_index
from flows.postgres_schema import update_schema
from flows.ray_node import update_ray_nodes
from flows.rollout import OPEN, PART, ended_with_nothing_to_do, keep_plan, opening
from flows.sglang_model import update_model
from flows.update import TIMEOUT_S
from rules.baseline import Baseline, Comparison, compare
from rules.change import ApplicationRelease, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.checklist import Attestation, Waiver
from rules.content_change import ContentRelease
from rules.entries import Approved, Compared, Decided, Gated, Measured, Opened
from rules.errors import GateBlockedError, InvalidRequestError, StepFailedError
from rules.evidence.sources import Evidence
from rules.frozen import slug
from rules.judge_metrics import unanswered
from rules.message import Event
from rules.plan import Plan
from rules.record import DeploymentRecord, checklist_page, plan_page, record_of
from rules.release import Release
from rules.release_plan import same_steps
from rules.request import Papers
from rules.strategy import BlueGreen, Canary, InPlace, Rolling
from rules.system_change import SystemRelease
from rules.verdict import Outcome
from tasks.aftermath import keep_books, tell
from tasks.backup_round import back_up
from tasks.baseline import measure_baseline
from tasks.checklist import refuse_unknown_rows, run_checklist
from tasks.deployment import OpenDeployment, supersede_promoted
from tasks.monitoring import schedule_monitoring
from tasks.pause import hear, proceed
from tasks.planning import plan_now
from tasks.prefect_api import PrefectApi
from tasks.report import publish_checklist, publish_comparison
from tasks.services import Services, load_services
from tasks.settings import Settings
from tasks.vigil import Vigil, keeping_vigil

checklist = task(name="checklist", cache_policy=NO_CACHE, persist_result=False)(run_checklist)
baseline = task(name="baseline", cache_policy=NO_CACHE, persist_result=False)(measure_baseline)
backups = task(name="backups", cache_policy=NO_CACHE, persist_result=False)(back_up)


@flow(
    name="deploy",
    flow_run_name="{change.subject} {change.release}",
    timeout_seconds=TIMEOUT_S,
    on_failure=[take_back_after],
    on_crashed=[take_back_after],
    on_cancellation=[take_back_after],
)
def deploy(  # noqa: PLR0917 - the fields of the run form
    change: ApplicationRelease
    | ModelRelease
    | RayRelease
    | SchemaChange
    | IndexChange
    | SystemRelease
    | ContentRelease,
    strategy: InPlace | BlueGreen | Canary | Rolling,
    environment: str = "development",
    evidence: Evidence = Evidence(),  # noqa: B008 - frozen
    attestations: list[Attestation] = [],  # noqa: B006 - never changed; the form needs the default
    waivers: list[Waiver] = [],  # noqa: B006
    dry_run: bool = False,  # noqa: FBT001, FBT002
) -> DeploymentRecord | Plan:
    """Lock, plan, gate, approve, measure, back up, roll out, verify, compare, promote, watch for 24 hours.

    On any failure, crash, cancellation or timeout all of it is taken back.

    Args:
        change: what to deploy.
        strategy: in place, blue-green, canary or rolling.
        environment: name of the Sovereign Environment block; `development` needs none.
        evidence: what a pipeline hands over for the checklist: files on the worker's host, the commit.
        attestations: persons' words for rows whose evidence cannot be read.
        waivers: persons' decisions to go on without a row.
        dry_run: only show the plan: steps, order, way back of each, what users notice, and the gate.

    Raises:
        InvalidRequestError: the request makes no sense for this system; nothing was changed.
        GateBlockedError: the checklist does not allow it; nothing was changed.
        RefusedError: nobody approved it; nothing was changed.
        LockHeldError: another deployment has the target; nothing was changed.
        TakenBackError: it did not go through; says why, and which state things were left in.
    """
    settings, where = Settings(), load_environment(environment)
    services = load_services(where)
    papers = Papers(evidence=evidence, attestations=tuple(attestations), waivers=tuple(waivers))
    opened = opening(change, strategy, settings, environment=where)
    if dry_run:
        return _show(plan_now(change, strategy, opened, settings), opened, services, papers=papers)
    with guarded(opened, settings, services) as deployment:
        plan = plan_now(change, strategy, opened, settings)
        refuse_unknown_rows(plan, papers)
        keep_plan(deployment, plan)
        if ended_with_nothing_to_do(deployment, plan):
            return record_of(deployment.journal.read())
        _gate(deployment, plan, services, papers=papers)
        _approve(deployment, plan, services)
        before = _measure(deployment, services)
        backups(deployment, services)
        tell(deployment.journal.read(), services, Event.STARTED)
        keep_books(settings)
        with keeping_vigil(deployment, plan, services, before=before) as vigil:
            _roll_out(deployment, plan)
            _compare(deployment, services, before, vigil=vigil)
        deployment.promote("Every step was done, watched and verified.")
        supersede_promoted(deployment.opened, deployment.api, settings)
        schedule_monitoring(deployment.journal, deployment.api, settings)
    return record_of(deployment.journal.read())


def _show(plan: Plan, opened: Opened, services: Services, *, papers: Papers) -> Plan:
    settings = Settings()
    with PrefectApi(settings) as api:
        report = run_checklist(
            plan,
            opened,
            services,
            papers=papers,
            api=api,
            settings=settings,
            tell=False,
        )
    page = f"{plan_page(plan)}\n\n{checklist_page(report)}"
    create_markdown_artifact(
        page, key=f"dry-run-{slug(plan.change.target)}", description="What would be done"
    )
    get_run_logger().info("%s", page)
    return plan


def _gate(deployment: OpenDeployment, plan: Plan, services: Services, *, papers: Papers) -> None:
    proceed(deployment)
    report = checklist(
        plan,
        deployment.opened,
        services,
        papers=papers,
        api=deployment.api,
        settings=deployment.settings,
    )
    deployment.keep(Gated(report=report))
    publish_checklist(deployment, report)
    if report.blocking:
        raise GateBlockedError(
            f"The checklist blocks this deployment, nothing was changed. {report.in_words}"
        )


def _approve(deployment: OpenDeployment, plan: Plan, services: Services) -> None:
    """Wait for a person's word, unless this plan was approved with the release that it is part of."""
    part, whole = PART.get(), deployment.whole
    word = whole.journal.read().approval if whole else None
    if part and word and part.seen and same_steps(part.seen, plan):
        deployment.keep(Approved(by=word.by, words=f"with {part.release}: {word.words}".rstrip(": ")))
        return
    approve(deployment, plan, services)


def _measure(deployment: OpenDeployment, services: Services) -> Baseline:
    """Measure before the rollout; the same window length is measured after it."""
    environment = deployment.opened.environment
    window_s = environment.baseline_s or deployment.settings.baseline_s
    before = _measured(deployment, services, window_s=window_s)
    deployment.record(Measured(moment="before", baseline=before))
    proceed(deployment)  # what was said while it lasted
    away = unanswered(before.readings)
    if away and services.prometheus and environment.on_provider_error == "roll_back":
        raise StepFailedError(
            f"What cannot be measured before cannot be compared after: {away}. Bring the metrics back, mend "
            "the query, or let the environment go on without them (on_provider_error)."
        )
    return before


def _measured(deployment: OpenDeployment, services: Services, *, window_s: float) -> Baseline:
    """Return how things are over the next window; what stops the deployment stops that too."""
    proceed(deployment)
    return baseline(
        deployment.fleet,
        database=deployment.opened.database,
        window_s=window_s,
        prometheus=services.prometheus,
        metrics=deployment.opened.environment.metrics,
        # a pause is written down now; measuring changes nothing and goes on
        still_wanted=partial(hear, deployment),
    )


def _roll_out(deployment: OpenDeployment, plan: Plan) -> None:
    token = OPEN.set(deployment)
    try:
        match plan.change:
            case ApplicationRelease():
                update_application(plan.change, plan.strategy)
            case ModelRelease():
                update_model(plan.change, plan.strategy)
            case RayRelease():
                update_ray_nodes(plan.change, cast("InPlace | Rolling", plan.strategy))  # others were refused
            case SchemaChange():
                update_schema(plan.change)
            case IndexChange():
                update_index(plan.change)
            case SystemRelease():
                update_systems(plan.change, plan.strategy)
            case ContentRelease():
                update_content(plan.change)
            case Release():
                raise InvalidRequestError("A release of several components is deployed by the flow release.")
            case unknown:
                assert_never(unknown)
    finally:
        OPEN.reset(token)


def _compare(deployment: OpenDeployment, services: Services, before: Baseline, *, vigil: Vigil) -> None:
    """Compare with the baseline; a metric that may take a change back and got worse does so."""
    metrics = deployment.opened.environment.metrics
    after = _measured_after(deployment, services, before, vigil=vigil)
    comparisons = compare(before, after, metrics)
    deployment.record(Measured(moment="after", baseline=after))
    deployment.record(Compared(comparisons=comparisons))
    publish_comparison(deployment, comparisons)
    _note_missing(deployment, comparisons)
    worse = [comparison for comparison in comparisons if comparison.takes_back]
    if worse:
        raise StepFailedError("; ".join(f"{one.name}: {one.change}" for one in worse))


def _measured_after(
    deployment: OpenDeployment, services: Services, before: Baseline, *, vigil: Vigil
) -> Baseline:
    """Return how things are now; once more where the metrics' provider was away, when it is back.

    Raises:
        AlarmError: the vigil saw what must not be promoted, or the provider was away for too long.
        StepFailedError: the provider comes and goes for too long, and the policy is to go back then.
    """
    environment = deployment.opened.environment
    declared = {metric.name for metric in environment.metrics}
    give_up_at_s: float | None = None
    while True:
        after = _measured(deployment, services, window_s=before.window_s)
        vigil.look()  # what began in the window's last seconds counts too
        away = deployment.held_by() or unanswered([r for r in after.readings if r.name in declared])
        proceed(deployment)  # held while the provider is away; its policy decides when patience is over
        if not away or vigil.metrics.has_given_up:
            return after
        if give_up_at_s is None:
            give_up_at_s = time.monotonic() + environment.provider_patience_s
            deployment.note("measured_again", f"The window after has a gap: {away}")
        elif time.monotonic() > give_up_at_s:
            _give_up(deployment, away)
            return after


def _give_up(deployment: OpenDeployment, away: str) -> None:
    """Do as the policy says about a comparison that cannot be had."""
    if deployment.opened.environment.on_provider_error == "go_on":
        return
    deployment.record(Decided(title="metrics provider", outcome=Outcome.PROVIDER_ERROR, reasons=(away,)))
    raise StepFailedError(
        f"PROVIDER_ERROR: what cannot be measured after cannot be compared: {away}. Bring the metrics back, "
        "mend the query, or let the environment go on without them (on_provider_error)."
    )


def _note_missing(deployment: OpenDeployment, comparisons: tuple[Comparison, ...]) -> None:
    missing = [one for one in comparisons if one.result == "provider_error"]
    if missing:
        words = f"{', '.join(one.name for one in missing)}: {missing[0].change}"
        deployment.note("not_compared", words)
