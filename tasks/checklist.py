"""Read the evidence that the checklist judges. Nothing is touched here; a few messages are sent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

from rules.change import (
    ApplicationRelease,
    IndexChange,
    ModelRelease,
    RayRelease,
    ReleaseArchive,
    SchemaChange,
)
from rules.checklist import ChecklistReport, Item, judge, unknown_items
from rules.content_change import ContentRelease
from rules.content_checklist import content_findings
from rules.database_checklist import database_findings, rehearsed_finding
from rules.entries import Opened
from rules.environment import Environment, Stage
from rules.errors import ApiUnavailableError, BalancerError, InvalidRequestError
from rules.finding import Finding
from rules.fleet import Fleet
from rules.fleet_checklist import artefact_finding, fleet_findings
from rules.history import completed_in_staging
from rules.items import GUIDE, RELEASE
from rules.message import Event, message_of
from rules.plan import Plan
from rules.release import Release
from rules.request import Papers
from rules.strategy_checklist import STRATEGY_ITEMS, strategy_findings
from rules.system_change import SystemRelease
from tasks import balancer
from tasks.backup import plan_findings
from tasks.evidence import read_evidence
from tasks.grafana import GrafanaError, missing_dashboards
from tasks.headroom import headroom_findings
from tasks.history import records
from tasks.notify import notified_finding, notify
from tasks.prefect_api import PrefectApi
from tasks.prometheus import ProviderError, loaded_alert_rules
from tasks.services import Services
from tasks.settings import Settings

_TRAFFIC_WINDOW_S = 1.0


def items_of(plan: Plan) -> tuple[Item, ...]:
    """Return every question that is asked before this plan is walked."""
    strategy = tuple(item for item in STRATEGY_ITEMS[plan.strategy.strategy] if item.phase == "before")
    return (*RELEASE, *GUIDE, *strategy)


def refuse_unknown_rows(plan: Plan, papers: Papers) -> None:
    """Refuse words about rows that do not exist.

    Raises:
        InvalidRequestError: an attestation or waiver names no row; nothing was touched.
    """
    items = items_of(plan)
    strangers = unknown_items(items, papers.attestations, papers.waivers)
    if strangers:
        raise InvalidRequestError(
            f"No row of the checklist is called {', '.join(strangers)}, so that word stands for nothing. "
            f"The rows are: {', '.join(item.id for item in items)}. Nothing was touched."
        )


def run_checklist(
    plan: Plan,
    opened: Opened,
    services: Services,
    *,
    papers: Papers,
    api: PrefectApi | None,
    settings: Settings,
    tell: bool = True,
) -> ChecklistReport:
    """Return every row of the checklist for this plan.

    Args:
        plan: what is to be done, from the state read just now.
        opened: what it is done to, and in which environment.
        services: whom to ask.
        papers: evidence, attestations and waivers.
        api: for the records of other hosts; None: this host's alone.
        settings: of this host.
        tell: whether the team is told; a dry run tells nobody.
    """
    fleet, environment = opened.fleet, opened.environment
    limits = environment.limits
    findings = {
        **_system_findings(plan, fleet),
        **read_evidence(
            papers.evidence,
            release=plan.change.release,
            environment=environment,
            forgejo=services.forgejo,
        ),
        **plan_findings(services.backups, settings=settings, limits=limits),
        **headroom_findings(fleet, limits=limits, settings=settings, database=opened.database),
        **strategy_findings(
            plan,
            fleet,
            requests_per_s=_requests_per_s(fleet, window_s=min(_TRAFFIC_WINDOW_S, settings.baseline_s)),
        ),
        **_rehearsal_finding(plan),
        "dashboards-ready": _dashboards(environment, services),
        "team-notified": _told(plan, environment, services, tell=tell),
        "staging-record": _staging_record(plan, environment, api, settings),
    }
    return judge(
        items_of(plan),
        findings,
        stage=environment.stage,
        attestations=papers.attestations,
        waivers=papers.waivers,
    )


def _system_findings(plan: Plan, fleet: Fleet) -> Mapping[str, Finding]:
    match plan.change:
        case ApplicationRelease() | RayRelease():
            return {**fleet_findings(plan.change, fleet, plan.before), **_release_finding(plan.change)}
        case ModelRelease():
            # it was read, compared with its checksum and validated for the plan
            present = Finding.passed(f"{plan.change.artefact.path} is valid and what was asked for.")
            return {**fleet_findings(plan.change, fleet, plan.before), "release-present": present}
        case SystemRelease():
            # it was built, and asked for its version, for the plan
            built = Finding.passed(f"every host's system is built and says that it is {plan.change.release}.")
            return {**fleet_findings(plan.change, fleet, plan.before), "release-present": built}
        case SchemaChange() | IndexChange():
            return database_findings(plan, fleet)
        case ContentRelease():
            return content_findings(plan, fleet)
        case Release():
            return {}  # each component is asked for itself
        case unknown:
            assert_never(unknown)


def _rehearsal_finding(plan: Plan) -> Mapping[str, Finding]:
    """What was tried on a copy says more of migrations than any file."""
    return {"migrations-prepared": rehearsed_finding(plan)} if isinstance(plan.change, SchemaChange) else {}


def _release_finding(change: ApplicationRelease | RayRelease) -> Mapping[str, Finding]:
    if not isinstance(change.artefact, ReleaseArchive):
        where = "A Nix store path is proven when it is staged: its name is its content."
        return {"release-present": Finding.not_applicable(where)}
    found = _sha256(Path(change.artefact.path))
    wanted = change.artefact.sha256
    return {"release-present": artefact_finding(found=found, wanted=wanted, where=change.artefact.path)}


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _requests_per_s(fleet: Fleet, *, window_s: float) -> float | None:
    """Return what users ask for now, counted for `window_s`; None where nobody counts."""
    if fleet.route is None:
        return None
    try:
        live = balancer.read_traffic(fleet.route).live
        began, earlier = time.monotonic(), balancer.counts(fleet.route, live)
        time.sleep(window_s)
        later = balancer.counts(fleet.route, live)
    except BalancerError:
        return None
    if earlier is None or later is None:
        return None
    return later.since(earlier).requests / (time.monotonic() - began)


def _dashboards(environment: Environment, services: Services) -> Finding:
    """Return whether Prometheus has the alert rules and Grafana the dashboards that are asked for."""
    rules, uids = environment.limits.required_alert_rules, environment.limits.required_dashboards
    if services.prometheus is None and services.grafana is None:
        return Finding.unknown("the environment names neither Prometheus nor Grafana.")
    try:
        loaded = loaded_alert_rules(services.prometheus) if services.prometheus else frozenset[str]()
        absent = missing_dashboards(services.grafana, uids) if services.grafana else uids
    except (ProviderError, GrafanaError) as error:
        return Finding.unknown(f"could not be asked: {error}")
    lacking = [f"alert rule {name}" for name in rules if name not in loaded]
    lacking += [f"dashboard {uid}" for uid in absent]
    there = f"{len(rules)} alert rules and {len(uids)} dashboards are asked for"
    return Finding.judged(f"{there}; missing: {', '.join(lacking) or 'none'}.", ok=not lacking)


def _told(plan: Plan, environment: Environment, services: Services, *, tell: bool) -> Finding:
    if services.notifications is None:
        return Finding.unknown("the environment names nobody to tell.")
    if not tell:
        return Finding.unknown("a dry run tells nobody; the deployment will.")
    message = message_of(
        Event.PLANNED,
        None,
        what=f"{plan.change.target}, release {plan.change.release}, {plan.strategy.strategy}",
        environment=environment.name,
    )
    return notified_finding(notify(services.notifications, message))


def _staging_record(
    plan: Plan, environment: Environment, api: PrefectApi | None, settings: Settings
) -> Finding:
    if not environment.stage.is_at_least(Stage.PRODUCTION):
        return Finding.not_applicable(f"{environment.stage} needs no record from before.")
    try:
        known = records(api, settings)
    except ApiUnavailableError as error:
        return Finding.unknown(f"the records of other hosts cannot be read: {error}.")
    bake_s = environment.limits.staging_bake_s
    found = completed_in_staging(known, plan.change.id, now=datetime.now(UTC), bake_s=bake_s)
    if found is None:
        asked = f"release {plan.change.release} with this content"
        return Finding.failed(f"no staging deployment of {asked} was good for {bake_s:g} s.")
    return Finding.passed(f"{found.deployment} is {found.state} in {found.environment}.")
