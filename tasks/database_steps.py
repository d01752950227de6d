"""Each action on a database as a Prefect task, named after what it does to what."""

from __future__ import annotations

import logging
import time
from typing import assert_never

from rules.database import Database
from rules.database_plan import (
    ApplyMigration,
    AttachIndexes,
    BuildIndex,
    DatabaseAction,
    JudgeIndex,
    SwapIndex,
    TakeSnapshot,
    VerifyDatabase,
    VerifyIndex,
)
from rules.index_plan import BuildProgress
from rules.plan import Plan
from tasks import (
    database_checks,
    database_snapshot,
    migrate,
    vector_index,
    vector_index_build,
    vector_index_gate,
)
from tasks.as_task import as_task
from tasks.deployment import OpenDeployment
from tasks.report import publish_build

log = logging.getLogger(__name__)
_SHOWN_EVERY_S = 5.0

take_snapshot = as_task(
    database_snapshot.take_cluster_snapshot, "take snapshot", "snapshot {snapshot}", retries=2
)
apply_migration = as_task(
    migrate.apply_migration, "apply migration", "migrate to {action.migration.revision}"
)
verify_database = as_task(database_checks.verify_database, "verify database", "{database.name}: verify")
build_index = as_task(
    vector_index_build.build_index, "build index", "build {action.partition.index}", retries=1
)
attach_indexes = as_task(vector_index.attach_indexes, "attach indexes", "attach {action.index}", retries=1)
judge_index = as_task(vector_index_gate.judge_index, "judge index", "judge {action.new}")
swap_index = as_task(vector_index.swap_index, "swap index", "{database.name}: swap names")
verify_index = as_task(vector_index_gate.verify_index, "verify index", "verify {action.index}")


def change_database(deployment: OpenDeployment, plan: Plan, action: DatabaseAction) -> None:
    """Do one action of a plan on its database.

    Raises:
        DeployError: it failed; see each task.
    """
    database, name, heed = deployment.opened.changed_database, deployment.name, deployment.prove_wanted
    match action:
        case TakeSnapshot():
            taken = take_snapshot(database, action.snapshot, settings=deployment.settings)
            deployment.note("snapshot", f"{taken.identity}, taken {taken.taken_at:%F %T} UTC")
        case ApplyMigration():
            apply_migration(database, action, deployment=name, heed=heed)
        case VerifyDatabase():
            _verify(deployment, plan, database)
        case BuildIndex():
            _build(deployment, database, action)
        case AttachIndexes():
            attach_indexes(database, action, deployment=name, heed=heed)
        case JudgeIndex():
            measured = judge_index(database, action, deployment=name, heed=heed)
            deployment.note("index_judged", measured.in_words)
        case SwapIndex():
            swap_index(database, action, deployment=name, heed=heed)
        case VerifyIndex():
            measured = verify_index(database, action, deployment=name, heed=heed)
            deployment.note("index_verified", measured.in_words)
        case unknown:
            assert_never(unknown)


def _verify(deployment: OpenDeployment, plan: Plan, database: Database) -> None:
    verify_database(
        database,
        expected=plan.database_after,
        before=plan.database_before,
        queries_before=plan.database_before.queries,
        deployment=deployment.name,
    )


def _build(deployment: OpenDeployment, database: Database, action: BuildIndex) -> None:
    """Build one index, and show how far it is: each percent, at most every few seconds."""
    index, notices = action.partition.index, set[str]()
    shown_at, shown = time.monotonic(), -1

    def progress(now: BuildProgress) -> None:
        nonlocal shown_at, shown
        percent = int(100 * (now.done_ratio or 0.0))
        if percent != shown and time.monotonic() - shown_at > _SHOWN_EVERY_S:
            shown_at, shown = time.monotonic(), percent
            publish_build(deployment, index, percent / 100)
        for notice in set(now.notices) - notices:
            notices.add(notice)
            log.warning("%s: %s", index, notice)

    build_index(database, action, deployment=deployment.name, progress=progress, heed=deployment.prove_wanted)
    publish_build(deployment, index, 1.0)
    for notice in sorted(notices):
        deployment.note("notice", f"{index}: {notice}")
