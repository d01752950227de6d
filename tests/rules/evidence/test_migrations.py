"""Migrations: each has its way back."""

from __future__ import annotations

import pytest

from rules.evidence.migrations import Migration, judge_migrations
from rules.finding import Result

REVISION = 'revision = "a1"\n\n\ndef upgrade():\n    op.add_column("t", c)\n\n\ndef downgrade():\n    {}\n'


def result(name, text, down=None):
    return judge_migrations([Migration(name=name, text=text, down=down)]).result


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('op.drop_column("t", "c")', Result.PASSED),
        ('"""Take it back."""\n    op.drop_column("t", "c")', Result.PASSED),
        ("pass", Result.FAILED),
        ("...", Result.FAILED),
        ('"""There is none."""', Result.FAILED),
        ("raise NotImplementedError", Result.FAILED),
        ("return None", Result.FAILED),
        ("return", Result.FAILED),
    ],
)
def test_an_alembic_revision_needs_a_downgrade_that_does_something(body, expected):
    assert result("a1.py", REVISION.format(body)) is expected


def test_an_alembic_revision_without_a_downgrade_fails():
    assert result("a1.py", "def upgrade(): x()") is Result.FAILED


@pytest.mark.parametrize(
    ("down", "expected"),
    [
        ("DROP TABLE t;", Result.PASSED),
        (None, Result.FAILED),
        ("", Result.FAILED),
        ("-- later\n/* or\nnever */ ;\n", Result.FAILED),
    ],
)
def test_an_sql_migration_needs_a_way_back_with_a_statement(down, expected):
    assert result("1.up.sql", "CREATE TABLE t ();", down) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-- migrate:up\nCREATE TABLE t ();\n-- migrate:down\nDROP TABLE t;\n", Result.PASSED),
        ("-- +goose Up\nCREATE TABLE t ();\n-- +goose Down\nDROP TABLE t;\n", Result.PASSED),
        ("-- migrate:up\nCREATE TABLE t ();\n-- migrate:down\n", Result.FAILED),
        ("CREATE TABLE t ();", Result.FAILED),
    ],
)
def test_a_section_is_a_way_back_too(text, expected):
    assert result("1.sql", text) is expected


def test_the_one_without_a_way_back_is_named():
    good = Migration(name="1.up.sql", text="x", down="y")
    bad = Migration(name="2.up.sql", text="x")
    found = judge_migrations([good, bad])
    assert found.result is Result.FAILED
    assert "1 of 2 migrations have no way back: 2.up.sql" in found.evidence


def test_no_migration_is_unknown():
    assert judge_migrations([]).result is Result.UNKNOWN


@pytest.mark.parametrize("text", ["def downgrade(:", "(" * 5000, "\0"])
def test_what_is_no_python_is_a_value_error(text):
    with pytest.raises(ValueError, match="not Python"):
        result("a.py", text)
