"""Make the plan of a change from the system as it is now. Nothing live is touched."""

from __future__ import annotations

from typing import assert_never

from rules.change import ApplicationRelease, Change, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.content_change import ContentRelease
from rules.content_plan import plan_content
from rules.continued import AGAIN
from rules.database import Database, DatabaseState
from rules.database_plan import VerifyDatabase
from rules.entries import Opened
from rules.errors import InvalidRequestError, WorldMovedError
from rules.fleet import FleetState
from rules.index_plan import plan_index, without_leftovers
from rules.model_plan import plan_model
from rules.nixos_plan import plan_nixos
from rules.plan import Plan, Step
from rules.ray_plan import plan_ray
from rules.rehearsal_page import rehearsal_page
from rules.release import Release
from rules.rollout import plan_rollout
from rules.schema_plan import plan_schema, refuse_dangers
from rules.strategy import InPlace, Strategy
from rules.system_change import SystemRelease
from tasks.content_survey import survey_content
from tasks.database import observe_database
from tasks.database_checks import corruption, measured_queries
from tasks.fleet import observe_fleet
from tasks.history import records
from tasks.migration_lint import lint
from tasks.migrations import read_migrations
from tasks.model_survey import survey_model
from tasks.nixos_survey import survey_nixos
from tasks.prefect_api import PrefectApi
from tasks.ray_survey import survey_ray
from tasks.rehearsal import rehearse
from tasks.settings import Settings
from tasks.sql_statements import destroys_data
from tasks.stranding import refuse_to_strand
from tasks.vector_index import read_catalog

#: Deployments that may still be taken back, and their application with them.
_BAKING = frozenset({"running", "rolling_back", "promoted", "rollback_failed"})


def plan_now(change: Change, strategy: Strategy, opened: Opened, settings: Settings) -> Plan:
    """Return the plan for the system as it is now; a schema change is rehearsed on a copy for it.

    Raises:
        InvalidRequestError: the request makes no sense for this system.
        DeployError: the system cannot be read.
    """
    before = observe_fleet(opened.fleet)
    match change:
        case ApplicationRelease():
            return plan_rollout(change, strategy, opened.fleet, before)
        case ModelRelease():
            situation = survey_model(change, strategy, opened.fleet, before)
            return plan_model(change, strategy, opened.fleet, before, situation=situation)
        case RayRelease():
            cluster = survey_ray(change, opened.fleet, before)
            return plan_ray(change, strategy, opened.fleet, before, situation=cluster)
        case SystemRelease():
            hosts = survey_nixos(change, strategy, opened.fleet, before, deployment=opened.deployment)
            return plan_nixos(change, strategy, opened.fleet, before, situation=hosts)
        case ContentRelease():
            _refuse_strategy(change, strategy)
            content, database = opened.changed_content, opened.changed_database
            found = survey_content(change, content, database, deployment=opened.deployment)
            return plan_content(change, content, before, found)
        case SchemaChange():
            _refuse_strategy(change, strategy)
            return _plan_schema(change, opened.changed_database, opened, before, settings=settings)
        case IndexChange():
            _refuse_strategy(change, strategy)
            return _plan_index(change, opened.changed_database, opened, before)
        case unknown:
            assert_never(unknown)


def renewed(plan: Plan, opened: Opened, settings: Settings) -> Plan:
    """Return the plan with the system's state as it is now: what a way back will be compared with.

    Between the plan and its first step lie a rehearsal, a person's approval and backups.

    Raises:
        WorldMovedError: the system is not what the plan was made for; nothing was changed.
        InvalidRequestError: it has become one that the change may not go with.
    """
    if not plan.steps:
        return plan
    match plan.change:
        case RayRelease():
            return _renewed_nodes(plan, plan.change, opened)
        case SystemRelease() | ContentRelease() as change:
            return _the_same(plan, change, opened, settings)
        case ApplicationRelease() | ModelRelease() | Release():
            return plan
        case SchemaChange() | IndexChange():
            return _renewed_database(plan, plan.change, opened, settings)
        case unknown:
            assert_never(unknown)


def _renewed_database(
    plan: Plan, change: SchemaChange | IndexChange, opened: Opened, settings: Settings
) -> Plan:
    database, recorded = opened.changed_database, plan.database_before
    table = change.table if isinstance(change, IndexChange) else None
    now = without_leftovers(observe_database(database, deployment=opened.deployment, indexes_of=table))
    moved = now.model_copy(update={"tables": {}}).differences(recorded.model_copy(update={"tables": {}}))
    if moved:
        raise WorldMovedError(
            f"Since the plan was made the database has changed: {'; '.join(moved)}. Nothing was changed by "
            "this deployment; deploy again."
        )
    if isinstance(change, SchemaChange):
        _refuse_applications(change, opened, settings)
    return plan.model_copy(update={"database": _with_queries(now, database, opened)})


def _the_same(plan: Plan, change: Change, opened: Opened, settings: Settings) -> Plan:
    """Return the plan as it would be made now, if it leads from the same state to the same."""
    now = plan_now(change, plan.strategy, opened, settings)
    if _ends(now) != _ends(plan):
        raise WorldMovedError(
            f"Since the plan was made {plan.change.target} has changed: {_moved(plan, now)}. Nothing was "
            "changed by this deployment; deploy again."
        )
    return now


