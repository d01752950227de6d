"""Read what a Python lock pins and what its sources ask for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter

from rules.evidence.foreign import Foreign
from rules.evidence.locks import Dependency
from tasks.evidence_files import BadEvidenceError, text, unreadable

_HASH = re.compile(r"--hash[= ](\S+)")
_OPTION = re.compile(r"\s--[a-z-]+[= ]\S+")
_ELSEWHERE = re.compile(r"-(?:[rce]\b|-requirement|-constraint|-editable)")
_COMMENT = re.compile(r"(^|\s)#.*")
_REQUIREMENTS = frozenset({".txt", ".in"})

Asked = list[tuple[Requirement, bool]]


class _Project(Foreign):
    dependencies: tuple[str, ...] = ()
    optional_dependencies: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - pydantic copies it
    dynamic: tuple[str, ...] = ()


class Pins:
    """What a lock in pip's format pins: for each name its versions, and whether each line carries a hash."""

    def __init__(self, path: str) -> None:
        self.versions: dict[str, list[Version]] = {}
        self.good: dict[str, bool] = {}
        for line in _lines(text(path)):
            if _is_option(path, line):
                continue
            requirement = _requirement(path, line)
            name = canonicalize_name(requirement.name)
            version = _version(requirement)
            if version is not None:
                self.versions.setdefault(name, []).append(version)
            hashed = bool(_HASH.search(line)) or "#sha256=" in (requirement.url or "")
            single = version is not None or requirement.url is not None
            self.good[name] = self.good.get(name, True) and hashed and single

    def dependency(self, requirement: Requirement, *, optional: bool) -> Dependency:
        """Return what a source asks for beside what the lock has."""
        name = canonicalize_name(requirement.name)
        pinned = self.versions.get(name, [])
        fits = [requirement.specifier.contains(version, prereleases=True) for version in pinned]
        # a line that holds in some environments only is met by the pin that belongs to them
        satisfied = any(fits) if requirement.marker else bool(fits) and all(fits)
        shown = tuple(dict.fromkeys(str(version) for version in pinned))
        if not pinned and name in self.good:  # by its address
            shown, satisfied = ("its address",), True
        return Dependency(
            name=name,
            specifier=str(requirement.specifier),
            pinned=shown,
            satisfied=satisfied,
            optional=optional,
        )


def asked_for(path: str) -> Asked:
    """Return what a pyproject.toml or a requirements file asks for, and whether it is optional.

    Raises:
        BadEvidenceError: it is neither, cannot be parsed, or refers to other files.
    """
    if Path(path).suffix == ".toml":
        return _of_project(path)
    if Path(path).suffix not in _REQUIREMENTS:
        raise BadEvidenceError(path, "is neither a pyproject.toml nor a requirements file, by its name")
    lines = (line for line in _lines(text(path)) if not _is_option(path, line))
    return [(_requirement(path, line), False) for line in lines]


def _of_project(path: str) -> Asked:
    try:
        data = tomllib.loads(text(path))
        table = data.get("project", {})
        project = _Project.model_validate(
            {**table, "optional_dependencies": table.get("optional-dependencies", {})}
        )
        groups = TypeAdapter(dict[str, list[str | dict[str, str]]]).validate_python(
            data.get("dependency-groups", {})
        )
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise unreadable(path, error) from error
    if "dependencies" in project.dynamic:
        raise BadEvidenceError(path, "leaves its dependencies to the build: name the file they come from")
    extras = [line for lines in project.optional_dependencies.values() for line in lines]
    # a group may include another one, whose own lines are read as well
    extras += [line for lines in groups.values() for line in lines if isinstance(line, str)]
    own = canonicalize_name(str(table.get("name", "")))
    asked = [(_requirement(path, line), False) for line in project.dependencies]
    asked += [(_requirement(path, line), True) for line in extras]
    return [(r, optional) for r, optional in asked if canonicalize_name(r.name) != own]


def _lines(written: str) -> Iterator[str]:
    """Yield the logical lines of a requirements file, without comments."""
    for line in re.sub(r"\\\r?\n", " ", written).splitlines():
        if bare := _COMMENT.sub("", line).strip():
            yield bare


def _is_option(path: str, line: str) -> bool:
    if _ELSEWHERE.match(line):
        raise BadEvidenceError(path, "refers to other files, which are not read: name the files themselves")
    return line.startswith("-")


def _requirement(path: str, line: str) -> Requirement:
    try:
        return Requirement(_OPTION.sub("", line).strip())
    except InvalidRequirement:
        raise BadEvidenceError(path, f"has a line that is no requirement: {line[:80]!r}") from None


def _version(requirement: Requirement) -> Version | None:
    """Return the one version that a line allows, or None where it allows several or names an address."""
    parts = list(requirement.specifier)
    if len(parts) != 1 or parts[0].operator not in {"==", "==="}:
        return None
    try:
        return Version(parts[0].version)
    except InvalidVersion:  # `==1.*`
        return None
