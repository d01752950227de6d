"""Read the system that a change was about, and compare it with what its plan recorded or promised."""

from __future__ import annotations

from typing import assert_never

from rules.change import ApplicationRelease, IndexChange, ModelRelease, RayRelease, SchemaChange
from rules.content_actions import not_taken_back
from rules.content_change import ContentRelease
from rules.content_plan import concerned
from rules.database import Database, DatabaseState
from rules.database_plan import AttachIndexes, BuildIndex, DropOldIndex
from rules.entries import Opened
from rules.errors import DeployError
from rules.index_names import without_leftovers
from rules.ipfs import ContentState
from rules.journal import JournalView
from rules.plan import Plan
from rules.release import Release
from rules.system_change import SystemRelease
from tasks.content_references import read_references
from tasks.content_state import observe_content
from tasks.database import observe_database
from tasks.database_checks import corruption
from tasks.fleet import observe_fleet
from tasks.postgres import connection
from tasks.reference_rows import in_words


def differences_from_before(view: JournalView, plan: Plan) -> tuple[str, ...]:
    """Say where the system is not as it was before the change; empty: all is as before.

    Raises:
        DeployError: it cannot be read.
    """
    match plan.change:
        case ApplicationRelease() | ModelRelease() | RayRelease() | SystemRelease():
            fleet = observe_fleet(view.opened.fleet)
            return fleet.differences(plan.before.with_health_of(fleet, except_for=view.touched))
        case SchemaChange() | IndexChange():
            now = _database_now(view.opened, plan, like=plan.database_before)
            database = view.opened.changed_database
            faults = corruption(database) if database.check_corruption else ()
            return now.model_copy(update={"faults": faults}).differences(plan.database_before)
        case ContentRelease():
            return not_taken_back(_content_now(view.opened, plan), plan.content_before, plan.content_after)
        case Release():
            return ()  # its components' own deployments have proven it: see tasks.release
        case unknown:
            assert_never(unknown)


def differences_from_promised(opened: Opened, plan: Plan, *, touched: set[str]) -> tuple[str, ...]:
    """Say where the system is not as the plan promised it; empty: it is.

    Args:
        opened: of the deployment.
        plan: its plan.
        touched: instances whose health the change answers for; others may have fallen ill by themselves.

    Raises:
        DeployError: it cannot be read.
    """
    match plan.change:
        case ApplicationRelease() | ModelRelease() | RayRelease() | SystemRelease():
            now = observe_fleet(opened.fleet)
            return now.differences(plan.after.with_health_of(now, except_for=touched))
        case SchemaChange() | IndexChange():
            # content is the users' from the promotion on: it is not even read
            promised = plan.database_after.model_copy(update={"tables": {}})
            return _database_now(opened, plan, like=promised).differences(promised)
        case ContentRelease():
            return _rows_moved(opened, plan)
        case Release():
            return ()  # as above
        case unknown:
            assert_never(unknown)


def database_answers(database: Database, *, deployment: str) -> bool:
    """Return whether a database takes a connection and a question now."""
    try:
        with connection(database, deployment=deployment, read_only=True) as session:
            session.execute("SELECT 1")
    except DeployError:
        return False
    return True


def _rows_moved(opened: Opened, plan: Plan) -> tuple[str, ...]:
    """Say what rows refer to that all have moved on; empty: one still refers to what the change has set.

    Rows are the users' from then on, and each that they have changed is left by the way back. Pins are not
    looked at: they are proven when rows are set, and going back is what helps where they are lost.
    """
    before, after = plan.content_before.references, plan.content_after.references
    new = {key: cid for key, cid in after.items() if cid != before[key]}
    name, references = opened.deployment, opened.changed_content.references
    now = read_references(opened.changed_database, references, new, deployment=name)
    if any(now.get(key) == cid for key, cid in new.items()):
        return ()
    return tuple(
        f"row {key} {in_words([now[key]] if key in now else [])}, not {cid}"
        for key, cid in sorted(new.items())
    )


def _content_now(opened: Opened, plan: Plan) -> ContentState:
    """Return how content and references are, as far as the plan is concerned with them."""
    return observe_content(
        opened.changed_content,
        opened.changed_database,
        keys=tuple(sorted(plan.content_before.references)),
        cids=concerned(plan),
        deployment=opened.deployment,
    )


def _database_now(opened: Opened, plan: Plan, *, like: DatabaseState) -> DatabaseState:
    table = plan.change.table if isinstance(plan.change, IndexChange) else None
    now = observe_database(opened.changed_database, deployment=opened.deployment, like=like, indexes_of=table)
    return _of_plan(now, plan)


def _of_plan(now: DatabaseState, plan: Plan) -> DatabaseState:
    """Leave out what an index change has nothing to do with.

    That is partitions that users have made meanwhile, and what other changes have left or keep: it may be
    dropped at any time.
    """
    if not isinstance(plan.change, IndexChange):
        return now
    tables, own = {plan.change.table}, {old.index for old in plan.finish if isinstance(old, DropOldIndex)}
    for action in (step.action for step in plan.steps):
        match action:
            case BuildIndex():
                tables.add(action.partition.table)
                own.add(action.partition.index)
            case AttachIndexes():
                own.add(action.index)
            case _:
                pass
    indexes = {name: facts for name, facts in now.indexes.items() if facts.table in tables}
    return without_leftovers(now.model_copy(update={"indexes": indexes, "schema_sha256": None}), own=own)
