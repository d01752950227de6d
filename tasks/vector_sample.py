"""Query vectors for a gate: rows of the table itself, drawn evenly and the same each time."""

from __future__ import annotations

from psycopg import sql

from rules.database import QualifiedName
from rules.vector_index import IndexParts
from tasks.postgres import Session, quoted
from tasks.vector_catalog import leaf_tables

_PAGES = """
SELECT pg_relation_size(c.oid) / current_setting('block_size')::int
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %s
"""


def query_vectors(
    session: Session, table: QualifiedName, parts: IndexParts, *, count: int
) -> tuple[str, ...]:
    """Return up to `count` vectors of a table, as text, from rows that lie evenly over all its pages.

    Each is read by its place, so that a large table costs no more than a small one. Vectors without length
    are left out where a distance is an angle: they have none.
    """
    leaves = [(leaf, _pages(session, leaf)) for leaf in leaf_tables(session, table)]
    total = sum(pages for _, pages in leaves)
    found: dict[tuple[str, str], str] = {}
    for number in range(count if total else 0):
        page = (2 * number + 1) * total // (2 * count)
        for leaf, pages in leaves:
            if page < pages:
                found.update(_row_from(session, leaf, parts, page=page, number=number))
                break
            page -= pages
    return tuple(found.values())


def _pages(session: Session, leaf: QualifiedName) -> int:
    row = session.execute(_PAGES, (leaf,)).fetchone()
    return int(row[0]) if row else 0


def _row_from(
    session: Session, leaf: QualifiedName, parts: IndexParts, *, page: int, number: int
) -> dict[tuple[str, str], str]:
    """Return one row at that page or the next that has any: by table and place, its vector.

    Of a page with many rows not always the first is taken.
    """
    column = sql.Identifier(parts.column)
    # by its distance to itself, which is no number for a vector without length
    has_length = (
        sql.SQL("AND ({0} <=> {0}) < 0.5").format(column) if parts.distance == "cosine" else sql.SQL("")
    )
    statement = sql.SQL(
        "SELECT ctid::text, {column}::text FROM {leaf} "
        "WHERE ctid >= %(start)s::tid AND {column} IS NOT NULL {has_length} LIMIT 1 OFFSET %(skip)s"
    ).format(column=column, leaf=quoted(leaf), has_length=has_length)
    for start, skip in ((page, number % 7), (page, 0), (0, number), (0, 0)):
        values = {"start": f"({start},0)", "skip": skip}
        if row := session.execute(statement, values, prepare=False).fetchone():
            return {(leaf, row[0]): row[1]}
    return {}
