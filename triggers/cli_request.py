"""A request from a file: YAML or JSON as the run form of Prefect has it, with values set beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from rules.frozen import Frozen
from rules.release import Release
from triggers.api_errors import BadRequestError
from triggers.api_request import deploy_request, wrong_fields

STDIN = "-"
_QUOTE = "If that is a version such as 2.0, put it in quotes: YAML takes it for a number."


class Request(Frozen):
    """What is asked for: of which Prefect deployment, with which parameters, and what it is in words."""

    flow: str
    parameters: dict[str, Any]
    what: str


class ReleaseRequest(Frozen):
    """The parameters of the flow `release`: each component brings its strategy and evidence itself."""

    change: Release
    environment: str = Field(default="development", min_length=1)


def read_request(path: str, settings: Iterable[str] = ()) -> Request:
    """Return the request that a file and the values set beside it make.

    Args:
        path: of a YAML or JSON file; `-` is standard input.
        settings: `PATH=VALUE` each, such as `change.release=2.0.0` or `strategy.steps_percent=[50, 100]`.

    Raises:
        BadRequestError: it cannot be read, or is no request; names the field. Nothing was sent.
    """
    fields = _parsed(_text(path), path)
    for setting in settings:
        _set(fields, setting)
    if "dry_run" in fields:
        raise BadRequestError(f"{path} says dry_run. Nothing was sent. For a dry run use `sovereign plan`.")
    change = fields.get("change")
    is_release = isinstance(change, dict) and change.get("component") == "release"
    try:
        return _release(fields) if is_release else _deployment(fields)
    except BadRequestError as error:
        hint = f" {_QUOTE}" if "valid string" in str(error) else ""
        raise BadRequestError(f"{path}: {error}{hint}") from error


def _deployment(fields: dict[str, Any]) -> Request:
    request = deploy_request(fields)
    change, where = request.change, request.environment
    what = f"{change.subject} {change.release} to {where} by {request.strategy.strategy}"
    return Request(flow="deploy/deploy", parameters=request.parameters, what=what)


def _release(fields: dict[str, Any]) -> Request:
    try:
        request = ReleaseRequest.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(wrong_fields(error))
        raise BadRequestError(f"This is no request for a release: {reasons}. Nothing was sent.") from error
    change = request.change
    names = ", ".join(one.name for one in change.now)
    what = f"release {change.name} {change.release} to {request.environment}: {names}"
    return Request(flow="release/release", parameters=request.model_dump(mode="json"), what=what)


def _text(path: str) -> str:
    if path == STDIN:
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(f"{path} cannot be read: {error}. Nothing was sent.") from error


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadRequestError(f"{path} is neither YAML nor JSON: {error}. Nothing was sent.") from error
    if not isinstance(found, dict):
        raise BadRequestError(
            f"{path} has no fields. Nothing was sent. It needs `change` and `strategy`; see docs/cli.md."
        )
    return found


def _set(fields: dict[str, Any], setting: str) -> None:
    """Put a value in its place; what leads there is made where it is missing."""
    path, equals, text = setting.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise BadRequestError(f"--set {setting!r} is not PATH=VALUE, such as change.release=2.0.0.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadRequestError(f"--set {path}: {text!r} is no YAML value: {error}") from error
    place: Any = fields
    for part in parts[:-1]:
        place = _entered(place, part, path)
    key = _key(place, parts[-1], path)
    place[key] = value


def _entered(place: Any, part: str, path: str) -> Any:
    key = _key(place, part, path)
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    return place[key]


def _key(place: Any, part: str, path: str) -> str | int:
    """Return `part` as a key of a mapping, or as a place in a list that has it."""
    if isinstance(place, dict):
        return part
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return int(part)
    raise BadRequestError(f"--set {path}: there is no place {part!r} in what the file has there.")
