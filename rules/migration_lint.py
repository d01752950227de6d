"""What is dangerous in a migration: which of squawk's rules block, and rules of our own for what it misses.

An error blocks a deployment until the rule is named in `accepted_lint`: it stops readers or writers for as
long as a table is large, breaks the application that runs, or destroys what cannot be brought back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Level = Literal["error", "warning"]

_ERRORS = {
    "syntax-error": "it would fail; and behind it nothing else was looked at",
    "adding-field-with-default": "a default computed for each row rewrites the table while nobody reads",
    "adding-foreign-key-constraint": "both tables take no writes while all rows are compared",
    "adding-not-nullable-field": "all rows are read while nobody reads or writes",
    "adding-required-field": "it fails where there are rows, or the old application can write none",
    "adding-serial-primary-key-field": "it builds an index while nobody reads or writes",
    "ban-alter-domain-with-add-constraint": "every table with the domain is read while it takes no writes",
    "ban-concurrent-index-creation-in-transaction": "it would fail",
    "ban-drop-column": "the column's content is gone, and the old application asks for it",
    "ban-drop-database": "all of it is gone",
    "ban-drop-domain": "the old application asks for it",
    "ban-drop-extension": "its types and indexes are gone",
    "ban-drop-function": "the old application asks for it",
    "ban-drop-schema": "all in it is gone",
    "ban-drop-sequence": "where it stood is gone",
    "ban-drop-table": "its rows are gone, and the old application asks for them",
    "ban-drop-type": "the old application asks for it",
    "ban-drop-view": "the old application asks for it",
    "ban-set-schema": "the old application does not find it any more",
    "ban-truncate-cascade": "rows of tables that are not named here are gone",
    "ban-uncommitted-transaction": "it controls transactions, which is the executor's business",
    "changing-column-type": "the table is rewritten while nobody reads or writes",
    "constraint-missing-not-valid": "all rows are read while nobody writes, and for some kinds nobody reads",
    "disallowed-unique-constraint": "it builds an index while nobody reads or writes",
    "identifier-too-long": "the server cuts the name and says nothing: the way down misses it",
    "renaming-column": "the old application asks for the old name",
    "renaming-table": "the old application asks for the old name",
    "require-concurrent-index-creation": "nobody writes while the index is built",
    "require-concurrent-reindex": "nobody writes, and queries by the index wait, while it is built",
    "transaction-nesting": "it controls transactions, which is the executor's business",
}
_WARNINGS = {
    "ban-char-field": "padded with spaces: seldom what was meant",
    "ban-create-domain-with-constraint": "changing its constraint later reads every table that has it",
    "ban-drop-constraint": "the way down fails once users wrote what it forbade",
    "ban-drop-generated-expression": "its values are no longer kept up",
    "ban-drop-not-null": "the way down fails once users wrote nulls; the old application may not expect them",
    "prefer-bigint-over-int": "it overflows at 2,147,483,647",
    "prefer-bigint-over-smallint": "it overflows at 32,767",
    "prefer-timestamp-tz": "without a zone it means another moment on another machine",
    "renaming-object": "the old application, or the way down, may ask for the old name",
    "require-concurrent-index-deletion": "a short lock that stops readers: taken in short tries",
    "require-concurrent-partition-detach": "a short lock that stops readers: taken in short tries",
    "require-enum-value-ordering": "it lands at the end",
}
#: Not shown at all.
_PASSED_OVER = {
    "prefer-identity": "serial and identity do the same; that adding one rewrites a table is our own rule",
    "prefer-repack": "names an extension that few have, beside our own vacuum-full and cluster",
    "prefer-robust-stmts": "a migration is all or nothing, or refused unless each statement is repeatable",
    "prefer-text-field": "a short varchar is a choice; changing it later is found then",
    "require-lock-timeout": "the executor sets it, in short tries that grow",
    "require-statement-timeout": "the executor sets it",
    "require-timeout-settings": "the executor sets them",
    "unused-ignore": "comments are taken out before: what is accepted is named in the request",
}

_TABLE = r"ALTER (?:FOREIGN )?TABLE\b"
_OURS: dict[str, tuple[str, Level, str]] = {
    "truncate": (
        r"TRUNCATE\b",
        "error",
        "TRUNCATE stops readers and takes all rows: no way down brings them back.",
    ),
    "vacuum-full": (
        r"VACUUM (?:\( [^)]*)?\bFULL\b(?! (?:FALSE|OFF|0)\b)",
        "error",
        "VACUUM FULL writes the table anew while nobody reads or writes.",
    ),
    "cluster": (r"CLUSTER\b", "error", "CLUSTER writes the table anew while nobody reads or writes."),
    "lock-table": (
        r"LOCK\b",
        "error",
        "LOCK TABLE holds the lock to the migration's end, however long the rest takes.",
    ),
    "refresh-stops-readers": (
        r"REFRESH MATERIALIZED VIEW (?!CONCURRENTLY\b)",
        "error",
        "Nobody reads the view while it is computed. Use CONCURRENTLY, or refresh it outside migrations.",
    ),
    "table-rewrite": (
        (
            rf"{_TABLE}.* SET (?:LOGGED|UNLOGGED|TABLESPACE|ACCESS METHOD)\b"
            rf"|{_TABLE}.* ADD (?:COLUMN )?+(?:IF NOT EXISTS )?+[^ ]+ (?:SMALL|BIG)?SERIAL[248]?\b"
            rf"|{_TABLE}.* ADD (?:COLUMN )?+(?:IF NOT EXISTS )?+[^ ]+ [^(),]*\bAS IDENTITY\b"
        ),
        "error",
        "The table is written anew while nobody reads or writes.",
    ),
    "attach-partition-scan": (
        rf"{_TABLE}.* ATTACH PARTITION\b",
        "warning",
        "All rows of the new partition are read, unless a CHECK constraint proves beforehand that they fit.",
    ),
    "code-not-seen": (
        r"(?:DO|CALL|EXECUTE)\b",
        "warning",
        "What this code does is not seen by reading: look at the rehearsal's locks and rewrites.",
    ),
}
_CASCADE = re.compile(r"(?<!ON DELETE )(?<!ON UPDATE )\bCASCADE\b")
_QUERY_BEGINS = re.compile(r"(?:^|(?<=[()] ))(?P<verb>UPDATE|DELETE FROM)\b")


class Danger(NamedTuple):
    """Something that a rule of ours found in a statement."""

    rule: str
    level: Level
    message: str


def squawk_level(rule: str) -> Level | None:
    """Return how bad a finding of squawk's is; None: it is passed over. A rule that we do not know blocks."""
    if rule in _PASSED_OVER:
        return None
    return "warning" if rule in _WARNINGS else "error"


