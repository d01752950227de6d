"""Effects on whole vector indexes: attach them to a partitioned one, swap them in by name, swap them back.

Each can be repeated, and is right also when it never happened or was cut short.
"""

from __future__ import annotations

from collections.abc import Callable

from psycopg import sql

from rules.database import Database, QualifiedName
from rules.database_plan import AttachIndexes, SwapIndex
from rules.database_undo import RestoreIndexNames
from rules.errors import StepFailedError, WorldMovedError
from rules.vector_index import IndexParts, Rename
from tasks.index_visibility import hide, mark_built, show, unmark
from tasks.postgres import Session, connection, end_sessions, in_short_tries, quoted
from tasks.vector_catalog import (
    IndexState,
    at_home,
    attached,
    index_state,
    leaf_tables,
    read_catalog,
)
from tasks.vector_index_removal import drop_old_index, remove_index

__all__ = [
    "attach_indexes",
    "drop_old_index",
    "read_catalog",
    "remove_index",
    "restore_index_names",
    "swap_index",
]


def _nothing() -> None:
    """Heed nothing."""


def create_statement(
    index: QualifiedName, table: QualifiedName, parts: IndexParts, *, how: str
) -> sql.Composed:
    """Return the statement that makes an index, for a session that is `at_home`.

    Args:
        index: its name; it comes into its table's schema.
        table: what it is on.
        parts: what it is made of.
        how: `CONCURRENTLY`, or `ONLY` for a partitioned index without its parts.
    """
    key: sql.Composable = sql.Identifier(parts.column)
    if parts.as_halfvec:  # of a column that is one already, PostgreSQL makes an index on the column itself
        key = sql.SQL("({}::halfvec({}))").format(key, sql.Literal(parts.dimensions))
    options = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in parts.options.items()
    )
    return sql.SQL(
        "CREATE INDEX {concurrently} {index} ON {only} {table} USING {method} ({key} {ops}) WITH ({options})"
    ).format(
        concurrently=sql.SQL("CONCURRENTLY" if how == "CONCURRENTLY" else ""),
        index=sql.Identifier(index.split(".")[1]),
        only=sql.SQL("ONLY" if how == "ONLY" else ""),
        table=quoted(table),
        method=sql.Identifier(parts.how.method),
        key=key,
        ops=sql.Identifier(parts.operator_class),
        options=options,
    )


# --- attach ----------------------------------------------------------------------------------------


def attach_indexes(
    database: Database, action: AttachIndexes, *, deployment: str, heed: Callable[[], None] = _nothing
) -> None:
    """Make the partitioned index and attach the leaves' new indexes, each in short tries of its own.

    It serves nobody yet: its parts are hidden, so that PostgreSQL does not call it valid.

    Args:
        database: which.
        action: what is attached to what.
        deployment: for whom.
        heed: asked first of all, and before each further effect; may raise to give up.

    Raises:
        WorldMovedError: the table's partitions are not those of the plan any more.
        StepFailedError: a lock was not to be had, or a leaf's index is not whole.
        DatabaseError: see `connection`.
    """
    heed()  # one that was fenced off must not begin again when it is retried
    with connection(database, deployment=deployment, autocommit=True) as session:
        at_home(session)
        _refuse_other_partitions(session, action)
        parent = index_state(session, action.index)
        done = {state.found.index for state in attached(session, action.index)}
    if parent is None:
        _make_parent(database, action, deployment=deployment, heed=heed)
    elif parent.found.definition != action.definition:
        raise WorldMovedError(f"{action.index} is {parent.found.definition}, not {action.definition}")
    for partition in action.partitions:
        if partition.index not in done:
            heed()
            _attach(database, action, partition.index, deployment=deployment, heed=heed)
    with connection(database, deployment=deployment, autocommit=True) as session:
        _refuse_incomplete(session, action.table, action.index)


def _make_parent(
    database: Database, action: AttachIndexes, *, deployment: str, heed: Callable[[], None]
) -> None:
    def work(session: Session) -> None:
        at_home(session)
        session.execute(create_statement(action.index, action.table, action.parts, how="ONLY"))

    in_short_tries(
        database, work, deployment=deployment, what=f"making the partitioned index {action.index}", heed=heed
    )


def _attach(
    database: Database,
    action: AttachIndexes,
    leaf: QualifiedName,
    *,
    deployment: str,
    heed: Callable[[], None],
) -> None:
    statement = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}").format(quoted(action.index), quoted(leaf))

    def work(session: Session) -> None:
        session.execute(statement)

    in_short_tries(
        database, work, deployment=deployment, what=f"attaching {leaf} to {action.index}", heed=heed
    )


