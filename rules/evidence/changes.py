"""Does a change bring its documentation and its CHANGELOG entry with it?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from rules.finding import Finding
from rules.words import listed

_HEADING = re.compile(r"(#{1,3})\s+(.*)")
_NAME = re.compile(r"(?:(?:release|version)\s+)?\[?v?([^\]\s(:,]+)", re.IGNORECASE)
# one way only to match each character: a nested repetition would take for ever over what is no version
_VERSION = re.compile(r"v?\d+\.\d+(?:[._+-]?[0-9A-Za-z])*", re.IGNORECASE)
_LINK_TARGET = re.compile(r"\[[^\]]+\]:\s")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_UNRELEASED = "unreleased"


def parse_changed_files(text: str) -> tuple[str, ...]:
    """Return the paths of `git diff --name-only`: one a line, git's quotes around unusual ones taken off.

    Raises:
        ValueError: a quoted path is not as git writes it.
    """
    return tuple(_path(line) for line in text.splitlines() if line.strip())


def judge_documentation(changed: Sequence[str], patterns: Iterable[str]) -> Finding:
    """Return whether one of the changed paths is documentation.

    Args:
        changed: paths in the repository.
        patterns: as a shell's, where `*` also stands for a slash: `docs/*` is all below docs.
    """
    patterns = tuple(patterns)
    if not changed:
        return Finding.unknown("the list of changed files is empty.")
    found = [path for path in changed if any(fnmatchcase(path, pattern) for pattern in patterns)]
    if found:
        return Finding.passed(f"{len(found)} of {len(changed)} changed files document: {listed(found)}.")
    return Finding.failed(
        f"{len(changed)} files are changed, and none is documentation ({listed(patterns, shown=8)})."
    )


def judge_changelog(text: str, *, release: str) -> Finding:
    """Return whether a CHANGELOG in Markdown says something about `release`.

    An entry begins with a heading that names it: `## [1.2.3] - 2026-01-31`, `## 1.2.3`, `# v1.2.3`; at least
    one line of text must stand below it. `Unreleased` counts only for a release that is no version number,
    such as a commit or a store path: what has a version must have its own entry.
    """
    entries = _entries(text, _bare(release))
    if _bare(release) in entries:
        return _entry(release, entries[_bare(release)])
    if not _VERSION.fullmatch(release) and _UNRELEASED in entries:
        return _entry("Unreleased", entries[_UNRELEASED])
    named = listed(entries, shown=5) or "none"
    return Finding.failed(f"the CHANGELOG has no entry for {release}; it has: {named}.")


def _entry(name: str, lines: int) -> Finding:
    return Finding.judged(f"the CHANGELOG's entry for {name} has {lines} lines of text.", ok=lines > 0)


def _entries(text: str, wanted: str) -> dict[str, int]:
    """Return for each entry how many lines of text it has; of two with one name the first counts."""
    entries: dict[str, int] = {}
    current, level = None, 0
    for line in _COMMENT.sub("", text).splitlines():
        if heading := _HEADING.fullmatch(line):
            name = _name(heading[2])
            if _VERSION.fullmatch(name) or name in {wanted, _UNRELEASED}:
                current, level = (name if name not in entries else None), len(heading[1])
                entries.setdefault(name, 0)
            elif len(heading[1]) <= level:
                current = None
        elif current is not None and line.strip() and not _LINK_TARGET.match(line):
            entries[current] += 1
    return entries


def _name(heading: str) -> str:
    match = _NAME.match(heading)
    return _bare(match[1]) if match else ""


def _bare(name: str) -> str:
    return name.removeprefix("v").casefold() if _VERSION.fullmatch(name) else name.casefold()


def _path(line: str) -> str:
    if not (line.startswith('"') and line.endswith('"') and len(line) > 1):
        return line.strip()
    try:
        return line[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1").decode()
    except UnicodeError as error:
        raise ValueError("a quoted path is not as git writes it") from error