def why(rule: str) -> str:
    """Return in a line what a rule of squawk's means here; empty: not known."""
    return _ERRORS.get(rule) or _WARNINGS.get(rule) or _PASSED_OVER.get(rule) or ""


def dangers(words: str) -> Iterator[Danger]:
    """Yield what our own rules find.

    Args:
        words: the statement in capitals, with one space between all words and signs, `''` for each string
            and body, `""` for each quoted name, and no comments.
    """
    for rule, (pattern, level, message) in _OURS.items():
        if re.match(pattern, words):
            yield Danger(rule, level, message)
    if words.startswith(("DROP ", "ALTER ")) and _CASCADE.search(words):
        yield Danger("drop-cascade", "error", "CASCADE takes away what is not named here. Name each thing.")
    for verb in _without_where(words):
        rule = "update-without-where" if verb == "UPDATE" else "delete-without-where"
        yield Danger(
            rule,
            "error",
            f"{verb.partition(' ')[0]} without WHERE touches all rows in one transaction, and no way down "
            "brings the old ones back. Change them in batches outside migrations, or say which.",
        )


def _without_where(words: str) -> Iterator[str]:
    if words.startswith("CREATE"):  # a rule or a routine: nothing is run now
        return
    for found in _QUERY_BEGINS.finditer(words):
        if "WHERE" not in _own_words(words[found.end() :]):
            yield found["verb"]


def _own_words(rest: str) -> list[str]:
    """Return the words of a query that stand in no parentheses of its own, up to its end."""
    own, depth = [], 0
    for word in rest.split():
        depth += (word == "(") - (word == ")")
        if depth < 0:
            break
        if depth == 0:
            own.append(word)
    return own