def _refuse_other_partitions(session: Session, action: AttachIndexes) -> None:
    planned = {partition.table for partition in action.partitions}
    now = set(leaf_tables(session, action.table))
    if planned != now:
        came, went = (", ".join(sorted(some)) or "none" for some in (now - planned, planned - now))
        raise WorldMovedError(
            f"the partitions of {action.table} are not those of the plan: came: {came}; went: {went}. "
            "The new indexes are taken back. Deploy again."
        )
    for partition in action.partitions:
        state = index_state(session, partition.index)
        if state is None or not state.is_whole:
            raise StepFailedError(
                f"{partition.index} is {'gone' if state is None else 'not whole'}: it cannot be attached. "
                "What was built is taken back."
            )


def _refuse_incomplete(session: Session, table: QualifiedName, index: QualifiedName) -> None:
    """Refuse a new index that does not have all rows of its table."""
    parts = _parts_of(session, index)
    have = {state.found.table for state in parts if state.is_whole}
    missing = sorted(set(leaf_tables(session, table)) - have)
    if missing or not have:
        raise WorldMovedError(
            f"{index} is not whole on {', '.join(missing) or table}: a partition may have come meanwhile. "
            "The new index is taken back. Deploy again."
        )


def _parts_of(session: Session, index: QualifiedName) -> tuple[IndexState, ...]:
    """Return the parts of an index that hold rows: itself, without partitions."""
    if parts := attached(session, index):
        return parts
    state = index_state(session, index)
    return (state,) if state else ()


# --- swap ------------------------------------------------------------------------------------------


def swap_index(
    database: Database, action: SwapIndex, *, deployment: str, heed: Callable[[], None] = _nothing
) -> None:
    """Give the new index the stable name, show it to the planner and hide the old one: in one transaction.

    Readers do not wait for it: its locks are against other changes of these indexes only.

    Raises:
        WorldMovedError: the new index is gone, or not whole; names and planner are as before.
        StepFailedError: a lock was not to be had.
        DatabaseError: see `connection`.
    """
    last = action.renames[-1]

    def work(session: Session) -> None:
        at_home(session)
        new, stable = _qualified(last.schema_name, last.old), _qualified(last.schema_name, last.new)
        state = index_state(session, new)
        if state is None:
            if index_state(session, stable) is None:
                raise WorldMovedError(f"neither {new} nor {stable} is there: nothing was swapped")
            return
        _refuse_incomplete(session, state.found.table, new)
        _rename(session, action.renames)
        _show_new(session, stable)
        hide(session, action.hidden)

    in_short_tries(database, work, deployment=deployment, what=f"the swap of {last.new}", heed=heed)


def restore_index_names(database: Database, step: RestoreIndexNames, *, deployment: str) -> None:
    """Swap the names back, hide the new index and show the old one: in one transaction.

    Nothing is done when the swap never happened, or was taken back already.

    Raises:
        StepFailedError: a lock was not to be had; names and planner are as after the swap.
        DatabaseError: see `connection`.
    """
    first, last = step.renames[0], step.renames[-1]
    end_sessions(database, deployment=deployment)

    def work(session: Session) -> None:
        at_home(session)
        if index_state(session, _qualified(last.schema_name, last.old)) is None:
            return
        if index_state(session, _qualified(first.schema_name, first.new)) is not None:
            return
        _rename(session, step.renames)
        _hide_new(session, _qualified(first.schema_name, first.new))
        show(session, step.shown)

    in_short_tries(database, work, deployment=deployment, what=f"the way back of {first.old}")


def _rename(session: Session, renames: tuple[Rename, ...]) -> None:
    for rename in renames:
        old = quoted(_qualified(rename.schema_name, rename.old))
        session.execute(sql.SQL("ALTER INDEX {} RENAME TO {}").format(old, sql.Identifier(rename.new)))


def _show_new(session: Session, index: QualifiedName) -> None:
    parts = _parts_of(session, index)
    show(session, {index, *(state.found.index for state in parts)})
    for state in parts:
        if state.is_built:
            unmark(session, state.found.index)


def _hide_new(session: Session, index: QualifiedName) -> None:
    for state in _parts_of(session, index):
        if state.found.is_valid:
            hide(session, [state.found.index])
            mark_built(session, state.found.index)


def _qualified(schema: str, name: str) -> QualifiedName:
    return f"{schema}.{name}"
