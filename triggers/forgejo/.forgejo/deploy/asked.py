"""What is asked for: deploy.json with this run's release, artefact and evidence filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What `sovereign deploy` takes; the rest of deploy.json is for the workflow's own steps.
REQUEST_FIELDS = ("change", "strategy", "environment", "evidence", "attestations", "waivers")
OWN_FIELDS = ("evidence_directory", "health")
#: Evidence by the names of its files: one of them, or as many as there are.
_ONE_FILE = {
    "coverage": ("coverage.xml", "coverage.json"),
    "security": ("security.sarif",),
    "benchmarks": ("benchmarks.json",),
    "changed_files": ("changed_files.txt",),
}
_MANY_FILES = {"tests": "junit*.xml", "diagnostics": "diagnostics*"}
#: Where a change says what it is made of.
_PARTS = ("artefact", "migrations")
_DECLARED = "declared"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class AskedWrongError(Exception):
    """What is asked for cannot be: says why and what to do. Nothing was started."""


def declared(path: Path) -> dict[str, Any]:
    """Return what deploy.json says.

    Raises:
        AskedWrongError: it is not there, no JSON, or has a field that nobody reads.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AskedWrongError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("change"), dict):
        raise AskedWrongError(f"{path.name} must be an object with a `change`")
    if unknown := sorted(set(found) - {*REQUEST_FIELDS, *OWN_FIELDS}):
        raise AskedWrongError(f"{path.name} has fields that nobody reads: {', '.join(unknown)}")
    return found


def release_of(values: Mapping[str, str]) -> str:
    """Return the release that the input names, or the tag that was pushed, without its `v`.

    Raises:
        AskedWrongError: neither does, or it could not be a directory's name.
    """
    release = values.get("RELEASE", "")
    if not release and values.get("GITHUB_REF_TYPE") == "tag":
        release = values.get("GITHUB_REF_NAME", "").removeprefix("v")
    if not _RELEASE.fullmatch(release):
        raise AskedWrongError(
            f"{release!r} is no release (letters, digits, dots): give the input, or push a tag like v1.2.0"
        )
    return release


def asked(template: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Return deploy.json as it is meant in this run.

    Args:
        template: what deploy.json says.
        values: the job's variables: the inputs, and those that the runner sets.

    Raises:
        AskedWrongError: a value is missing or makes no sense.
    """
    release = release_of(values)
    words = {"release": release, "commit": values.get("GITHUB_SHA", "")}
    found: dict[str, Any] = _filled(dict(template), words)
    if "release" in found["change"]:  # an index has none
        found["change"]["release"] = release
    _fill_in_artefact(found["change"], values)
    if environment := values.get("ENVIRONMENT"):
        found["environment"] = environment
    _choose_strategy(found, values.get("STRATEGY", ""))
    found["evidence"] = _evidence(found, values)
    found["health"] = _health(found, values)
    return found


def request_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that `sovereign deploy` takes."""
    return {name: found[name] for name in REQUEST_FIELDS if name in found}


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """Return `value` with {release} and {commit} in any of its strings replaced."""
    if isinstance(value, dict):
        return {name: _filled(part, words) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, words) for part in value]
    if isinstance(value, str):
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", word)
    return value


def _fill_in_artefact(change: dict[str, Any], values: Mapping[str, str]) -> None:
    """Say where the release lies and its checksum: by input, by deploy.json, or by the file beside it."""
    part = next((change[name] for name in _PARTS if isinstance(change.get(name), dict)), None)
    if part is None:
        return
    if path := values.get("ARTEFACT"):
        part["path"] = path
    if checksum := values.get("SHA256"):
        part["sha256"] = checksum
    if part.get("sha256") == "":
        part["sha256"] = _checksum_beside(Path(part.get("path", "")))


def _checksum_beside(path: Path) -> str:
    # never computed from the artefact: that would find any artefact right
    beside = path.with_name(f"{path.name}.sha256")
    try:
        words = beside.read_text(encoding="utf-8").split()
    except OSError as error:
        raise AskedWrongError(
            f"no checksum of {path}: give the input sha256, or have the build write {beside} ({error})"
        ) from error
    if not words:
        raise AskedWrongError(f"{beside} is empty: `sha256sum` writes what belongs there")
    return words[0]


def _choose_strategy(found: dict[str, Any], wanted: str) -> None:
    """Take another strategy than the declared one, with its defaults."""
    said = found.get("strategy")
    if wanted not in {"", _DECLARED} and not (isinstance(said, dict) and said.get("strategy") == wanted):
        found["strategy"] = {"strategy": wanted}


def _evidence(found: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Return the evidence that is there; what deploy.json names itself stays as it says."""
    evidence: dict[str, Any] = {}
    if _COMMIT.fullmatch(values.get("GITHUB_SHA", "")):
        evidence["commit"] = values["GITHUB_SHA"]
    if directory := found.get("evidence_directory"):
        place = Path(values.get("GITHUB_WORKSPACE", "."), directory).absolute()
        for field, pattern in _MANY_FILES.items():
            if files := sorted(str(path) for path in place.glob(pattern)):
                evidence[field] = files
        for field, names in _ONE_FILE.items():
            if files := [str(place / name) for name in names if (place / name).is_file()]:
                evidence[field] = files[0]
    return {**evidence, **found.get("evidence", {})}


def _health(found: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    declared_health = found.get("health") or {}
    if not isinstance(declared_health, dict):
        raise AskedWrongError(f"health must be an object with a url, not {declared_health!r}")
    health = dict(declared_health)
    if url := values.get("HEALTH_URL"):
        health["url"] = url
    if not health.get("url"):
        return {}
    return {"expect": found["change"].get("release", ""), **health}
