"""A rehearsal as people read it."""

from __future__ import annotations

import pytest

from rules.migration import LockTaken, Rehearsal, RehearsedMigration, RehearsedStatement
from rules.rehearsal_page import rehearsal_page, way_down_in_words

SHA = "0" * 64


def statement(sql="ALTER TABLE t ADD c int", *, locks=(), rewrites=(), duration_s=0.0034):
    taken = tuple(LockTaken(relation=relation, mode=mode) for relation, mode in locks)
    return RehearsedStatement(sql=sql, locks=taken, rewrites=rewrites, duration_s=duration_s)


def migration(*statements, revision="0001", **fields):
    return RehearsedMigration(revision=revision, statements=statements, schema_sha256=SHA, **fields)


def page(*migrations, where="zfs_clone"):
    return rehearsal_page(Rehearsal(where=where, schema_sha256=SHA, migrations=migrations, took_s=2.04))


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[4:]]


def test_each_statement_has_a_row_and_the_way_down_stands_at_the_first():
    first = statement(
        locks=[("public.t", "AccessExclusiveLock"), ("public.u", "AccessExclusiveLock")],
        rewrites=("public.t", "public.t_pkey"),
        duration_s=12.34,
    )
    second = statement("CREATE INDEX ON t (c)", locks=[("public.t", "ShareLock")])
    text = page(migration(first, second, restores_schema=True, restores_data=True))
    assert text.startswith("Rehearsed on a clone of the cluster's ZFS dataset, in 2.0 s.\n\n| Migration |")
    assert rows(text) == [
        [
            "`0001`",
            "`ALTER TABLE t ADD c int`",
            "**AccessExclusive** on public.t, public.u",
            "public.t, public.t_pkey",
            "12.3 s",
            "leads back, with all rows",
        ],
        ["", "`CREATE INDEX ON t (c)`", "Share on public.t", "-", "3 ms", ""],
    ]


def test_a_statement_with_bars_newlines_and_of_any_length_keeps_the_table_whole():
    long = "SELECT 'a|b',\n  `x`, " + "y" * 200
    row = rows(page(migration(statement(long))))
    assert len(row) == 1
    assert len(row[0]) == 6
    assert row[0][1].startswith("`SELECT 'a\\|b', 'x', yyy")
    assert row[0][1].endswith("…`")
    assert len(row[0][1]) < 90


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"words": "it has no way down"}, "not usable: it has no way down"),
        ({}, "not usable: there is none"),
        ({"restores_schema": True, "restores_data": True}, "leads back, with all rows"),
        ({"restores_schema": True}, "brings the schema back; rows could not be tried"),
        (
            {"restores_schema": True, "restores_data": False, "words": "public.t has 3 rows, not 4"},
            "**does not lead back**: public.t has 3 rows, not 4",
        ),
        (
            {"restores_schema": False, "restores_data": True, "words": "+CREATE INDEX i"},
            "**does not lead back**: +CREATE INDEX i",
        ),
        (
            {"restores_schema": True, "words": "public.t: lost already"},
            "brings the schema back; rows could not be tried (public.t: lost already)",
        ),
    ],
)
def test_the_way_down_is_told_as_it_went(fields, words):
    assert way_down_in_words(migration(statement(), **fields)) == words


def test_a_migration_without_statements_still_tells_its_way_down():
    assert (
        rows(page(migration(restores_schema=True, restores_data=True)))[0][-1] == "leads back, with all rows"
    )


def test_nothing_pending_is_said():
    assert page().endswith("Nothing was pending.")
