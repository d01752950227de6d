"""Hide indexes from the planner, and show them again: writes keep a hidden one up all the time.

A hidden index is one that its catalog row calls not valid while it stays ready: what PostgreSQL itself has
between the end of a concurrent build and its last step. Other sessions see it change with the commit, and a
transaction that is rolled back shows it to nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import sql

from rules.database import QualifiedName
from tasks.postgres import Session, quoted
from tasks.vector_catalog import BUILT

# The row's change makes an index with indcheckxmin unusable for transactions older than the change. That is
# meant for ones older than the index: where none of those is left, the mark has done its duty.
_SET_VALID = """
UPDATE pg_index SET indisvalid = %(valid)s, indcheckxmin = indcheckxmin AND age(xmin) <= (
    SELECT max(greatest(age(backend_xid), age(backend_xmin))) FROM pg_stat_activity
)
WHERE indexrelid IN (
    SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname || '.' || c.relname = ANY (%(indexes)s)
) AND indisready AND indislive AND indisvalid <> %(valid)s
RETURNING indrelid
"""
# A prepared query of another session keeps its plan, with the index that is hidden, until something of the
# table itself changes. This changes nothing and says so to all sessions; nobody's lock is in its way.
_FORGET_PLANS = """
UPDATE pg_attribute SET attname = attname WHERE attrelid = ANY (%s) AND attnum = (
    SELECT min(a.attnum) FROM pg_attribute AS a
    WHERE a.attrelid = pg_attribute.attrelid AND a.attnum > 0 AND NOT a.attisdropped
)
"""


def hide(session: Session, indexes: Iterable[QualifiedName], *, for_all: bool = True) -> None:
    """Hide indexes from all planners as of the commit; hidden or gone already is fine.

    Args:
        session: of a superuser, in a transaction.
        indexes: which; of a partitioned one its parts, the planner never scans the whole.
        for_all: False: the transaction will be rolled back, so that other sessions need not hear of it.
    """
    _set_valid(session, indexes, valid=False, for_all=for_all)


def show(session: Session, indexes: Iterable[QualifiedName], *, for_all: bool = True) -> None:
    """Show whole indexes to all planners again; see `hide`."""
    _set_valid(session, indexes, valid=True, for_all=for_all)


def _set_valid(session: Session, indexes: Iterable[QualifiedName], *, valid: bool, for_all: bool) -> None:
    values = {"indexes": list(indexes), "valid": valid}
    tables = {row[0] for row in session.execute(_SET_VALID, values).fetchall()}
    if tables and for_all:
        session.execute(_FORGET_PLANS, (sorted(tables),))


def mark_built(session: Session, index: QualifiedName) -> None:
    """Mark an index as whole, though it is hidden."""
    session.execute(sql.SQL("COMMENT ON INDEX {} IS {}").format(quoted(index), BUILT))


def unmark(session: Session, index: QualifiedName) -> None:
    """Take that mark away."""
    session.execute(sql.SQL("COMMENT ON INDEX {} IS NULL").format(quoted(index)))
