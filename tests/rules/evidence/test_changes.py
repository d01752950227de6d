"""Documentation and CHANGELOG that come with a change."""

from __future__ import annotations

import pytest

from rules.evidence.changes import judge_changelog, judge_documentation, parse_changed_files
from rules.finding import Result

PATTERNS = ("README*", "docs/*")

CHANGELOG = """\
# Changelog
All notable changes.

## [Unreleased]
- in the making

## [1.3.0] - 2026-02-01
### Added
- recall by date

## 1.2.0

## v1.1.0 (2025-12-24)
<!-- nothing
- commented
-->
### Fixed

## 1.0.0
First one.

## web-blue
Painted.

[1.2.0]: https://example.org/1.2.0
"""


@pytest.mark.parametrize(
    ("changed", "result"),
    [
        (["src/a.py", "docs/deep/b.md"], Result.PASSED),
        (["README.md"], Result.PASSED),
        (["src/a.py", "src/docs.py"], Result.FAILED),
        ([], Result.UNKNOWN),
    ],
)
def test_a_change_brings_its_documentation(changed, result):
    assert judge_documentation(changed, PATTERNS).result is result


def test_paths_are_read_as_git_prints_them():
    text = 'src/a.py\n\n"docs/\\303\\274ber uns.md"\n"with \\"quotes\\".md"\n'
    assert parse_changed_files(text) == ("src/a.py", "docs/über uns.md", 'with "quotes".md')


def test_a_quoted_path_that_git_did_not_write_is_a_value_error():
    with pytest.raises(ValueError, match="git"):
        parse_changed_files('"docs/\\377.md"\n')


@pytest.mark.parametrize(
    ("release", "result"),
    [
        ("1.3.0", Result.PASSED),
        ("v1.3.0", Result.PASSED),
        ("1.0.0", Result.PASSED),
        ("web-blue", Result.PASSED),
        ("1.2.0", Result.FAILED),  # a heading with nothing below it
        ("1.1.0", Result.FAILED),  # only headings and a comment
        ("1.3", Result.FAILED),
        ("1.4.0", Result.FAILED),  # a version needs its own entry
        ("0f3ac1d", Result.PASSED),  # a commit has none: Unreleased stands for it
    ],
)
def test_the_changelog_has_an_entry_for_the_release(release, result):
    assert judge_changelog(CHANGELOG, release=release).result is result


def test_a_missing_entry_is_said_with_those_that_are_there():
    found = judge_changelog(CHANGELOG, release="1.4.0")
    assert "no entry for 1.4.0; it has: unreleased, 1.3.0, 1.2.0" in found.evidence


@pytest.mark.parametrize("line", ["## 1.0" + "a" * 5000 + "!", "#" + " " * 50_000 + "x", "<!--" * 50_000])
def test_a_line_that_is_made_to_take_for_ever_takes_no_time(line):
    assert judge_changelog(line, release="1.0").result is Result.FAILED


@pytest.mark.parametrize("text", ["", "# Changelog\n", "## [Unreleased]\n\n## 1.0.0\n- x\n"])
def test_an_empty_unreleased_entry_stands_for_nothing(text):
    assert judge_changelog(text, release="0f3ac1d").result is Result.FAILED
