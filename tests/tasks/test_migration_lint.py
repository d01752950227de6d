"""The real squawk on migrations, with our own rules beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rules.errors import StepFailedError
from rules.migration import Migration, Migrations
from tasks.migration_lint import lint
from tasks.migrations import SQL_TABLE


def migrations(*ups: tuple[str, ...], is_transactional: bool = True) -> Migrations:
    pending = [
        Migration(
            revision=f"m{number}",
            title="",
            is_transactional=is_transactional,
            up=up,
            record=(),
            unrecord=(),
        )
        for number, up in enumerate(ups)
    ]
    return Migrations(version_table=SQL_TABLE, sha256="a" * 64, pending=tuple(pending), after=())


def found(*statements: str, is_transactional: bool = True) -> list[tuple[int, str, str]]:
    findings = lint(migrations(statements, is_transactional=is_transactional))
    return [(finding.statement, finding.rule, finding.level) for finding in findings]


def test_each_finding_is_told_with_its_migration_and_statement():
    findings = lint(
        migrations(
            (
                "CREATE TABLE other (\n  id bigint\n)",
                "-- one\nALTER TABLE notes\n\n  ADD a bigint,\n  DROP b",
            ),
            ("CREATE TABLE third ()", "SELECT '\n;\n\n'", "DELETE FROM notes"),
        )
    )
    assert [(one.revision, one.statement, one.rule, one.level) for one in findings] == [
        ("m0", 1, "ban-drop-column", "error"),
        ("m1", 2, "delete-without-where", "error"),
    ]
    assert all(one.message for one in findings)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE notes ADD COLUMN x uuid DEFAULT gen_random_uuid()", "adding-field-with-default"),
        (
            "ALTER TABLE notes ADD COLUMN x bigint GENERATED ALWAYS AS (y + 1) STORED",
            "adding-field-with-default",
        ),
        ("ALTER TABLE notes ADD COLUMN x bigint NOT NULL", "adding-required-field"),
        ("ALTER TABLE notes ALTER COLUMN x SET NOT NULL", "adding-not-nullable-field"),
        ("ALTER TABLE notes ALTER COLUMN x TYPE bigint", "changing-column-type"),
        ("ALTER TABLE notes ADD CONSTRAINT c CHECK (x > 1)", "constraint-missing-not-valid"),
        ("ALTER TABLE notes RENAME COLUMN a TO b", "renaming-column"),
        ("ALTER TABLE notes RENAME TO others", "renaming-table"),
        ("ALTER TABLE notes SET SCHEMA other", "ban-set-schema"),
        ("ALTER TABLE notes DROP COLUMN x", "ban-drop-column"),
        ("CREATE INDEX i ON notes (x)", "require-concurrent-index-creation"),
        ("REINDEX INDEX i", "require-concurrent-reindex"),
        ("DROP TABLE notes", "ban-drop-table"),
        ("DROP SCHEMA s", "ban-drop-schema"),
        ("DROP TYPE mood", "ban-drop-type"),
        ("DROP VIEW v", "ban-drop-view"),
        ("DROP EXTENSION vector", "ban-drop-extension"),
        ("SELEC 1", "syntax-error"),
        ("UPDATE notes SET x = 1", "update-without-where"),
        ("DELETE FROM notes", "delete-without-where"),
        ("TRUNCATE notes", "truncate"),
        ("VACUUM FULL notes", "vacuum-full"),
        ("CLUSTER notes", "cluster"),
        ("LOCK TABLE notes", "lock-table"),
    ],
)
def test_what_stops_users_or_destroys_is_an_error(statement, rule):
    assert (0, rule, "error") in found(statement)


def test_what_cascades_is_an_error_beside_what_squawk_says():
    assert found("DROP TABLE notes CASCADE") == [
        (0, "ban-drop-table", "error"),
        (0, "drop-cascade", "error"),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE notes ADD COLUMN body text",
        "ALTER TABLE notes ADD COLUMN n bigint NOT NULL DEFAULT 0",
        "ALTER TABLE notes ADD CONSTRAINT c CHECK (x > 1) NOT VALID",
        "CREATE TABLE notes (id bigint PRIMARY KEY, body text, short varchar(20), at timestamptz)",
        "CREATE VIEW v AS SELECT 1",
        "UPDATE notes SET x = 1 WHERE id = 1",
        "INSERT INTO notes VALUES (1)",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ DELETE FROM notes $$",
    ],
)
def test_what_harms_nobody_is_not_told(statement):
    assert found(statement) == []


def test_an_index_on_a_table_that_is_new_in_the_same_migration_harms_nobody():
    assert found("CREATE TABLE notes (id bigint)", "CREATE INDEX i ON notes (id)") == []


def test_an_index_built_outside_a_transaction_is_fine_there_alone():
    statements = ("ANALYZE notes", "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON notes (id)")
    assert found(*statements, is_transactional=False) == []
    assert found(*statements) == [(1, "ban-concurrent-index-creation-in-transaction", "error")]


def test_what_is_only_unwise_is_a_warning():
    assert found("CREATE TABLE notes (id int, at timestamp)") == [
        (0, "prefer-bigint-over-int", "warning"),
        (0, "prefer-timestamp-tz", "warning"),
    ]


@pytest.mark.parametrize(
    "comment",
    ["-- squawk-ignore-file\n", "-- squawk-ignore ban-drop-table\n", "/* squawk-ignore ban-drop-table */ "],
)
def test_no_comment_switches_a_rule_off(comment):
    assert found(f"{comment}DROP TABLE notes") == [(0, "ban-drop-table", "error")]
    assert found(f"DROP {comment}TABLE notes") == [(0, "ban-drop-table", "error")]


def test_no_file_that_lies_about_switches_a_rule_off(tmp_path, monkeypatch):
    (tmp_path / ".squawk.toml").write_text('excluded_rules = ["ban-drop-table"]\n')
    monkeypatch.chdir(tmp_path)
    assert found("DROP TABLE notes") == [(0, "ban-drop-table", "error")]


def test_nothing_to_look_at_is_nothing_found():
    assert lint(migrations()) == ()
    assert lint(migrations(())) == ()


# --- unknown is never passed -----------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An environment of its own, without a squawk."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def program(directory: Path, script: str) -> None:
    path = directory / "squawk"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_squawk_nothing_is_passed(elsewhere):
    with pytest.raises(StepFailedError, match=f"There is no squawk, neither {elsewhere}/squawk nor on PATH"):
        lint(migrations(("SELECT 1",)))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo boom >&2; exit 2", "exited 2 on migration m0: boom"),
        ("kill -9 $$", "exited -9"),
        ("echo '[]'; exit 1", "exited 1"),
        ("echo 'no json'", "exited 0 on migration m0: no json"),
        ("echo '[{\"line\": 0}]'; exit 1", "exited 1"),
        ("echo '{}'", "exited 0"),
        ("", "(no output)"),
    ],
)
def test_a_squawk_that_fails_passes_nothing(elsewhere, script, words):
    program(elsewhere, script)
    with pytest.raises(StepFailedError) as caught:
        lint(migrations(("SELECT 1",)))
    assert words in str(caught.value)
    assert "not passed" in str(caught.value)


def test_a_squawk_on_path_is_taken_where_the_environment_has_none(elsewhere, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    program(tmp_path / "other", 'echo \'[{"line": 9, "rule_name": "new-rule", "message": "!"}]\'; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}/other:/usr/bin:/bin")
    assert found("SELECT 1", "SELECT 2") == [(1, "new-rule", "error")]