def _ends(plan: Plan) -> tuple[object, ...]:
    """Return what a plan starts from and promises; of content, not how its users are doing."""
    titles = tuple(step.title for step in plan.steps)
    if plan.content is not None:
        return titles, plan.content, plan.content_after
    return titles, plan.before, plan.after


def _moved(plan: Plan, now: Plan) -> str:
    if plan.content and now.content:
        words = now.content.differences(plan.content)
    else:
        words = now.before.differences(plan.before)
    return "; ".join(words) or "other steps would be needed now"


def _renewed_nodes(plan: Plan, change: RayRelease, opened: Opened) -> Plan:
    """Return the plan for the nodes, actors and tasks of now; an actor may have begun that would be lost."""
    before = observe_fleet(opened.fleet)
    if moved := before.differences(plan.before):
        raise WorldMovedError(
            f"Since the plan was made the cluster has changed: {'; '.join(moved)}. Nothing was changed "
            "by this deployment; deploy again."
        )
    situation = survey_ray(change, opened.fleet, before)
    return plan_ray(change, plan.strategy, opened.fleet, before, situation=situation)


def _with_queries(state: DatabaseState, database: Database, opened: Opened) -> DatabaseState:
    return state.model_copy(update={"queries": measured_queries(database, deployment=opened.deployment)})


def _refuse_applications(change: SchemaChange, opened: Opened, settings: Settings) -> None:
    refuse_to_strand(change, opened, back=False)
    if change.phase == "contract":
        _refuse_while_baking(change, settings)


def _refuse_corruption(database: Database) -> None:
    """Refuse to build on what is broken already: a way back could not be told from it."""
    faults = corruption(database) if database.check_corruption else ()
    if faults:
        raise InvalidRequestError(
            f"The database is corrupt already: {'; '.join(faults)}. Nothing was touched. Repair it first."
        )


def _plan_schema(
    change: SchemaChange, database: Database, opened: Opened, fleet: FleetState, *, settings: Settings
) -> Plan:
    _refuse_applications(change, opened, settings)
    _refuse_corruption(database)
    before = observe_database(database, deployment=opened.deployment)
    before = _with_queries(before, database, opened)
    migrations = read_migrations(change.migrations, target=change.release, applied=before.revisions)
    findings = lint(migrations)
    refuse_dangers(findings, change.accepted_lint)
    rehearsal = None
    if migrations.pending:
        rehearsal = rehearse(database, migrations, deployment=opened.deployment, settings=settings)
    destroying = frozenset(
        m.revision for m in migrations.pending if any(destroys_data(statement) for statement in m.up)
    )
    plan = plan_schema(
        change,
        migrations,
        rehearsal,
        database=database,
        before=before,
        fleet=fleet,
        destroying=destroying,
        deployment=opened.deployment,
    )
    warned = tuple(f"{f.revision}, statement {f.statement + 1}: {f.rule}: {f.message}" for f in findings)
    shown = (rehearsal_page(rehearsal),) if rehearsal else ()
    return plan.model_copy(update={"notes": (*plan.notes, *warned, *shown)})


def _plan_index(change: IndexChange, database: Database, opened: Opened, fleet: FleetState) -> Plan:
    name = opened.deployment
    # what an earlier try has built is taken over, and is not there to come back to
    before = without_leftovers(observe_database(database, deployment=name, indexes_of=change.table))
    _refuse_corruption(database)
    before = _with_queries(before, database, opened)
    planned = plan_index(change, read_catalog(database, change, deployment=name), before, seed=name)
    return Plan(
        change=change,
        strategy=InPlace(),
        before=fleet,
        database=before,
        steps=_verified(planned.steps),
        finish=planned.finish,
        notes=planned.notes,
    )


def _verified(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Return the steps with a last one that looks at content and declared queries, where there are any."""
    if not steps:
        return steps
    return (*steps, Step(number=len(steps), title="verify content and queries", action=VerifyDatabase()))


def _refuse_while_baking(change: SchemaChange, settings: Settings) -> None:
    """Refuse to take away what an application needs that may still return."""
    targets = {f"application-{served.application}" for served in change.serves}
    with PrefectApi(settings) as api:
        known = [record for record in records(api, settings) if record.target in targets]
    names = {record.deployment for record in known}
    # a failed rollback stays one for ever: what became of it is told by the deployment that repeats it
    baking = [r for r in known if r.state in _BAKING and f"{r.deployment}{AGAIN}" not in names]
    if baking:
        words = ", ".join(f"{record.deployment} is {record.state}" for record in baking)
        raise InvalidRequestError(
            f"A contract step has to wait for the application's bake: {words}, and may still be taken back "
            "to a release that needs what this step takes away. Nothing was touched. Deploy it once that is "
            "completed."
        )


def _refuse_strategy(change: SchemaChange | IndexChange | ContentRelease, strategy: Strategy) -> None:
    if not isinstance(strategy, InPlace) or strategy.instance:
        raise InvalidRequestError(
            f"A {change.component} has one database and no instances to shift traffic between: use the "
            "strategy in_place without an instance. Nothing was touched."
        )
