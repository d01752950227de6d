"""Show a rehearsal to people: what each statement locks, rewrites and takes, and which way leads back."""

from __future__ import annotations

from collections.abc import Iterator

from rules.markdown import table
from rules.migration import LockTaken, Rehearsal, RehearsedMigration, RehearsedStatement

_LONGEST_STATEMENT = 80
_COPIES = {
    "zfs_clone": "a clone of the cluster's ZFS dataset",
    "base_backup": "a base backup of the server",
    "schema_copy": "a copy of the schema without rows, where everything is quick",
}
_HEAD = ("Migration", "Statement", "Locks", "Written anew", "Took", "Way down")


def rehearsal_page(rehearsal: Rehearsal) -> str:
    """Return the rehearsal as Markdown: a sentence, and a table with a row for each statement.

    Locks that neither reads nor writes wait for are not there, nor are those that an earlier statement of
    the same transaction holds already.
    """
    intro = f"Rehearsed on {_COPIES[rehearsal.where]}, in {rehearsal.took_s:.1f} s."
    rows = [row for migration in rehearsal.migrations for row in _rows(migration)]
    return f"{intro}\n\n{table(_HEAD, rows)}" if rows else f"{intro} Nothing was pending."


def way_down_in_words(migration: RehearsedMigration) -> str:
    """Say whether a migration's way down led back on the copy."""
    if migration.restores_schema is None:
        return f"not usable: {migration.words or 'there is none'}"
    if not migration.restores_schema or migration.restores_data is False:
        return f"**does not lead back**: {migration.words or 'see the log'}"
    if migration.restores_data is None:
        return f"brings the schema back; rows could not be tried{_appended(migration.words)}"
    return f"leads back, with all rows{_appended(migration.words)}"


def _rows(migration: RehearsedMigration) -> Iterator[tuple[str, ...]]:
    name, way_down = f"`{migration.revision}`", way_down_in_words(migration)
    for statement in migration.statements:
        yield (
            name,
            _code(statement.sql),
            _locks(statement.locks),
            ", ".join(statement.rewrites) or "-",
            _duration(statement),
            way_down,
        )
        name, way_down = "", ""  # once is enough
    if not migration.statements:
        yield name, "-", "-", "-", "-", way_down


def _locks(locks: tuple[LockTaken, ...]) -> str:
    """Return which relations each mode locks, the mode that stops readers in bold."""
    by_mode: dict[str, list[str]] = {}
    for lock in locks:
        by_mode.setdefault(lock.mode.removesuffix("Lock"), []).append(lock.relation)
    words = (
        f"{f'**{mode}**' if mode == 'AccessExclusive' else mode} on {', '.join(relations)}"
        for mode, relations in by_mode.items()
    )
    return "; ".join(words) or "-"


def _duration(statement: RehearsedStatement) -> str:
    seconds = statement.duration_s
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _code(statement: str) -> str:
    line = " ".join(statement.split()).replace("`", "'")
    return f"`{line[: _LONGEST_STATEMENT - 1]}…`" if len(line) > _LONGEST_STATEMENT else f"`{line}`"


def _appended(words: str) -> str:
    return f" ({words})" if words else ""
