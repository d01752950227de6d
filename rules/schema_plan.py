"""Turn pending migrations and their rehearsal into a plan, each with the way back that loses least."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rules.backup import SCHEMA_SUFFIX, backup_name
from rules.change import SchemaChange, Served
from rules.database import Database, DatabaseState
from rules.database_plan import ApplyMigration, TakeSnapshot, VerifyDatabase
from rules.database_undo import RestoreSnapshot, RevertMigration
from rules.errors import InvalidRequestError
from rules.fleet import FleetState
from rules.frozen import Name
from rules.migration import LintFinding, Migration, Migrations, Rehearsal, RehearsedMigration
from rules.plan import Plan, Step
from rules.strategy import InPlace

_SHORTEST_NOTICE_S = 0.5


def plan_schema(
    change: SchemaChange,
    migrations: Migrations,
    rehearsal: Rehearsal | None,
    *,
    database: Database,
    before: DatabaseState,
    fleet: FleetState,
    destroying: frozenset[str],
    deployment: Name,
) -> Plan:
    """Return the steps that bring the schema to the change's revision; none when it is there already.

    Args:
        change: what is asked for.
        migrations: the pending ones.
        rehearsal: what they did on a copy; None: nothing is pending.
        database: where.
        before: its state as just read.
        fleet: the state of the application whose users are watched.
        destroying: revisions of migrations that take something away which no way down brings back.
        deployment: names the snapshot.

    Raises:
        InvalidRequestError: a migration would have no way back; nothing was touched.
    """
    snapshot = f"{database.zfs.dataset}@{backup_name(deployment)}{SCHEMA_SUFFIX}" if database.zfs else None
    steps: list[Step] = []
    if migrations.pending and rehearsal:
        steps = [
            *_snapshot_step(database, snapshot),
            *_migrate(change, migrations, rehearsal, before, snapshot=snapshot, destroying=destroying),
            Step(number=0, title="verify schema, content and queries", action=VerifyDatabase()),
        ]
    numbered = tuple(step.model_copy(update={"number": number}) for number, step in enumerate(steps))
    return Plan(
        change=change,
        strategy=InPlace(),
        before=fleet,
        database=before,
        steps=numbered,
        notes=tuple(_notes(numbered)),
    )


def _snapshot_step(database: Database, snapshot: str | None) -> Iterator[Step]:
    if database.zfs and snapshot:
        action = TakeSnapshot(dataset=database.zfs.dataset, snapshot=snapshot)
        yield Step(number=0, title=f"snapshot {snapshot}", action=action)


def _migrate(
    change: SchemaChange,
    migrations: Migrations,
    rehearsal: Rehearsal,
    before: DatabaseState,
    *,
    snapshot: str | None,
    destroying: frozenset[str],
) -> Iterator[Step]:
    table = migrations.version_table
    held, schema = before.revisions.get(table.table, ()), before.schema_sha256
    # a log keeps a row for each migration, alembic's table only the newest
    is_log = len(migrations.after) == len(held) + len(migrations.pending)
    for migration in migrations.pending:
        rehearsed = rehearsal.of(migration.revision)
        after = tuple(sorted({*held, migration.revision})) if is_log else (migration.revision,)
        if has_way_down(migration, rehearsed, destroys=migration.revision in destroying):
            undo: RevertMigration | RestoreSnapshot = RevertMigration(
                migration=migration, version_table=table, revisions=held, schema_sha256=schema
            )
        elif snapshot:
            undo = RestoreSnapshot(
                migration=migration,
                version_table=table,
                revisions=held,
                schema_sha256=schema,
                dataset=snapshot.partition("@")[0],
                snapshot=snapshot,
                max_loss_s=change.max_loss_s,
            )
        else:
            raise InvalidRequestError(_no_way_back(migration, rehearsed))
        apply = ApplyMigration(
            migration=migration, version_table=table, revisions=after, schema_sha256=rehearsed.schema_sha256
        )
        title = f"migrate to {migration.revision}: {migration.title}"
        yield Step(
            number=0, title=title, action=apply, undo=undo, interrupts=_interruption(migration, rehearsed)
        )
        held, schema = after, rehearsed.schema_sha256


def has_way_down(migration: Migration, rehearsed: RehearsedMigration, *, destroys: bool) -> bool:
    """Return whether a migration's own way down brings everything back.

    On a copy with data that was tried. On a copy of the schema alone, only a migration that takes nothing
    away is believed.
    """
    if migration.down is None or not rehearsed.restores_schema:
        return False
    return not destroys if rehearsed.restores_data is None else rehearsed.restores_data


def _no_way_back(migration: Migration, rehearsed: RehearsedMigration) -> str:
    if migration.down is None:
        why = "it has no way down"
    elif not rehearsed.restores_schema:
        why = f"its way down does not bring the schema back: {rehearsed.words or 'see the rehearsal'}"
    elif rehearsed.restores_data is None:
        why = (
            "it takes something away, and whether its way down brings that back cannot be tried without data"
        )
    else:
        why = f"its way down does not bring the data back: {rehearsed.words or 'see the rehearsal'}"
    return (
        f"Migration {migration.revision} could not be taken back: {why}, and the database has no snapshots. "
        "Nothing was touched. Give it a way down that leads back, or declare the ZFS dataset of its cluster."
    )


def _interruption(migration: Migration, rehearsed: RehearsedMigration) -> str | None:
    """Say what readers notice: in a transaction a lock is held until its end, also by later statements."""
    stopping = [number for number, one in enumerate(rehearsed.statements) if one.stops_readers]
    if not stopping:
        return None
    held = rehearsed.statements[stopping[0] :]
    if not migration.is_transactional:
        held = tuple(one for one in held if one.stops_readers)
    took_s = sum(one.duration_s for one in held)
    if took_s <= _SHORTEST_NOTICE_S:
        return None
    locks = (lock for one in held for lock in one.locks if lock.mode == "AccessExclusiveLock")
    tables = ", ".join(sorted({lock.relation for lock in locks}))
    return f"queries on {tables} wait while it is worked on, {took_s:.1f} s on the copy"


def _notes(steps: tuple[Step, ...]) -> Iterator[str]:
    lossy = [step for step in steps if isinstance(step.undo, RestoreSnapshot)]
    if lossy:
        undo = lossy[0].undo
        limit_s = undo.max_loss_s if isinstance(undo, RestoreSnapshot) else 0.0
        yield (
            f"From step {lossy[0].number + 1} on, the way back stops the server, brings its files back to "
            f"the snapshot, and loses what was written since. Up to {limit_s:g} s of writes are given up "
            "without asking; beyond that a person has to accept the loss, which is measured and shown first."
        )


def refuse_dangers(findings: Iterable[LintFinding], accepted: tuple[str, ...]) -> None:
    """Refuse migrations in which the linter found an error that nobody accepted.

    Raises:
        InvalidRequestError: says which, and how to accept it.
    """
    errors = [f for f in findings if f.level == "error" and f.rule not in accepted]
    if errors:
        words = "; ".join(f"{f.revision}, statement {f.statement + 1}: {f.rule}: {f.message}" for f in errors)
        raise InvalidRequestError(
            f"The linter found dangers in the migrations: {words}. Nothing was touched. Write them another "
            f"way, or accept them by name in `accepted_lint`: {sorted({f.rule for f in errors})}."
        )


def serves_all(serves: Iterable[Served], *, back: bool) -> bool:
    """Return whether every release works with the schema that is gone `back` to, or else forward to."""
    return all("*" in served.patterns(back=back) for served in serves)


def refuse_stranding(serves: Iterable[Served], running: Mapping[str, tuple[str, ...]], *, back: bool) -> None:
    """Refuse a schema that an application cannot work with, as it runs now.

    Args:
        serves: which releases each side of the change serves.
        running: application -> the releases that serve its users now.
        back: whether the schema would go back; otherwise forward.

    Raises:
        InvalidRequestError: says which application, and what to do first.
    """
    for served in serves:
        stranded = served.stranded(running.get(served.application, ()), back=back)
        if not stranded:
            continue
        patterns = served.patterns(back=back)
        raise InvalidRequestError(
            f"{served.application} runs {', '.join(stranded)}, which the {'old' if back else 'new'} schema "
            f"does not serve (it serves {', '.join(patterns) or 'nothing'}): the schema is left as it is. "
            f"{'Take the application back' if back else 'Deploy a release that works with both'} first, "
            "then try again."
        )
