"""What the input of `deploy_workflow` asks for: a request on file, and what is to be different."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from rules.frozen import Frozen, Name
from rules.release import Release
from triggers.api_errors import BadRequestError
from triggers.api_request import DeployRequest, deploy_request, wrong_fields

_SHAPE = 'an object such as {"deployment": "production"}'
_KEYS = frozenset(DeployRequest.model_fields)


class Asked(Frozen):
    """The input of a workflow.

    `deployment` names the request, and the environment where neither of them says otherwise; `instead` holds
    parameters of the flow that replace those of the request.
    """

    deployment: Name
    instead: dict[str, Any] = Field(default_factory=dict)


class Wanted(Frozen):
    """What Prefect is asked for: a flow's deployment, and its parameters as JSON."""

    flow: Literal["deploy/deploy", "release/release"] = "deploy/deploy"
    parameters: dict[str, Any]


class _ReleaseRequest(Frozen):
    """The parameters of the flow `release`: several components that go together."""

    change: Release
    environment: str = Field(min_length=1)
    dry_run: bool = False


class Answer(Frozen):
    """What a person says to a deployment that waits for approval."""

    approved: bool
    by: str = Field(min_length=2, max_length=120)
    words: str = Field(default="", max_length=2000)


def asked_for(sent: Any) -> Asked:
    """Return what a workflow's input asks for.

    Raises:
        BadRequestError: it is no such object, or has a key that no deployment has; nothing was started.
    """
    if not isinstance(sent, Mapping):
        raise BadRequestError(f"The input must be {_SHAPE}, not {type(sent).__name__}. Nothing was started.")
    unknown = sorted(str(key) for key in sent if key not in _KEYS | {"deployment"})
    if unknown:
        known = ", ".join(["deployment", *sorted(_KEYS)])
        raise BadRequestError(
            f"The input has unknown keys: {', '.join(unknown)}. Nothing was started. Known are {known}."
        )
    try:
        instead = {key: value for key, value in sent.items() if key != "deployment"}
        return Asked.model_validate({"deployment": sent.get("deployment"), "instead": instead})
    except ValidationError as error:
        reasons = "; ".join(wrong_fields(error))
        # Temporal shows causes too, and this one repeats the input
        raise BadRequestError(f"The input must be {_SHAPE}: {reasons}. Nothing was started.") from None


def answered_by(sent: Any) -> Answer:
    """Return a person's answer.

    Raises:
        BadRequestError: it is none; says which field is wrong.
    """
    try:
        return Answer.model_validate(sent)
    except ValidationError as error:
        reasons = "; ".join(wrong_fields(error))
        raise BadRequestError(f"This is no answer to an approval: {reasons}. Nothing was changed.") from None


def request_for(asked: Asked, directory: Path | None) -> Wanted:
    """Return what `asked` means: a deployment, or a release where its change has several components.

    Args:
        asked: the workflow's input.
        directory: of requests, one `<deployment>.yaml` each; None: the input has to say all of it.

    Raises:
        BadRequestError: there is no such request, it cannot be read, or together they make no sense; nothing
            was started.
    """
    fields = {"environment": asked.deployment, **_on_file(asked, directory), **asked.instead}
    change = fields.get("change")
    if isinstance(change, Mapping) and "components" in change:
        return Wanted(flow="release/release", parameters=_release(fields).model_dump(mode="json"))
    return Wanted(parameters=deploy_request(fields).parameters)


def key_of(workflow_id: str, run_id: str) -> str:
    """Return the key that makes a repeated start find the flow run of the first one."""
    return f"temporal-{workflow_id}-{run_id}"


def _on_file(asked: Asked, directory: Path | None) -> dict[str, Any]:
    file = directory / f"{asked.deployment}.yaml" if directory else None
    if file is None or not file.is_file():
        if "change" in asked.instead:
            return {}
        raise BadRequestError(_missing(asked, directory))
    try:
        read = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadRequestError(f"{file} cannot be read: {error}. Nothing was started. Mend it.") from error
    if not isinstance(read, dict) or not read.keys() <= _KEYS:
        raise BadRequestError(
            f"{file} is no request. Nothing was started. It must be an object with keys of "
            f"{', '.join(sorted(_KEYS))}."
        )
    return read


def _release(fields: Mapping[str, Any]) -> _ReleaseRequest:
    try:
        return _ReleaseRequest.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(wrong_fields(error))
        raise BadRequestError(f"This is no request for a release: {reasons}. Nothing was sent.") from None


def _missing(asked: Asked, directory: Path | None) -> str:
    if directory is None:
        how = (
            "This worker has no directory of requests (--requests DIR): send change and strategy in the input"
        )
    else:
        there = ", ".join(sorted(file.stem for file in directory.glob("*.yaml"))) or "none"
        how = f"On file in {directory}: {there}. Write {asked.deployment}.yaml, or send change and strategy"
    return (
        f"There is no request '{asked.deployment}', and the input does not say what to deploy. Nothing was "
        f"started. {how}."
    )
